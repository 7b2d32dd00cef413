"""The program under a real window system, driven by the keys and the mouse of its server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gui.settings import PINS, SESSION, TAB, THEME, ZOOM_PERCENT, Settings
from resources.history import History

ROOT = Path(__file__).absolute().parents[2]
NEEDED = ("Xvfb", "xdotool")
SCREEN = "1400x900x24"
START_S, STEP_S = 40.0, 0.35

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(any(shutil.which(name) is None for name in NEEDED), reason=f"needs {' and '.join(NEEDED)}"),
]


@pytest.fixture
def server():
    """A server on a display that is free, whatever else runs: it says itself which."""
    reading, writing = os.pipe()
    process = subprocess.Popen(
        ["Xvfb", "-displayfd", str(writing), "-screen", "0", SCREEN, "-nolisten", "tcp"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=[writing],
    )  # fmt: skip
    os.close(writing)
    with os.fdopen(reading) as told:
        number = told.readline().strip()
    if not number:
        pytest.skip("Xvfb does not start here")
    yield {**os.environ, "DISPLAY": f":{number}", "QT_QPA_PLATFORM": "xcb", "HF_HUB_OFFLINE": "1"}
    process.terminate()
    process.wait(10)


def xdotool(environment, *arguments):
    done = subprocess.run(["xdotool", *arguments], env=environment, capture_output=True, text=True, timeout=30, check=False)
    time.sleep(STEP_S)
    return done.stdout.strip()


def window_of(environment, process, name):
    """The identifier of a window of the program, once it is there."""
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        found = xdotool(environment, "search", "--onlyvisible", "--name", name)
        if found:
            return found.split()[0]
    pytest.fail(f"no window {name}: {process.communicate()[1][-400:] if process.poll() is not None else 'it does not come up'}")
    return ""


def test_a_day_s_work_with_the_keys_and_the_mouse_of_the_window_system(server, tmp_path):
    """From an example to a plan of one's own, pinned, saved, watched; what is kept for the next start tells that all arrived."""
    environment = {**server, "HIGHWATER_HOME": str(tmp_path)}
    with subprocess.Popen([sys.executable, "main.py"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            Person(environment, process, tmp_path).work()
        finally:
            process.kill()
    kept = Settings(tmp_path / "settings.ini")
    scenario = json.loads(kept.get(SESSION))
    assert (scenario["task"], scenario["training"]["method"], scenario["training"]["batch"]) == ("training", "lora", 4)
    assert json.loads((tmp_path / "mine.json").read_text()) == scenario
    assert (kept.get(TAB), kept.get(THEME), kept.get(ZOOM_PERCENT), len(kept.get(PINS))) == ("fits", "dark", 110, 1)
    (run,) = History(tmp_path / "history.sqlite").runs()
    assert (run.level, run.outcome) == ("watch", "completed")


class Person:
    """Without a window manager, a new window has to be given the keyboard."""

    def __init__(self, environment, process, folder):
        self.environment, self.process, self.folder = environment, process, folder
        self.window = window_of(environment, process, "Highwater")

    def keys(self, *keys):
        xdotool(self.environment, "key", *keys)

    def type(self, text):
        xdotool(self.environment, "type", text)

    def palette(self, words):
        self.keys("ctrl+k")
        self.type(words)
        self.keys("Return")

    def focus(self, name):
        xdotool(self.environment, "windowfocus", window_of(self.environment, self.process, name))

    def work(self):
        self.focus("Highwater")
        self.palette("lora on 24")
        self.palette("batch")
        self.keys("ctrl+a")
        self.type("64")
        self.keys("ctrl+z")
        self.keys("ctrl+a")
        self.type("4")
        self.keys("ctrl+d")
        self.palette("dark")
        self.keys("ctrl+plus")
        self.save()
        self.watch()
        xdotool(self.environment, "mousemove", "--window", self.window, "480", "50", "click", "1")
        self.keys("ctrl+q")
        self.process.wait(30)

    def save(self):
        self.keys("ctrl+shift+s")
        self.focus("Save scenario")
        self.keys("ctrl+a")
        self.type(str(self.folder / "mine.json"))
        self.keys("Return")
        self.focus("Highwater")

    def watch(self):
        self.keys("ctrl+shift+w")
        self.focus("^Watch$")
        self.keys("Tab", "Tab", "Tab", "ctrl+a")
        self.type("sleep 0.2")
        self.keys("Return")
        self.focus("Highwater")
        history, end = History(self.folder / "history.sqlite"), time.monotonic() + START_S
        while time.monotonic() < end and not (history.path.exists() and history.runs()):
            time.sleep(STEP_S)
