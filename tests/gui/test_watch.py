"""Watching what is not ours: a command of the system and this very process, on a machine with or without a GPU."""

from __future__ import annotations

import os
import shlex
import sys

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest

from gui.actions import Act
from gui.probe.watch_dialog import WatchDialog, one_line
from gui.probe.watching import Translator
from resources.history import History

HOLDS = """
import os, sys, time
held = bytearray(64 * 2**20)
print("Model weights take 1.5GiB", flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
"""


@pytest.fixture
def tab(open_window, small):
    return open_window(small).show_tab("probe")


@pytest.fixture
def dialog(tab):
    tab.window().action(Act.WATCH).trigger()
    return tab.findChild(WatchDialog)


def type_into(field, text):
    field.clear()
    QTest.keyClicks(field, text)


def test_a_command_is_launched_and_plotted_against_the_plan(tab, dialog, qtbot, tmp_path):
    (tmp_path / "holds.py").write_text(HOLDS)
    type_into(dialog.command, shlex.join([sys.executable, str(tmp_path / "holds.py"), str(tmp_path / "enough")]))
    QTest.mouseClick(dialog.launch, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: tab.watch.running, timeout=10_000)
    assert not tab.controls.measure.isEnabled()
    qtbot.waitUntil(lambda: tab.watch.watched.peaks.get("rss", 0) > 64 * 2**20)
    (tmp_path / "enough").touch()
    qtbot.waitUntil(lambda: not tab.watch.running and tab.controls.measure.isEnabled(), timeout=20_000)
    assert "The command ended after" in tab.status.text
    (row,) = [row for row in tab.table.comparisons.rows if row.measured_bytes == row.measured_bytes]
    assert (row.meter, row.measured_bytes) == ("device", tab.watch.watched.peaks["rss"])
    qtbot.waitUntil(lambda: bool(History().runs()), timeout=10_000)
    assert History().runs()[0].level == "watch"


def test_a_process_that_runs_is_watched_and_left_as_it_is(tab, dialog, qtbot):
    type_into(dialog.process, f"{os.getpid()} python")
    QTest.mouseClick(dialog.attach, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: tab.watch.running and len(tab._now.samples) > 1, timeout=20_000)
    QTest.mouseClick(tab.controls.stop, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: not tab.watch.running, timeout=10_000)
    assert tab.watch.watched.outcome["kind"] == "stopped"
    qtbot.waitUntil(lambda: tab.window().context.operations.idle, timeout=10_000)


def test_nonsense_is_said_in_the_dialog(dialog):
    for field, text, button, words in (
        (dialog.process, "python", dialog.attach, "number of a process"),
        (dialog.command, "'", dialog.launch, "can't be read"),
        (dialog.command, "", dialog.launch, "A command is needed"),
    ):
        type_into(field, text)
        QTest.mouseClick(button, Qt.MouseButton.LeftButton)
        assert words in dialog.fault.text()
    type_into(dialog.process, "1")
    dialog.log.setText("/no/such/log")
    QTest.mouseClick(dialog.attach, Qt.MouseButton.LeftButton)
    assert "is not a file" in dialog.fault.text()
    dialog.close()


def test_the_plan_s_own_command_is_suggested(open_window, small, qtbot):
    window = open_window(small)
    window.context.state.edit("inference.engine", "vllm")
    window.action(Act.WATCH).trigger()
    dialog = window.current_tab().findChild(WatchDialog)
    assert dialog.command.text().startswith("vllm serve HuggingFaceTB/SmolLM2-135M")
    assert "\n" not in dialog.command.text()
    dialog.close()


def test_on_a_gpu_the_level_is_what_the_driver_lists_for_the_processes():
    """Where it lists none, the growth of the card since the watch began."""
    translator = Translator("decode")
    card = {"index": 0, "name": "H100", "memory": {"total_bytes": 100}}
    hello, begin = translator.told({"event": "environment", "t": 0.0, "gpus": [card]})
    assert (hello["device"]["type"], hello["device"]["total_bytes"], begin["name"]) == ("cuda", 100, "decode")
    levels = [
        translator.told({"event": "sample", "t": 1.0, "rss": 7, "gpus": gpus})[0]["device"]
        for gpus in ([{"process": 40, "delta": 60}], [{"process": None, "delta": 60}, {"process": None, "delta": 70}])
    ]
    assert levels == [40, 70]
    end, _ = translator.told({"event": "outcome", "t": 2.0, "kind": "completed", "text": ""})
    assert (end["state"], end["device"]) == ("end", 70)


def test_a_continued_command_becomes_one_line():
    assert one_line("vllm serve X \\\n  --port 1 \\\n  --seed 2\n") == "vllm serve X --port 1 --seed 2"
