"""How long until the first paint, against importing PySide6 and pyqtgraph and showing an empty window.

Run as a script: it starts each several times in turn, each in a process of its own, and prints the ratio of medians.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EMPTY = """
import sys
from PySide6.QtWidgets import QApplication, QMainWindow
import pyqtgraph
class Window(QMainWindow):
    def paintEvent(self, event):
        super().paintEvent(event)
        QApplication.quit()
application = QApplication(sys.argv[:1])
window = Window()
window.resize(1400, 900)
window.show()
application.exec()
"""
HIGHWATER = """
import sys
from PySide6.QtCore import QEvent, QObject
from gui.app import make_application, make_window
application = make_application()
window = make_window()
class Painted(QObject):
    def eventFilter(self, watched, event):
        if event.type() == QEvent.Type.Paint:
            application.quit()
        return False
painted = Painted()
window.installEventFilter(painted)
window.show()
application.exec()
heavy = {"torch", "transformers", "huggingface_hub"} & set(sys.modules)
assert not heavy, heavy
window.close()
"""
BAR = 1.5


def seconds(code: str) -> float:
    """One start, as a person waits for it."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env=environment())
    return time.perf_counter() - begun


def environment() -> dict[str, str]:
    """As on a user's machine, where a start finds what the one before has compiled."""
    platform = os.environ.get("QT_QPA_PLATFORM", "offscreen")
    return os.environ | {"QT_QPA_PLATFORM": platform, "PYTHONDONTWRITEBYTECODE": ""}


def main() -> int:
    times: dict[str, list[float]] = {EMPTY: [], HIGHWATER: []}
    for code in (EMPTY, HIGHWATER):
        seconds(code)
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 7):
        for code, taken in times.items():
            taken.append(seconds(code))
    empty, ours = (statistics.median(taken) for taken in times.values())
    print(f"empty window {empty:.2f} s, Highwater {ours:.2f} s, ratio {ours / empty:.2f} (bar {BAR})")
    return 0 if ours / empty <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
