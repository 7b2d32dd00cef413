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

from gui.settings import SESSION, TAB, Settings

ROOT = Path(__file__).absolute().parents[2]
NEEDED = ("Xvfb", "xdotool")
DISPLAY = ":97"
SCREEN = "1400x900x24"
START_S, STEP_S = 40.0, 0.6

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(any(shutil.which(name) is None for name in NEEDED), reason=f"needs {' and '.join(NEEDED)}"),
]


@pytest.fixture
def server():
    process = subprocess.Popen(["Xvfb", DISPLAY, "-screen", "0", SCREEN], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1)
    if process.poll() is not None:
        pytest.skip("Xvfb does not start here")
    yield {**os.environ, "DISPLAY": DISPLAY, "QT_QPA_PLATFORM": "xcb", "HF_HUB_OFFLINE": "1"}
    process.terminate()
    process.wait(10)


def xdotool(environment, *arguments):
    done = subprocess.run(["xdotool", *arguments], env=environment, capture_output=True, text=True, timeout=30, check=False)
    time.sleep(STEP_S)
    return done.stdout.strip()


def window_of(environment, process):
    """The identifier of the program's window, once it is there."""
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        found = xdotool(environment, "search", "--onlyvisible", "--name", "Highwater")
        if found:
            return found.split()[0]
    pytest.skip(f"the window does not come up: {process.communicate()[1][-400:] if process.poll() is not None else 'no window'}")
    return ""


def test_keys_and_mouse_of_the_window_system(server, tmp_path):
    environment = {**server, "HIGHWATER_HOME": str(tmp_path)}
    with subprocess.Popen([sys.executable, "main.py"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        drive(environment, process)
    kept = Settings(tmp_path / "settings.ini")
    scenario = json.loads(kept.get(SESSION))
    assert (scenario["task"], scenario["training"]["method"], scenario["training"]["batch"]) == ("training", "lora", 4)
    assert kept.get(TAB) == "fits"


def drive(environment, process):
    """An example by the palette, a field by the palette, a tab by the mouse, and the end by its shortcut."""
    try:
        window = window_of(environment, process)
        xdotool(environment, "windowfocus", window)
        xdotool(environment, "key", "ctrl+k")
        xdotool(environment, "type", "lora on 24")
        xdotool(environment, "key", "Return")
        xdotool(environment, "key", "ctrl+k")
        xdotool(environment, "type", "batch")
        xdotool(environment, "key", "Return")
        xdotool(environment, "key", "ctrl+a")
        xdotool(environment, "type", "4")
        xdotool(environment, "mousemove", "--window", window, "425", "47", "click", "1")
        xdotool(environment, "key", "ctrl+q")
        process.wait(30)
    finally:
        process.kill()
