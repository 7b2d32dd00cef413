"""How long the window computes from an edit of the form to the repaint that answers it, in process CPU time.

Run as a script: it types into the form of a window of 1400 x 900, and prints the median and the 95th percentile for each kind of
edit. CPU time of the whole process is counted, so that waiting for a busy machine does not count; two threads on one core still
halve its speed, which the line before the last tells: a loop of fixed length, timed between the edits.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from PySide6.QtCore import QEventLoop  # noqa: E402  the platform is chosen first
from PySide6.QtWidgets import QApplication  # noqa: E402

from gui.app import make_application, make_window  # noqa: E402
from gui.probe.plot import ProbePlot  # noqa: E402
from gui.settings import Settings  # noqa: E402
from gui.theme import theme  # noqa: E402
from gui.window import MainWindow  # noqa: E402

BAR_MS = 16.0
MAP_BAR_MS = 100.0
"""With the map of what fits in front: until the edit itself is painted, and the map faded; it is worked out in the background."""
EDITS = 120
WARM_UP = 10


def edits(window: MainWindow) -> Iterator[tuple[str, str, Callable[[], None]]]:
    """Name, tab in front, and one edit that differs from the one before it."""

    def typing(path: str, texts: list[str]) -> Callable[[], None]:
        turn = cycle(texts)
        editor = window.form.fields[path].editor

        def type_next() -> None:
            editor.lineEdit().setText(next(turn))
            editor.edited.emit(editor.value())

        return type_next

    def choosing(path: str, values: list[object]) -> Callable[[], None]:
        turn = cycle(values)
        return lambda: window.context.state.edit(path, next(turn))

    yield "batch", "footprint", typing("inference.batch", ["2", "4", "16", "64", "8"])
    yield "prompt tokens", "footprint", typing("inference.prompt_tokens", ["512", "8192", "70000", "4096"])
    yield "engine", "footprint", choosing("inference.engine", ["vllm", "transformers"])
    yield "fault", "footprint", typing("inference.batch", ["0", "4"])
    yield "task", "footprint", choosing("task", ["training", "inference"])
    yield "batch, probe", "probe", typing("inference.batch", ["2", "4", "16", "64", "8"])
    yield "batch, compare", "compare", typing("inference.batch", ["2", "4", "16", "64", "8"])
    yield "batch, fits", "fits", typing("inference.batch", ["2", "4", "16", "64", "8"])


def until_painted(application: QApplication, window: MainWindow) -> None:
    """Run the events that the edit caused: layout, paint, and the next frame of the plot when it is in front."""
    application.processEvents()
    plot = _plot_of(window)
    while plot is not None and plot.isVisible() and plot.dirty:
        application.processEvents(QEventLoop.ProcessEventsFlag.WaitForMoreEvents)
    application.processEvents()


def _plot_of(window: MainWindow) -> ProbePlot | None:
    page = window.tabs.currentWidget().layout().itemAt(0)
    return getattr(page.widget(), "plot", None) if page else None


def measured(application: QApplication, window: MainWindow, edit: Callable[[], None], count: int) -> list[float]:
    """CPU milliseconds of each of ``count`` edits."""
    taken = []
    for _ in range(count + WARM_UP):
        application.processEvents()
        begun = time.process_time()
        edit()
        until_painted(application, window)
        taken.append(1000 * (time.process_time() - begun))
    return taken[WARM_UP:]


def fixed_loop() -> float:
    """CPU milliseconds of a loop that is always the same."""
    begun, total = time.process_time(), 0
    for number in range(100_000):
        total += number
    return 1000 * (time.process_time() - begun)


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else EDITS
    application = make_application()
    theme().choose("light")
    worst, loops = 0.0, []
    with tempfile.TemporaryDirectory() as folder:
        window = make_window(None, Settings(Path(folder) / "settings.ini"))
        window.resize(1400, 900)
        window.show()
        for name, tab, edit in edits(window):
            window.show_tab(tab)
            until_painted(application, window)
            taken = measured(application, window, edit, count)
            p95 = statistics.quantiles(taken, n=20)[-1]
            bar = MAP_BAR_MS if tab == "fits" else BAR_MS
            worst = max(worst, p95 / bar)
            loops.append(fixed_loop())
            print(f"{name:14} p50 {statistics.median(taken):5.1f} ms   p95 {p95:5.1f} ms", flush=True)
        window.close()
    print(f"a loop of 100 000 additions took {min(loops):.1f} to {max(loops):.1f} ms")
    print(f"worst p95 {worst:.0%} of its bar ({BAR_MS:g} ms, with the map {MAP_BAR_MS:g} ms)")
    return 0 if worst <= 1 else 1


if __name__ == "__main__":
    sys.exit(main())
