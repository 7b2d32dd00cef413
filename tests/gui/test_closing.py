"""Closing the window in the middle of anything: the program ends soon, says nothing, and leaves no process behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.timing import TRIES

ROOT = Path(__file__).absolute().parents[2]
START = """
import sqlite3, sys, time
from PySide6.QtCore import QTimer
from PySide6.QtTest import QTest
from gui import app
from probes.watch import Launch
from resources.home import highwater_home
from planner.scenario import Hardware, Inference, Scenario
application = app.make_application()

def wait_for(condition):
    end = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < end, "it never began"
        QTest.qWait(5)

def begin():
    window = application.activeWindow() or next(one for one in application.topLevelWidgets() if hasattr(one, "show_tab"))
    state, operations = window.context.state, window.context.operations
    {middle}
    print(time.monotonic())
    window.close()

QTimer.singleShot(0, begin)
small = Scenario("HuggingFaceTB/SmolLM2-135M", "inference", inference=Inference(batch=1, prompt_tokens=16, new_tokens=2),
                 hardware=Hardware("H100 SXM5 80GB"))
sys.exit(app.run(small))
"""
MIDDLES = {
    "a measurement, a search on the Hub, watching every GPU": """
    window._measure()
    probe = window.current_tab()
    wait_for(lambda: probe.live.pid)
    editor = window.form.fields["model"].editor
    editor.setFocus()
    editor._search.begin("some model")
    wait_for(lambda: operations.running("model hub"))
    monitor = window.show_tab("monitor")
    wait_for(lambda: "driver" in monitor.words.text() or monitor.cards)
    """,
    "a rehearsal, working out what fits": """
    window._rehearse()
    probe = window.current_tab()
    wait_for(lambda: probe.live.pid)
    window.show_tab("fits")
    state.edit("inference.batch", 3)
    """,
    "a watch, a calibration": """
    battery = window.calibrate()
    battery.run.click()
    wait_for(lambda: battery.stop.isEnabled())
    probe = window.show_tab("probe")
    probe.begin_watch(Launch([sys.executable, "-c", "import time; time.sleep(99)"]))
    wait_for(lambda: probe.watch.running and len(probe._now.samples) > 1)
    """,
    "reading a model of the Hub, writing into a database that another program has locked": """
    state.edit("model", "nobody/nothing")
    wait_for(lambda: state.busy)
    QTest.qWait(500)
    state.undo_stack.undo()
    folder = highwater_home()
    folder.mkdir(exist_ok=True)
    other = sqlite3.connect(folder / "history.sqlite")
    other.execute("BEGIN EXCLUSIVE")
    window.documents.keep()
    """,
}
ENDS_S = 15.0
"""SQLite alone waits five for a lock, on a machine that is quiet; a model of the Hub is waited for twenty."""


@pytest.fixture
def silent_hub():
    """It takes a connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def left_of(home):
    """Processes that were started with this home."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HIGHWATER_HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize("middle", MIDDLES)
def test_closing_in_the_middle_of(middle, silent_hub, tmp_path):
    code, taken = START.replace("    {middle}\n", MIDDLES[middle].rstrip(" ")), []
    while len(taken) < TRIES and (not taken or taken[-1] >= ENDS_S):
        home = tmp_path / str(len(taken))
        home.mkdir()
        environment = {**os.environ, "HIGHWATER_HOME": str(home), "QT_QPA_PLATFORM": "offscreen", "HF_HUB_OFFLINE": "0",
                       "HF_ENDPOINT": silent_hub, "PYTHONPATH": str(ROOT)}  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False
        )
        said = [line for line in done.stderr.splitlines() if not line.startswith("This plugin does not support")]
        assert (done.returncode, said) == (0, [])
        taken.append(time.monotonic() - float(done.stdout))
        assert left_of(home) == []
    assert taken[-1] < ENDS_S
