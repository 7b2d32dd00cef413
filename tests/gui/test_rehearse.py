from __future__ import annotations

import numpy as np
import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest

from gui.probe.plot import matched
from gui.probe.rehearsed import ask_rehearsal, rehearsed_of
from gui.probe.run import Band
from planner.scenario import Hardware, InlineConfig, Scenario, Training
from planner.units import GIB, MIB
from probes.recording import Recording
from probes.rehearsal import Rehearsal
from resources.plan import make_plan

RUN_MS = 240_000
TINY = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
    "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
TRAINING = Scenario(InlineConfig(TINY), "training", training=Training(batch=1, sequence=16), hardware=Hardware("H100 SXM5 80GB"))
STRINGS = ["weights", "activations", "load", "prefill", "", "empty_strided", "model.layers.1.mlp", "mm"]


def phase(name, state):
    return {"event": "phase", "t": 1.0, "name": name, "state": state, "step": 0, "micro": 0}


def rehearsal_events(kind="completed"):
    """A rehearsal as a session tells it: 16 MiB of weights, then 12 MiB for a moment, then 6 MiB."""
    yield {"event": "hello", "t": 0.1, "versions": {"torch": "2.13.0"}, "device": {"type": "cpu", "total_bytes": 5}}
    yield phase("load", "begin")
    batch = [["p", 2, "begin", 0], ["a", 0, 16 * MIB, 0, 4, 5], ["p", 2, "end", 0]]
    yield {"event": "storage", "t": 1.0, "strings": STRINGS, "batch": batch}
    yield phase("load", "end")
    yield phase("prefill", "begin")
    batch = [["p", 3, "begin", 0], ["a", 1, 12 * MIB, 1, 6, 7], ["f", 1], ["a", 2, 6 * MIB, 1, 6, 7], ["p", 3, "end", 0]]
    yield {"event": "storage", "t": 1.0, "strings": [], "batch": batch}
    yield phase("prefill", "end")
    yield {"event": "outcome", "t": 2.1, "kind": kind, "after_s": 2.1, "text": "The run completed in 2.1 s."}


def folded(scenario):
    asked = ask_rehearsal(make_plan(scenario), "card", None, None)
    rehearsal = Rehearsal(asked.order, asked.prediction.to_json())
    for event in rehearsal_events():
        rehearsal.add(event)
    return rehearsal


@pytest.fixture
def recording(home, small):
    asked = ask_rehearsal(make_plan(small), "card", None, None)
    header = {"scenario": asked.order["scenario"], "order": asked.order, "prediction": asked.prediction.to_json()}
    with Recording(header, home / "rehearsal.jsonl") as recorded:
        for event in rehearsal_events():
            recorded.append(event)
    return recorded.path


@pytest.fixture
def tab(open_window, small):
    return open_window(small).show_tab("probe")


def until_ended(tab, qtbot):
    qtbot.waitUntil(lambda: not tab.live.running and not tab._operations.running("probe"), timeout=RUN_MS)


def rows_of(tab):
    return {(row.phase, row.meter): row for row in tab.table.comparisons.rows}


def test_the_course_of_a_rehearsal_is_told_by_phase(small):
    shown = rehearsed_of(folded(small))
    assert [stretch.phase for stretch in shown.course] == ["load", "prefill"]
    prefill = shown.course[1]
    assert prefill.share[0] == 0
    assert prefill.share[-1] <= 1
    assert np.all(np.diff(prefill.share) >= 0)
    assert prefill.meters["allocated"].max() == 28 * MIB == shown.meters["prefill"]["allocated"]
    assert np.all(prefill.meters["reserved"] >= prefill.meters["allocated"])
    assert shown.highest is shown.peak_of("prefill")


def test_the_second_pass_through_a_phase_lies_over_the_second_band(small):
    load, prefill = rehearsed_of(folded(small)).course
    bands = [Band(name, step, 0.0, 1.0) for name, step in (("prefill", 0), ("load", 0), ("decode", 0), ("prefill", 1))]
    assert matched(bands, [load, prefill, prefill]) == [(bands[0], prefill), (bands[1], load), (bands[3], prefill)]


def test_a_recorded_rehearsal_opens_with_its_peaks(tab, qtbot, recording):
    tab.replay(recording)
    until_ended(tab, qtbot)
    row = rows_of(tab)["prefill", "allocated"]
    assert row.rehearsed_bytes == 28 * MIB
    assert row.error == pytest.approx(28 * MIB / row.predicted_bytes - 1)
    assert "no GPU was used" in tab.status.text
    why = tab.window().why.text()
    assert why.startswith("Prefill, rehearsed peak\n28.0 MiB\nat prefill of model.layers.1.mlp: mm\n")
    tab.plot._frame()
    assert np.nanmax(tab.plot._course["allocated"].y) == 28 * MIB


def test_a_row_of_the_table_opens_the_peak_of_its_phase(tab, qtbot, recording):
    tab.replay(recording)
    until_ended(tab, qtbot)
    index = tab.table.comparisons.index(0, 0)
    QTest.mouseClick(tab.table.viewport(), Qt.MouseButton.LeftButton, pos=tab.table.visualRect(index).center())
    assert tab.window().why.text().startswith("Load, rehearsed peak")
    tab.window().context.state.edit("inference.batch", 2)
    assert "rehearsed" not in tab.window().why.text()


def test_another_tab_is_about_the_plan_again(tab, qtbot, recording):
    tab.replay(recording)
    until_ended(tab, qtbot)
    window = tab.window()
    assert "rehearsed peak" in window.why.text()
    window.show_tab("advice")
    assert "rehearsed peak" not in window.why.text()
    assert window.why.text().startswith("CUDA context")


def test_the_plan_s_card_can_be_rehearsed_but_not_measured_here(tab):
    tab.controls.device.set_value(tab.controls.CARD)
    assert "H100 SXM5 80GB" in tab.controls.device.currentText()
    tab.measure()
    assert "not in this machine" in tab.status.text
    assert not tab.live.running


def test_stop_ends_a_rehearsal(tab, qtbot):
    QTest.mouseClick(tab.controls.rehearse, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: tab.live.pid is not None, timeout=20_000)
    assert not tab.controls.measure.isEnabled()
    QTest.mouseClick(tab.controls.stop, Qt.MouseButton.LeftButton)
    until_ended(tab, qtbot)
    assert tab.rehearsed.outcome["kind"] == "stopped"
    assert tab.status.text.startswith("Stopped ")
    assert tab.controls.rehearse.isEnabled()


@pytest.mark.slow
def test_training_is_edited_rehearsed_and_measured_and_the_three_agree(open_window, qtbot):
    window = open_window(TRAINING)
    window.form._fold.click()
    for path, text in (("training.batch", "2"), ("training.sequence", "32"), ("training.gradient_accumulation", "2")):
        editor = window.form.fields[path].editor
        editor.setFocus()
        editor.selectAll()
        QTest.keyClicks(editor, text)
    for path, value in (("training.optimizer", "adamw_foreach"), ("training.checkpointing", "full")):
        editor = window.form.fields[path].editor
        editor.setCurrentIndex(editor.findData(value))
        editor.activated.emit(editor.currentIndex())
    training = window.context.state.settled.training
    assert (training.batch, training.sequence, training.gradient_accumulation) == (2, 32, 2)
    assert (training.optimizer, training.checkpointing) == ("adamw_foreach", "full")
    tab = window.show_tab("probe")
    for button in (tab.controls.rehearse, tab.controls.measure):
        QTest.mouseClick(button, Qt.MouseButton.LeftButton)
        until_ended(tab, qtbot)
    assert tab.rehearsed.outcome["kind"] == tab.measurement.outcome["kind"] == "completed", tab.status.text
    for name in ("load", "forward", "backward", "optimizer"):
        row = rows_of(tab)[name, "allocated"]
        assert row.rehearsed_bytes == pytest.approx(row.measured_bytes, rel=0.05), name
    assert {peak.phase for peak in tab.rehearsed.peaks} == {"load", "forward", "backward", "optimizer"}


def test_the_capacity_of_the_card_can_be_set_by_hand(window):
    window.form._fold.click()
    field = window.form.fields["hardware.capacity_bytes"]
    assert field.editor.lineEdit().placeholderText() == "79.19  (default)"
    field.editor.setFocus()
    QTest.keyClicks(field.editor, "17.5")
    footprint = window.context.state.footprint
    assert footprint.gpus[0].capacity_bytes == int(17.5 * GIB)
    assert footprint.verdict == "does_not_fit"
    QTest.keyClick(field.editor, Qt.Key.Key_Up)
    assert window.context.state.scenario.hardware.capacity_bytes == 19 * GIB


@pytest.mark.parametrize(("path", "value"), [("inference.kv_cache", "fp8"), ("weights", "nvfp4")])
def test_what_has_no_closed_form_shows_the_weights_and_the_way_on(window, path, value):
    window.context.state.edit(path, value)
    assert window.context.state.footprint.verdict == "unknown"
    tab = window.show_tab("footprint")
    assert tab.verdict.text.startswith("Unknown")
    assert not tab.bars.segment_rectangle("weights", "").isEmpty()
    tab.table.grab()
    QTest.mouseClick(tab.bars, Qt.MouseButton.LeftButton, pos=tab.bars.segment_rectangle("weights", "").center().toPoint())
    assert window.why.text().startswith("No closed form")
