"""Whether memory stays flat over many edits of the form.

Run as a script: it edits as a person would over a long day, and prints by how much the process grew over the later half.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import psutil  # noqa: E402  the platform is chosen first

from gui.app import make_application, make_window  # noqa: E402
from gui.settings import Settings  # noqa: E402

EDITS, BAR_BYTES = 10_000, 32 * 2**20
CYCLE = (
    ("inference.batch", (1, 2, 4, 8, 16)),
    ("inference.prompt_tokens", (512, 4096, 30_000)),
    ("hardware.gpu", ("H100 SXM5 80GB", "GeForce RTX 4090")),
    ("task", ("training", "inference")),
    ("training.batch", (1, 2, 3)),
)


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else EDITS
    application, process, before = make_application(), psutil.Process(), 0
    with tempfile.TemporaryDirectory() as folder:
        window = make_window(None, Settings(Path(folder) / "settings.ini"))
        window.show()
        for number in range(count):
            path, values = CYCLE[number % len(CYCLE)]
            window.context.state.edit(path, values[number // len(CYCLE) % len(values)])
            application.processEvents()
            if number == count // 2:
                before = process.memory_info().rss
        growth = process.memory_info().rss - before
        window.close()
    print(f"{count} edits: memory grew by {growth / 2**20:.1f} MiB over the later half (bar {BAR_BYTES >> 20})")
    return 0 if growth <= BAR_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
