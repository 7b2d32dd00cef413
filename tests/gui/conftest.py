"""Every window test runs offscreen, in a home of its own, and fails on what a window should not leave behind."""

from __future__ import annotations

import logging
import os
import threading

os.environ["QT_QPA_PLATFORM"] = "offscreen"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from PySide6.QtCore import QTimer

from gui.app import make_window
from gui.first import FIRST_SCENARIO
from gui.settings import Settings
from gui.theme import theme
from planner.scenario import Hardware, Inference, Scenario
from tests.timing import PATIENCE_S, eventually

OFFSCREEN_LACKS = "This plugin does not support"
SMALL = Scenario(
    "HuggingFaceTB/SmolLM2-135M",
    "inference",
    inference=Inference(batch=1, prompt_tokens=16, new_tokens=2),
    hardware=Hardware("H100 SXM5 80GB"),
)


@pytest.fixture
def qtbot(qtbot):
    """Waits long enough for a busy machine: what a test waits for ends the waiting."""
    until = qtbot.waitUntil
    qtbot.waitUntil = lambda condition, timeout=0: until(condition, timeout=max(timeout, 1000 * PATIENCE_S))
    return qtbot


@pytest.fixture
def small():
    return SMALL


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HIGHWATER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def nothing_left_behind(qapp, qtlog, caplog):
    before = set(threading.enumerate())
    caplog.set_level(logging.WARNING)
    yield
    said = [record.message for record in qtlog.records if not record.message.startswith(OFFSCREEN_LACKS)]
    assert not said, f"Qt complained: {said}"
    logged = [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.WARNING]
    assert not logged, f"stray logs: {logged}"
    eventually(lambda: not _own_threads() - before)
    assert not _own_threads() - before, f"threads still alive: {_own_threads() - before}"


def _own_threads():
    return {thread for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread)}


@pytest.fixture
def open_window(qtbot, home):
    windows = []

    def opened(scenario=FIRST_SCENARIO, size=(1400, 900), scheme="light", settings=None):
        theme().choose(scheme)
        window = make_window(scenario, settings or Settings(home / f"settings{len(windows)}.ini"))
        window.resize(*size)
        window.show()
        qtbot.waitExposed(window)
        windows.append(window)
        return window

    yield opened
    for window in windows:
        window.close()
        timers = [timer for timer in window.findChildren(QTimer) if timer.isActive()]
        assert not timers, f"timers still running in {[timer.parent() for timer in timers]}"
        window.deleteLater()
    qtbot.wait(10)


@pytest.fixture
def window(open_window):
    return open_window()
