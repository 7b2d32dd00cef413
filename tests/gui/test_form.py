from __future__ import annotations

import pytest
from PySide6.QtCore import QPoint, Qt
from PySide6.QtTest import QTest

from gui.examples import EXAMPLES
from gui.form.fields import FIELDS
from gui.form.generic import NumbersField, TextField, all_leaves, editor_of
from gui.form.numbers import read_count
from planner.scenario import ModelPath, parse_scenario, to_json
from resources.catalog import model_ids
from resources.gpus import gpu_names

_CTRL_SHIFT = Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.ShiftModifier


def type_into(field, text):
    field.editor.setFocus()
    field.editor.selectAll()
    QTest.keyClicks(field.editor, text)


def kv_cache(window):
    decode = window.context.state.footprint.gpus[0].phases[-1]
    return decode.components["kv_cache"]


def test_the_first_start_shows_a_plan_and_not_an_empty_form(window):
    footprint = window.show_tab("footprint")
    assert window.form.fields["model"].editor.value() == "meta-llama/Llama-3.1-8B"
    assert footprint.verdict.text.startswith("Fits · ")
    assert footprint.table.components.rowCount() >= 4
    assert "weights: parameters" in window.why.text()


def test_typing_a_batch_changes_the_plan_at_once(window):
    before = kv_cache(window)
    type_into(window.form.fields["inference.batch"], "4")
    assert window.context.state.scenario.inference.batch == 4
    assert kv_cache(window) == 4 * before


def test_a_suffix_is_understood_and_written_out_when_the_field_is_left(window, qtbot):
    field = window.form.fields["inference.prompt_tokens"]
    type_into(field, "4k")
    assert window.context.state.scenario.inference.prompt_tokens == 4096
    QTest.keyClick(field.editor, Qt.Key.Key_Return)
    assert field.editor.lineEdit().text() == "4096"


def test_an_emptied_field_goes_back_to_the_default_and_shows_it(window):
    field = window.form.fields["inference.prompt_tokens"]
    type_into(field, "100")
    field.editor.selectAll()
    QTest.keyClick(field.editor, Qt.Key.Key_Delete)
    assert window.context.state.scenario.inference.prompt_tokens is None
    assert field.editor.lineEdit().placeholderText() == "7936  (default)"


def test_a_fault_stands_at_its_field_and_the_last_good_plan_stays(window):
    state, tab = window.context.state, window.show_tab("footprint")
    shown = tab.verdict.text
    field = window.form.fields["inference.batch"]
    type_into(field, "0")
    assert field.fault == "must be at least 1, got 0"
    assert not state.current
    assert tab.verdict.text == shown
    assert tab.verdict.dimmed
    type_into(field, "2")
    assert field.fault == ""
    assert not tab.verdict.dimmed


def test_letters_cannot_be_typed_into_a_number(window):
    type_into(window.form.fields["inference.batch"], "x7y")
    assert window.context.state.scenario.inference.batch == 7


def test_the_arrows_step_batches_by_one_and_tokens_by_doubling(window):
    batch, tokens = (window.form.fields[f"inference.{name}"].editor for name in ("batch", "prompt_tokens"))
    batch.setFocus()
    QTest.keyClick(batch, Qt.Key.Key_Up)
    tokens.setFocus()
    QTest.keyClick(tokens, Qt.Key.Key_Up)
    QTest.keyClick(tokens, Qt.Key.Key_Up)
    scenario = window.context.state.scenario
    assert (scenario.inference.batch, scenario.inference.prompt_tokens) == (2, 4 * 7936)


def test_typing_is_one_step_to_undo_and_ctrl_z_in_the_field_undoes_the_scenario(window, qtbot):
    state, field = window.context.state, window.form.fields["inference.batch"]
    window.activateWindow()
    qtbot.waitActive(window)
    type_into(field, "123")
    assert state.undo_stack.count() == 1
    QTest.keyClick(field.editor, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    assert state.scenario.inference.batch == 1
    assert field.editor.value() == 1
    QTest.keyClick(field.editor, Qt.Key.Key_Z, _CTRL_SHIFT)
    assert field.editor.value() == 123


def test_what_was_typed_before_return_or_picked_from_a_list_is_a_step_of_its_own(window):
    state, field = window.context.state, window.form.fields["inference.batch"]
    for number in ("4", "16"):
        type_into(field, number)
        QTest.keyClick(field.editor, Qt.Key.Key_Return)
    state.undo_stack.undo()
    assert state.scenario.inference.batch == 4
    gpu = window.form.fields["hardware.gpu"].editor
    for name in ("L4", "L40S"):
        gpu._take(name)
    state.undo_stack.undo()
    assert state.scenario.hardware.gpu == "L4"


@pytest.mark.parametrize("path", ["inference.batch", "inference.engine"])
def test_the_wheel_scrolls_the_form_and_changes_no_value_under_the_mouse(open_window, qtbot, path):
    """As the window system sends it: before it arrives, Qt gives the focus to what takes it by the wheel."""
    window = open_window(size=(1000, 700))
    form, before = window.form, window.context.state.scenario
    form._fold.click()
    field = form.fields[path].editor
    form.verticalScrollBar().setValue(0)
    at = field.mapTo(window, field.rect().center())
    qtbot.waitUntil(lambda: form.verticalScrollBar().maximum() > 0)
    QTest.wheelEvent(window.windowHandle(), at, QPoint(0, -120))
    qtbot.waitUntil(lambda: form.verticalScrollBar().value() > 0)
    assert window.context.state.scenario == before


def test_going_through_tasks_loses_nothing_and_each_has_its_fields(window):
    form, state = window.form, window.context.state
    type_into(form.fields["inference.batch"], "3")
    state.edit("task", "training")
    assert form.fields["training.optimizer"].isVisible()
    assert not form.fields["inference.batch"].isVisible()
    state.edit("task", "inference")
    assert form.fields["inference.batch"].editor.value() == 3


def test_a_model_is_found_by_words_and_picked_with_the_keyboard(window, qtbot):
    editor = window.form.fields["model"].editor
    editor.setFocus()
    editor.selectAll()
    QTest.keyClicks(editor, "mistral 7b")
    popup = editor._completer.popup()
    qtbot.waitUntil(popup.isVisible)
    QTest.keyClick(popup, Qt.Key.Key_Down)
    picked = popup.currentIndex().data()
    QTest.keyClick(popup, Qt.Key.Key_Return)
    assert "mistral" in picked.lower()
    assert window.context.state.scenario.model == picked


def test_an_unknown_model_is_said_at_the_field(window, qtbot):
    field = window.form.fields["model"]
    type_into(field, "no such model")
    QTest.keyClick(field.editor, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: field.fault != "", timeout=10_000)
    assert "no such model" in field.fault
    assert window.context.state.plan is not None


def test_a_missing_path_is_said_at_the_field(window, qtbot, tmp_path):
    field = window.form.fields["model"]
    type_into(field, str(tmp_path / "gone"))
    QTest.keyClick(field.editor, Qt.Key.Key_Return)
    assert isinstance(window.context.state.scenario.model, ModelPath)
    qtbot.waitUntil(lambda: "does not exist" in field.fault, timeout=10_000)


def test_an_unknown_gpu_is_said_at_the_field(window):
    field = window.form.fields["hardware.gpu"]
    type_into(field, "GeForce 9999")
    QTest.keyClick(field.editor, Qt.Key.Key_Return)
    assert "GeForce 9999" in field.fault


def test_the_folded_fields_unfold(window):
    field = window.form.fields["inference.attention"]
    assert not field.isVisible()
    window.form._fold.click()
    assert field.isVisible()


@pytest.mark.parametrize(
    ("text", "value"),
    [("", None), ("8192", 8192), ("8,192", 8192), ("8k", 8192), ("8 K", 8192), ("1m", 2**20), ("k", "k"), ("0", 0)],
)
def test_counts_are_read_as_people_write_them(text, value):
    assert read_count(text) == value


def test_adapters_have_fields_only_where_some_are_trained(window):
    form, state = window.form, window.context.state
    state.edit("task", "training")
    assert not form.fields["training.lora.rank"].isVisible()
    state.edit("training.method", "lora")
    assert form.fields["training.lora.rank"].isVisible()
    type_into(form.fields["training.lora.rank"], "32")
    type_into(form.fields["training.lora.targets"], "q_proj, o_proj")
    assert (state.scenario.training.lora.rank, state.scenario.training.lora.targets) == (32, ("q_proj", "o_proj"))


@pytest.fixture
def modules(window):
    """The list of modules, open."""
    state = window.context.state
    state.edit("task", "training")
    state.edit("training.method", "lora")
    editor = window.form.fields["training.lora.targets"].editor
    QTest.keyClick(editor, Qt.Key.Key_Down)
    yield editor.list
    editor.list.close()


def test_the_modules_of_adapters_are_ticked_in_a_list_of_what_the_model_has(window, modules):
    names = [modules.rows.item(row).data(Qt.ItemDataRole.UserRole) for row in range(modules.rows.count())]
    assert names == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert modules.ticked == ("q_proj", "v_proj")
    assert "1024 × 4096, 32 of them" in modules.rows.item(1).text()
    modules.rows.item(1).setCheckState(Qt.CheckState.Checked)
    state = window.context.state
    assert state.scenario.training.lora.targets == ("q_proj", "k_proj", "v_proj")
    QTest.mouseClick(modules.presets["mlp"], Qt.MouseButton.LeftButton)
    assert state.scenario.training.lora.targets == ("gate_proj", "up_proj", "down_proj")
    QTest.mouseClick(modules.presets["all-linear"], Qt.MouseButton.LeftButton)
    assert state.scenario.training.lora.targets == ("all-linear",)
    assert set(modules.ticked) == set(names)
    for _ in range(3):
        state.undo_stack.undo()
    assert state.scenario.training.lora.targets == ("q_proj", "v_proj")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("ia3", "training.lora.targets"),
        ("freeze", "training.trainable"),
        ("prompt", "training.virtual_tokens"),
        ("dora", "training.lora.rank"),
    ],
)
def test_each_method_brings_its_own_field(window, method, path):
    window.context.state.edit("task", "training")
    field = window.form.fields[path]
    assert not field.isVisible()
    window.context.state.edit("training.method", method)
    assert field.isVisible()


def test_options_of_an_engine_are_typed_under_its_own_names(window):
    window.form._fold.click()
    window.context.state.edit("inference.engine", "vllm")
    field = window.form.fields["inference.engine_options"]
    type_into(field, "gpu_memory_utilization=0.8, enforce_eager=true")
    assert window.context.state.scenario.inference.engine_options == {"gpu_memory_utilization": 0.8, "enforce_eager": True}
    assert not field.fault
    type_into(field, "gpu_memory_use=0.8")
    assert "gpu_memory_use" in field.fault


NOT_IN_THE_FORM = {"inference.speculation.draft", "inference.embedder.config"}
"""A whole config inside the config."""


def test_every_choice_of_a_scenario_can_be_made_in_the_form():
    """Those that the table of fields does not name get a field by their type."""
    assert set(all_leaves()) - {spec.path for spec in FIELDS} <= NOT_IN_THE_FORM
    made = {annotation: editor_of(annotation) for annotation in ("int | None", "float", "bool", "str", "tuple[int, ...]")}
    assert all(made.values())
    assert editor_of("Model") is None


def test_numbers_and_words_of_such_fields_are_read_as_they_are_typed(qtbot):
    numbers, word = NumbersField(), TextField()
    numbers.setText("512, 2k, x")
    assert numbers.value() == (512, 2048, "x")
    numbers.set_value((1, 2))
    assert numbers.text() == "1, 2"
    word.setText(" packed ")
    assert word.value() == "packed"
    word.set_value(None)
    assert word.value() is None


def test_parallelism_and_shares_are_typed(window):
    form, state = window.form, window.context.state
    form._fold.click()
    type_into(form.fields["hardware.gpus"], "8")
    type_into(form.fields["parallel.tensor"], "4")
    type_into(form.fields["offload.weights"], "0.5")
    scenario = state.scenario
    assert (scenario.hardware.gpus, scenario.parallel.tensor, scenario.offload.weights) == (8, 4, 0.5)
    type_into(form.fields["offload.weights"], "1.5")
    assert form.fields["offload.weights"].fault


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_is_a_sound_scenario_of_a_bundled_model(example):
    assert parse_scenario(to_json(example.scenario)) == example.scenario
    assert example.scenario.model in model_ids()
    assert example.scenario.hardware.gpu in gpu_names()


def test_what_is_folded_away_and_set_is_counted(window):
    form, state = window.form, window.context.state
    assert form._fold.text() == "Advanced"
    state.edit("parallel.pipeline", 2)
    state.edit("hardware.nodes", 2)
    assert form._fold.text() == "Advanced · 2 set"
    state.undo_stack.undo()
    assert form._fold.text() == "Advanced · 1 set"


def test_labels_are_read_whole_and_a_choice_that_is_too_long_says_so(window):
    """A text that is cut at its end is noticed by nobody who does not know what it says."""
    for field in window.form.fields.values():
        needed = field.label.fontMetrics().horizontalAdvance(field.label.text().replace("&", ""))
        assert field.spec.wide or needed <= field.label.width(), field.spec.path
    window.context.state.edit("task", "training")
    window.context.state.edit("training.optimizer", "paged_adamw_32bit")
    shown = window.form.fields["training.optimizer"].editor.shown
    assert shown == "paged_adamw_32bit" or (shown.startswith("pag") and "…" in shown and shown.endswith("bit"))
    window.context.state.edit("training.optimizer", "sgd")
    assert window.form.fields["training.optimizer"].editor.shown == "sgd"
