"""How long the window computes for one frame of the live plot with 72,000 samples, in CPU time; whether memory stays flat.

Run as a script: it feeds a run of three meters over the course of a rehearsal, a frame after every few samples. The time is told
at a stated speed of the machine (see ``speed.py``).
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import numpy as np  # noqa: E402  the platform is chosen first
import psutil  # noqa: E402

from gui.app import make_application, make_window  # noqa: E402
from gui.probe.rehearsed import Rehearsed, Stretch  # noqa: E402
from gui.probe.run import Run  # noqa: E402
from gui.settings import Settings  # noqa: E402
from gui.theme import theme  # noqa: E402
from tests.benchmarks.speed import stated_ms  # noqa: E402

BAR_MS, SAMPLES, FRAMES, PER_FRAME = 16.0, 72_000, 3_000, 4
GROWTH_BAR = 32 * 2**20
GIB = 2**30


def main() -> int:
    application = make_application()
    theme().choose("light")
    with tempfile.TemporaryDirectory() as folder:
        window = make_window(None, Settings(Path(folder) / "settings.ini"))
        window.resize(1400, 900)
        window.show()
        tab = window.show_tab("probe")
        application.processEvents()
        taken, growth = frames(application, tab)
        window.close()
    p95 = statistics.quantiles(taken, n=20)[-1]
    print(f"{SAMPLES} samples, {len(taken)} frames: p50 {statistics.median(taken):.1f} ms, p95 {p95:.1f} ms (bar {BAR_MS:g})")
    print(f"memory grew by {growth / 2**20:.1f} MiB (bar {GROWTH_BAR >> 20})")
    return 0 if p95 <= BAR_MS and growth <= GROWTH_BAR else 1


def frames(application: object, tab: object) -> tuple[list[float], int]:
    """CPU milliseconds of each frame, and by how many bytes the process grew over the later two thirds."""
    run, plot, rng = Run(), tab.plot, np.random.default_rng(0)
    run.take({"event": "phase", "t": 0.0, "name": "load", "state": "begin", "step": 0})
    now = 0
    for now in range(SAMPLES):
        feed(run, now, rng)
    plot._timer.stop()
    plot.show_run(run)
    plot.set_rehearsed(rehearsed(rng))
    taken, process, before = [], psutil.Process(), 0

    def draw() -> None:
        plot.mark_dirty()
        plot._frame()
        application.processEvents()

    count = int(sys.argv[1]) if len(sys.argv) > 1 else FRAMES
    for frame in range(count):
        for _ in range(PER_FRAME):
            now += 1
            feed(run, now, rng)
        taken.append(stated_ms(draw))
        if frame == count // 3:
            before = process.memory_info().rss
    return taken[10:], process.memory_info().rss - before


def rehearsed(rng: np.random.Generator) -> Rehearsed:
    """The fourth series: as many points as the course of a rehearsal keeps."""
    share = np.linspace(0, 1, 2000)
    allocated = 9 * GIB + rng.integers(0, GIB, 2000).astype(float)
    meters = {"allocated": allocated, "reserved": allocated + GIB}
    return Rehearsed({"load": {"allocated": 10 * GIB, "reserved": 11 * GIB}}, {}, (Stretch("load", share, meters),))


def feed(run: Run, number: int, rng: np.random.Generator) -> None:
    level = 10 * GIB + int(rng.integers(0, GIB)) + number * 2**14
    run.take({"event": "memory", "t": number * 0.05, "allocated": level, "reserved": level + GIB, "device": level + 2 * GIB})


if __name__ == "__main__":
    sys.exit(main())
