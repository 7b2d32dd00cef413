from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest

from gui.probe.run import Run
from gui.probe.table import ComparisonModel, compare
from probes.measurement import Measurement
from probes.recording import read_recording

RUN_MS = 240_000


@pytest.fixture
def tab(open_window, small):
    return open_window(small).show_tab("probe")


def press_measure(tab, qtbot):
    qtbot.waitUntil(lambda: tab.isVisible())
    QTest.mouseClick(tab.controls.measure, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: tab.live.running, timeout=10_000)


def wait_for_the_end(tab, qtbot):
    qtbot.waitUntil(lambda: tab.measurement is not None and not tab.live.running and bool(tab.measurement.outcome), timeout=RUN_MS)


@pytest.mark.slow
def test_measure_runs_the_plan_and_the_prediction_holds(tab, qtbot):
    press_measure(tab, qtbot)
    assert not tab.controls.measure.isEnabled()
    wait_for_the_end(tab, qtbot)
    assert tab.measurement.outcome["kind"] == "completed", tab.status.text
    rows = {(row.phase, row.meter): row for row in tab.table.comparisons.rows}
    for phase in ("load", "prefill", "decode"):
        assert abs(rows[phase, "allocated"].error) < 0.05
        assert rows[phase, "device"].measured_bytes > 0
    assert "CPU" in tab.status.text
    assert tab.table.comparisons.index(2, 1).data() == "Process growth (CPU)"
    assert tab.controls.measure.isEnabled()
    replayed(tab, qtbot)


def replayed(tab, qtbot):
    """The recording of the run shows the same table when it is opened."""
    before = tab.table.comparisons.rows
    tab.replay(next(iter(recordings())))
    qtbot.waitUntil(lambda: not tab._operations.running("probe"), timeout=20_000)
    assert tab.table.comparisons.rows == before


def recordings():
    from probes.recording import recordings_folder

    return recordings_folder().glob("*.jsonl")


def test_a_killed_child_is_said_and_its_recording_opens(tab, qtbot):
    press_measure(tab, qtbot)
    qtbot.waitUntil(lambda: tab.live.pid is not None, timeout=20_000)
    os.kill(tab.live.pid, signal.SIGKILL)
    wait_for_the_end(tab, qtbot)
    assert "killed by SIGKILL" in tab.status.text
    assert "out-of-memory killer" in tab.status.text
    recording = next(iter(recordings()))
    assert read_recording(recording).events[-1]["event"] == "outcome"
    tab.replay(recording)
    qtbot.waitUntil(lambda: not tab._operations.running("probe"), timeout=20_000)
    assert "killed by SIGKILL" in tab.status.text


def test_stop_ends_the_run(tab, qtbot):
    press_measure(tab, qtbot)
    qtbot.waitUntil(lambda: tab.live.pid is not None, timeout=20_000)
    child = psutil.Process(tab.live.pid)
    QTest.mouseClick(tab.controls.stop, Qt.MouseButton.LeftButton)
    wait_for_the_end(tab, qtbot)
    assert tab.measurement.outcome["kind"] == "stopped"
    assert tab.controls.measure.isEnabled()
    assert not child.is_running()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said_and_the_run_goes_on(tab, qtbot, monkeypatch, caplog):
    monkeypatch.setattr("probes.recording.file_name", lambda header: "/dev/full")
    press_measure(tab, qtbot)
    qtbot.waitUntil(lambda: "No space left" in tab.status.notes, timeout=20_000)
    assert tab.live.running
    tab.stop()
    wait_for_the_end(tab, qtbot)
    caplog.clear()


def test_missing_torch_is_said_with_the_remedy(tab, qtbot, monkeypatch):
    monkeypatch.setattr("probes.preflight.NEEDED", ("torch_of_another_world", "transformers"))
    QTest.mouseClick(tab.controls.measure, Qt.MouseButton.LeftButton)
    wait_for_the_end(tab, qtbot)
    assert "torch_of_another_world is not installed" in tab.status.text
    assert "pip install" in tab.status.text


def test_closing_the_window_ends_the_child(open_window, small, qtbot):
    window = open_window(small)
    tab = window.show_tab("probe")
    press_measure(tab, qtbot)
    qtbot.waitUntil(lambda: tab.live.pid is not None, timeout=20_000)
    child = psutil.Process(tab.live.pid)
    window.close()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_file_that_is_no_recording_is_said(tab, qtbot, tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text("{}\n")
    tab.replay(path)
    qtbot.waitUntil(lambda: "not a Highwater recording" in tab.status.text, timeout=10_000)


def test_faults_and_bad_controls_are_said_before_a_run(open_window, small):
    window = open_window(small)
    tab = window.show_tab("probe")
    tab.controls.layers.lineEdit().setText("0")
    tab.measure()
    assert "Layers: must be a whole number" in tab.status.text
    tab.controls.layers.lineEdit().setText("")
    window.context.state.edit("inference.batch", 0)
    tab.measure()
    assert "Not planned: inference.batch: must be at least 1" in tab.status.text
    assert not tab.live.running


def test_the_preview_follows_the_controls(tab, qtbot):
    def load():
        return next(row for row in tab.table.comparisons.rows if (row.phase, row.meter) == ("load", "allocated")).predicted_bytes

    whole = load()
    QTest.keyClicks(tab.controls.layers, "4")
    assert load() < whole


def test_the_plot_draws_only_while_it_can_be_seen(open_window, small, qtbot):
    window = open_window(small)
    tab = window.show_tab("probe")
    qtbot.waitUntil(lambda: tab.plot.frames_running)
    window.show_tab("footprint")
    assert not tab.plot.frames_running


def events():
    """A short run as a session tells it."""
    yield {"event": "hello", "t": 0.5, "device": {"type": "cuda", "index": 0, "name": "X", "total_bytes": 1000}}
    yield {"event": "phase", "t": 1.0, "name": "load", "state": "begin", "step": 0}
    yield {"event": "memory", "t": 1.5, "allocated": 90, "reserved": 100, "device": None, "phase": "load"}
    yield {"event": "phase", "t": 2.0, "name": "load", "state": "end", "step": 0, "allocated": 95, "reserved": 100, "device": 120}
    yield {"event": "phase", "t": 2.0, "name": "prefill", "state": "begin", "step": 0}
    yield {"event": "memory", "t": 3.0, "allocated": 150, "reserved": 160, "device": 180, "phase": "prefill"}


def test_a_missing_reading_is_a_gap_and_never_zero():
    run = Run()
    for event in events():
        run.take(event)
    device = run.samples.column(2)
    assert device[0] != device[0]
    assert device[1] == 180
    assert run.highest_bytes == 180
    assert run.phase == "prefill"


@pytest.fixture
def drawn(tab, qtbot):
    """The plot with the short run in it, beside a prediction."""
    run, plot = Run(), tab.plot
    qtbot.waitUntil(lambda: not plot.dirty and plot.isVisible())
    for event in events():
        run.take(event)
    plot.set_levels({"load": {"allocated": 100, "reserved": 100, "device": 100}}, None)
    plot.show_run(run)
    qtbot.waitUntil(lambda: not plot.dirty)
    return plot


def test_every_rank_has_a_line_and_its_peaks():
    """What another rank says comes as an event within an event."""
    prediction = {"gpus": [{"phases": [{"name": "load", "allocated": 100, "reserved": 100, "device": 100}]}]}
    run, measurement = Run(), Measurement({}, prediction)
    for event in events():
        for one in (event, {"event": "rank", "rank": 1, "t": event["t"], "of": event}):
            run.take(one)
            measurement.add(one)
    assert list(run.ranks) == [1]
    assert list(run.ranks[1].column(0)) == [90, 150]
    assert [(band.name, band.step) for band in run.bands] == [("load", 0), ("prefill", 0)]
    rows = [row for row in compare({}, measurement) if row.rank]
    assert (rows[0].phase, rows[0].meter, rows[0].predicted_bytes, rows[0].measured_bytes) == ("load", "device", 100, 120)
    assert round(rows[0].error, 6) == 0.2


def test_the_difference_to_the_prediction_is_shaded(drawn):
    """Of every phase that has ended: from the predicted level to the level that was reached."""
    (found,) = drawn.differences
    assert (found.begin_s, found.end_s, found.predicted_bytes, found.reached_bytes) == (1.0, 2.0, 100, 120)
    assert found.words == "+20.0 %"


def test_the_plot_zooms_with_keys_and_wheel_and_shows_all_again(drawn, qtbot):
    def span():
        low, high = drawn.zoom.x_range
        return high - low

    whole = span()
    drawn.widget.setFocus()
    QTest.keyClick(drawn.widget, Qt.Key.Key_Plus)
    assert span() == pytest.approx(0.8 * whole, rel=1e-6)
    assert drawn.zoom.button.isVisible()
    drawn.mark_dirty()
    qtbot.waitUntil(lambda: not drawn.dirty)
    assert span() == pytest.approx(0.8 * whole, rel=1e-6), "a new frame must not undo it"
    before = drawn.zoom.x_range
    QTest.keyClick(drawn.widget, Qt.Key.Key_Right)
    assert drawn.zoom.x_range[0] > before[0]
    QTest.mouseClick(drawn.zoom.button, Qt.MouseButton.LeftButton)
    assert span() == pytest.approx(whole)
    assert not drawn.zoom.button.isVisible()


def test_errors_are_signed_fractions_of_the_prediction():
    prediction = {"gpus": [{"phases": [{"name": "load", "allocated": 100, "reserved": 100, "device": 100}]}]}
    measurement = Measurement({}, prediction)
    for event in events():
        measurement.add(event)
    levels = {"load": {"allocated": 100, "reserved": 100, "device": 100}}
    rows = compare(levels, measurement)
    assert [round(row.error, 6) for row in rows[:3]] == [-0.05, 0.0, 0.2]
    assert rows[3].predicted_bytes != rows[3].predicted_bytes


def test_the_comparison_keeps_qt_s_rules(qtmodeltester):
    model = ComparisonModel()
    model.show_rows(compare({"load": {"allocated": 1, "reserved": 2, "device": 3}}, None))
    qtmodeltester.check(model)


def test_the_window_s_process_never_imports_torch(tab):
    assert not {"torch", "transformers"} & set(sys.modules)


@pytest.mark.parametrize("width", [1400, 1000])
def test_the_names_of_phases_and_meters_are_whole(open_window, qtbot, small, width):
    table = open_window(replace(small, task="training"), (width, 800)).show_tab("probe").table
    qtbot.waitUntil(lambda: table.comparisons.rowCount() > 0)
    assert "Optimizer" in [table.comparisons.index(row, 0).data() for row in range(table.comparisons.rowCount())]
    for column in (column for column in range(6) if not table.isColumnHidden(column)):
        assert table.comparisons.width_wanted(column) <= table.columnWidth(column)


@pytest.mark.parametrize("size", [(1000, 700), (1400, 900)])
def test_what_the_controls_hold_can_be_read(open_window, small, size):
    long = replace(small, inference=replace(small.inference, prompt_tokens=131_072, new_tokens=131_072))
    tab = open_window(long, size=size).show_tab("probe")
    for field in (tab.controls.layers, tab.controls.new_tokens, tab.controls.budget_gib):
        edit = field.lineEdit()
        assert edit.fontMetrics().horizontalAdvance(edit.placeholderText()) <= edit.contentsRect().width() - 4
    assert not tab.status._icon.pixmap().isNull()
