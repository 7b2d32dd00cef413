"""Renders every tab into a folder: light, dark, at 200 %, in 4K and at the smallest size, with something to see in each.

Run as a script: ``python tests/screenshots.py FOLDER [--images DOCS]``; with ``--images`` the pictures of README and guide too,
among them a real probe as an animation (needs torch).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["QT_QPA_PLATFORM"] = "offscreen"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from PySide6.QtCore import QEventLoop, QTimer  # noqa: E402  the platform is chosen first
from PySide6.QtGui import QImage  # noqa: E402

from gui.app import make_application, make_window  # noqa: E402
from gui.first import FIRST_SCENARIO  # noqa: E402
from gui.settings import Settings  # noqa: E402
from gui.tabs import TABS  # noqa: E402
from gui.theme import theme  # noqa: E402
from gui.window import MINIMUM_SIZE, MainWindow  # noqa: E402
from planner.scenario import Hardware, Inference, Scenario  # noqa: E402
from resources.history import History, Run  # noqa: E402
from tests.animation import save_animation  # noqa: E402

USUAL, SMALLEST, LARGEST = (1400, 900), (MINIMUM_SIZE[0], 700), (3840, 2160)
VARIANTS = (("light", "light", USUAL), ("dark", "dark", USUAL), ("smallest", "light", SMALLEST), ("4k", "light", LARGEST))
README = (
    ("footprint", "light"), ("footprint", "dark"), ("fits", "light"), ("speed", "light"), ("compare", "light"), ("advice", "light"),
    ("commands", "light"), ("training", "light"),
)  # fmt: skip
VIEWS = {"speed": "fits", "training": "footprint"}
"""Pictures of a tab in another state, and which tab."""
SMALL = Scenario("HuggingFaceTB/SmolLM2-135M", "inference", hardware=Hardware("H100 SXM5 80GB"),
                 inference=Inference(batch=4, prompt_tokens=96, new_tokens=6))  # fmt: skip
SMALLER = (1100, 700)
_PATIENCE_MS, _STEP_MS, _FRAME_MS, _MOST_FRAMES = 120_000, 50, 600, 4
GIB = 2**30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=Path, help="folder of the README's pictures")
    options = parser.parse_args()
    for folder in filter(None, (options.folder, options.images)):
        folder.mkdir(parents=True, exist_ok=True)
    scaled = os.environ.get("QT_SCALE_FACTOR")
    variants = (("200", "light", USUAL),) if scaled else VARIANTS
    with TemporaryDirectory() as home:
        os.environ["HIGHWATER_HOME"] = home
        fill_history()
        make_application()
        for name, scheme, size in variants:
            for tab in TABS:
                render(tab.name, scheme, size, options.folder / f"{tab.name}-{name}.png")
        if options.images and not scaled:
            for tab_name, scheme in README:
                render(tab_name, scheme, USUAL, options.images / f"{tab_name}-{scheme}.png")
            animate_probe(options.images / "probe.png", options.images / "probe-light.png")
    if not scaled:
        environment = {**os.environ, "QT_SCALE_FACTOR": "2"}
        subprocess.run([sys.executable, __file__, str(options.folder)], check=True, env=environment)
    return 0


def render(tab: str, scheme: str, size: tuple[int, int], file: Path) -> None:
    """One picture of the real window."""
    with TemporaryDirectory() as folder:
        window = make_window(FIRST_SCENARIO, Settings(Path(folder) / "settings.ini"))
        theme().choose(scheme)
        window.resize(*size)
        prepare(window, tab)
        window.show()
        shown = window.show_tab(VIEWS.get(tab, tab))
        window.context.machine.start()
        wait(lambda: settled(window))
        if tab == "speed":
            shown.views._group.button(1).click()
        window.statusBar().clearMessage()
        wait(lambda: True)
        window.grab().save(str(file))
        window.close()
        window.deleteLater()
    print(file)


def prepare(window: MainWindow, tab: str) -> None:
    """Something to see: pinned plans to compare, a plan that does not fit to be advised on, a card that fills up."""
    state = window.context.state
    if tab == "compare":
        window.context.pins.pin(state.plan)
        state.edit("inference.batch", 16)
        window.context.pins.pin(state.plan)
        state.edit("inference.prompt_tokens", 2048)
    elif tab == "training":
        window.documents.open_example("lora")
    elif tab in ("fits", "speed"):
        window.documents.open_example("chat")
    elif tab == "advice":
        state.edit("task", "training")
        state.edit("hardware.gpu", "GeForce RTX 4090")
    elif tab == "commands":
        window.documents.open_example("serve")


def settled(window: MainWindow) -> bool:
    context = window.context
    return context.machine.state is not None and context.operations.idle and not context.state.settling


def animate_probe(animation: Path, last: Path) -> None:
    """A small model rehearsed and measured on this machine's CPU, from the prediction to the end, and the end as a picture.

    The end comes first too: it is what is seen where pictures stand still, and the sequence is played over and over.
    """
    frames: list[tuple[QImage, float]] = []
    with TemporaryDirectory() as folder:
        window = make_window(SMALL, Settings(Path(folder) / "settings.ini"))
        theme().choose("light")
        window.resize(*SMALLER)
        window.show()
        tab: Any = window.show_tab("probe")
        window.context.machine.start()
        wait(lambda: settled(window))

        def take(seconds: float) -> None:
            window.statusBar().clearMessage()
            image = window.grab().toImage()
            if frames and image == frames[-1][0]:
                frames[-1] = (image, max(seconds, frames[-1][1]))
            else:
                frames.append((image, seconds))

        def follow() -> None:
            """However long it takes: a few pictures of its phases, evenly, and of its end."""
            wait(lambda: tab.live.running)
            wait(lambda: bool(tab._now.bands) or not tab.live.running)
            begun, left = len(frames), _PATIENCE_MS // _FRAME_MS
            while tab.live.running and left:
                pause(_FRAME_MS)
                take(0.4)
                left -= 1
            taken = frames[begun:]
            kept = min(_MOST_FRAMES, len(taken))
            frames[begun:] = [taken[index * len(taken) // kept] for index in range(kept)]
            wait(lambda: not tab.live.running and settled(window))
            take(2.5)

        take(1.5)
        tab.controls.rehearse.click()
        follow()
        tab.controls.measure.click()
        follow()
        window.resize(*USUAL)
        pause(_FRAME_MS)
        window.grab().save(str(last))
        window.close()
        window.deleteLater()
    save_animation([frames[-1], *frames[:-1]], animation)
    print(animation)


def fill_history() -> None:
    """Runs as a few weeks of work leave them; the sizes are made up, the models are real."""
    rows = (
        ("Qwen/Qwen3-8B", "measure", "inference", "NVIDIA H100 80GB HBM3", 17.2, 17.4, "completed"),
        ("meta-llama/Llama-3.1-8B", "rehearse", "training", "", 63.8, 62.9, "completed"),
        ("meta-llama/Llama-3.1-8B", "measure", "training", "NVIDIA GeForce RTX 4090", 63.8, None, "out_of_memory"),
        ("HuggingFaceTB/SmolLM2-135M", "measure", "inference", "CPU", 0.27, 0.28, "completed"),
        ("Qwen/Qwen3-30B-A3B", "measure", "inference", "NVIDIA H100 80GB HBM3", 58.1, 58.3, "stopped"),
    )
    history = History()
    for day, (model, level, task, device, predicted, took, outcome) in enumerate(rows):
        sizes = {"predicted_allocated_bytes": int(predicted * GIB), "allocated_bytes": int(took * GIB) if took else None}
        history.add(Run(level, model, task, "transformers", "H100 SXM5 80GB", device, outcome, "fits", 12.0, "prefill",
                        created=f"2026-01-{10 + day}T1{day}:3{day}:00+00:00", **sizes))  # fmt: skip


def pause(milliseconds: int) -> None:
    """Run events for a while."""
    loop = QEventLoop()
    QTimer.singleShot(milliseconds, loop.quit)
    loop.exec()


def wait(until: Callable[[], bool]) -> None:
    """Run events until ``until`` holds, at least twice around."""
    loop, timer, left = QEventLoop(), QTimer(interval=_STEP_MS), [_PATIENCE_MS // _STEP_MS]

    def look() -> None:
        left[0] -= 1
        if (until() and left[0] < _PATIENCE_MS // _STEP_MS - 3) or left[0] <= 0:
            loop.quit()

    timer.timeout.connect(look)
    timer.start()
    loop.exec()
    timer.stop()


if __name__ == "__main__":
    sys.exit(main())
