"""How long the window computes from an edit of the form to the repaint that answers it, in CPU time of its thread.

Run as a script: it makes every kind of edit in a window of 1400 x 900 with every tab in front, and prints the 95th percentile of
each in a table. ``--quick`` makes fewer edits, of some kinds and tabs. CPU time is counted, so that waiting for a busy machine does
not count, and it is told at a stated speed of the machine (see ``speed.py``). Of three rounds the best counts.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from PySide6.QtCore import QEventLoop  # noqa: E402  the platform is chosen first
from PySide6.QtTest import QTest  # noqa: E402
from PySide6.QtWidgets import QApplication  # noqa: E402

from gui.app import make_application, make_window  # noqa: E402
from gui.examples import EXAMPLES  # noqa: E402
from gui.probe.plot import ProbePlot  # noqa: E402
from gui.settings import Settings  # noqa: E402
from gui.state import Selection  # noqa: E402
from gui.tabs import TABS  # noqa: E402
from gui.theme import theme  # noqa: E402
from gui.window import MainWindow  # noqa: E402
from tests.benchmarks.speed import STATED_MS, stated_ms  # noqa: E402

BAR_MS = 16.0
MAP_BAR_MS = 100.0
"""With the map of what fits in front: until the edit itself is painted, and the map faded; it is worked out in the background."""
EDITS, QUICK_EDITS, ROUNDS = 60, 20, 3
WARM_UP = 8
SHARDED = next(example.scenario for example in EXAMPLES if example.name == "sharded")
QUICK = (
    ("footprint", "batch"), ("footprint", "weights"), ("fits", "batch"), ("probe", "batch"),
    ("probe", "model"), ("compare", "method"),
)  # fmt: skip
Edit = Callable[[], object]


def kinds(window: MainWindow) -> dict[str, Callable[[], Edit]]:
    """What makes edits of each kind, each edit different from the one before it."""
    state, fields = window.context.state, window.form.fields

    def typing(path: str, *texts: str) -> Edit:
        turn, editor = cycle(texts), fields[path].editor

        def type_next() -> None:
            editor.lineEdit().setText(next(turn))
            editor.edited.emit(editor.value())

        return type_next

    def choosing(path: str, *values: object) -> Edit:
        turn = cycle(values)
        return lambda: state.edit(path, next(turn))

    def training(path: str, *values: object) -> Edit:
        state.edit("task", "training")
        return choosing(path, *values)

    def sharded(path: str, *values: object) -> Edit:
        state.open(SHARDED, "shard")
        return choosing(path, *values)

    def opening() -> Edit:
        turn = cycle(example.scenario for example in EXAMPLES)
        return lambda: state.open(next(turn), "open example")

    def held_arrow() -> Edit:
        turn, editor = cycle([1] * 20 + [-1] * 20), fields["inference.batch"].editor
        return lambda: editor.stepBy(next(turn))

    def letters() -> Edit:
        turn, editor = cycle("qwen3 30b instr\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b"), fields["model"].editor
        editor.setFocus()
        editor.clear()
        return lambda: QTest.keyClicks(editor, next(turn))

    def undoing() -> Edit:
        for batch in (3, 5, 7, 9):
            state.edit("inference.batch", batch)
        turn = cycle([state.undo_stack.undo] * 3 + [state.undo_stack.redo] * 3)
        return lambda: next(turn)()

    def pinning() -> Edit:
        pins = window.context.pins
        turn = cycle([lambda: pins.pin(state.plan), lambda: pins.remove(0)])
        return lambda: next(turn)()

    def selecting() -> Edit:
        turn = cycle(["weights", "kv_cache", "activations", None])
        return lambda: state.select(Selection(next(turn)))

    return {
        "batch": lambda: typing("inference.batch", "2", "4", "16", "64", "8"),
        "prompt tokens": lambda: typing("inference.prompt_tokens", "512", "8192", "70000", "4096"),
        "arrow held": held_arrow,
        "fault": lambda: typing("inference.batch", "0", "4"),
        "engine": lambda: choosing("inference.engine", "vllm", "transformers"),
        "weights": lambda: choosing("weights", "fp8", "nf4", "native"),
        "GPU": lambda: choosing("hardware.gpu", "H100 SXM5 80GB", "GeForce RTX 4090", "L4"),
        "GPUs": lambda: choosing("hardware.gpus", 2, 4, 8, 1),
        "model": lambda: choosing("model", "Qwen/Qwen3-30B-A3B", "meta-llama/Llama-3.1-8B"),
        "letters": letters,
        "task": lambda: choosing("task", "training", "inference"),
        "training batch": lambda: training("training.batch", 2, 4, 16, 8),
        "method": lambda: training("training.method", "full", "lora", "qlora"),
        "sharding": lambda: training("parallel.sharding", "zero1", "fsdp", "none"),
        "optimizer": lambda: training("training.optimizer", "adamw_fused", "sgd", "adamw"),
        "checkpointing": lambda: training("training.checkpointing", "full", "none"),
        "sequence on 8": lambda: sharded("training.sequence", 2048, 8192, 16384, 4096),
        "engine on 8": lambda: sharded("training.engine", "deepspeed", "megatron", "fsdp"),
        "method on 8": lambda: sharded("training.method", "lora", "full"),
        "card on 8": lambda: sharded("hardware.gpu", "H200 SXM 141GB", "L4", "H100 SXM5 80GB"),
        "example": opening,
        "undo": undoing,
        "pin": pinning,
        "select": selecting,
    }


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


def measured(application: QApplication, window: MainWindow, edit: Edit, count: int) -> list[float]:
    """Milliseconds of each of ``count`` edits."""
    taken = []

    def answer() -> None:
        edit()
        until_painted(application, window)

    for _ in range(count + WARM_UP):
        application.processEvents()
        taken.append(stated_ms(answer))
    window.form.fields["model"].editor._completer.popup().hide()
    return taken[WARM_UP:]


def best_p95(application: QApplication, window: MainWindow, tab: str, make: Callable[[], Edit], count: int) -> float:
    """The best of three rounds of one kind with one tab in front."""
    begin, state, found = window.context.state.scenario, window.context.state, []
    for _ in range(ROUNDS):
        state.open(begin, "begin anew")
        window.show_tab(tab)
        until_painted(application, window)
        found.append(statistics.quantiles(measured(application, window, make(), count), n=20)[-1])
        if found[-1] <= BAR_MS / 2:
            break
    state.open(begin, "begin anew")
    return min(found)


def wanted(window: MainWindow, chosen: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Kind by kind, tab by tab."""
    if chosen.quick:
        yield from QUICK
        return
    for kind in chosen.kinds or kinds(window):
        for tab in chosen.tabs or [tab.name for tab in TABS]:
            yield tab, kind


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    asked.add_argument("--quick", action="store_true")
    asked.add_argument("--edits", type=int)
    asked.add_argument("--kinds", nargs="+", help="only these")
    asked.add_argument("--tabs", nargs="+", help="only in front of these")
    chosen = asked.parse_args()
    count = chosen.edits or (QUICK_EDITS if chosen.quick else EDITS)
    application = make_application()
    theme().choose("light")
    worst, row = 0.0, ""
    with tempfile.TemporaryDirectory() as folder:
        window = make_window(None, Settings(Path(folder) / "settings.ini"))
        window.resize(1400, 900)
        window.show()
        application.processEvents()
        gc.freeze()  # as the program does
        makers = kinds(window)
        for tab, kind in wanted(window, chosen):
            p95 = best_p95(application, window, tab, makers[kind], count)
            worst = max(worst, p95 / (MAP_BAR_MS if tab == "fits" else BAR_MS))
            print(("" if kind == row else f"\n{kind:16}") + f"{tab} {p95:.1f}  ", end="", flush=True)
            row = kind
        window.close()
    print(f"\np95 in ms of CPU, where the loop of speed.py takes {STATED_MS:g} ms")
    print(f"worst p95 {worst:.0%} of its bar ({BAR_MS:g} ms, with the map {MAP_BAR_MS:g} ms)")
    return 0 if worst <= 1 else 1


if __name__ == "__main__":
    sys.exit(main())
