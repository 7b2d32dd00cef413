"""The Calibrate window, on recordings such as a card of known figures would have left."""

from __future__ import annotations

import json

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QFileDialog

from gui.actions import Act
from planner.units import MIB
from resources import calibration as store
from tests.probes.test_calibration import CARD, battery


@pytest.fixture
def calibrate(open_window, home, qtbot):
    battery(home / "recordings", context=712 * MIB, slack=1.6)
    window = open_window()
    window.context.state.edit("hardware.gpu", CARD)
    window.action(Act.CALIBRATE).trigger()
    found = window.calibrate()
    qtbot.waitUntil(lambda: window.context.operations.idle)
    return found


def press(button, found, qtbot):
    QTest.mouseClick(button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: found._context.operations.idle and not found._context.state.settling, timeout=20_000)


def device_of(found):
    return found._context.state.footprint.gpus[0].peak.device


def test_recordings_are_judged_used_and_taken_back(calibrate, qtbot, tmp_path, monkeypatch):
    before = device_of(calibrate)
    assert "Nothing is calibrated" in calibrate.held.text()
    press(calibrate.fit, calibrate, qtbot)
    rows = [calibrate.figures.index(row, 0).data() for row in range(calibrate.figures.rowCount())]
    assert "Context" in rows
    assert "712.0 MiB" in calibrate.figures.index(rows.index("Context"), 1).data()
    assert "without" in calibrate.judged.text()
    press(calibrate.use, calibrate, qtbot)
    assert store.cards() == [CARD]
    assert CARD in calibrate.held.text()
    assert device_of(calibrate) != before, "predictions use it at once"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / "c.json"), ""))
    press(calibrate.export, calibrate, qtbot)
    assert CARD in json.loads((tmp_path / "c.json").read_text())["cards"]
    press(calibrate.back, calibrate, qtbot)
    assert store.cards() == []
    assert device_of(calibrate) == before
    press(calibrate.use, calibrate, qtbot)
    press(calibrate.reset, calibrate, qtbot)
    assert store.cards() == []


def test_a_broken_file_of_calibrations_is_said(calibrate, qtbot):
    store.calibration_path().write_text("{")
    press(calibrate.use, calibrate, qtbot) if calibrate.use.isEnabled() else press(calibrate.fit, calibrate, qtbot)
    press(calibrate.use, calibrate, qtbot)
    assert "calibrate reset" in calibrate.status.text()


def test_the_battery_needs_its_libraries_and_says_so(calibrate, monkeypatch):
    monkeypatch.setattr("gui.calibrate.window.why_not", lambda: "torch is not installed: pip install torch")
    QTest.mouseClick(calibrate.run, Qt.MouseButton.LeftButton)
    assert "pip install torch" in calibrate.status.text()


def test_the_battery_tells_how_far_it_is_and_stops(calibrate, qtbot):
    QTest.mouseClick(calibrate.run, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: "card's own figures" in calibrate.status.text(), timeout=10_000)
    assert not calibrate.run.isEnabled()
    QTest.mouseClick(calibrate.stop, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: calibrate.run.isEnabled(), timeout=20_000)
    assert "Stopped" in calibrate.status.text() or "stopped" in calibrate.status.text()
