from __future__ import annotations

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication

from gui.actions import Act
from gui.compare.difference import differing_inputs, figures
from gui.compare.table import DifferenceTable
from gui.pins import MOST


@pytest.fixture
def tab(window):
    found = window.show_tab("compare")
    QApplication.processEvents()
    return found


def rows(tab):
    model = tab.table.differences
    return {model.cell(row, 0).raw: [model.cell(row, column).raw for column in range(1, model.columnCount())]
            for row in range(model.rowCount())}  # fmt: skip


def pin(window):
    window.action(Act.PIN).trigger()


def test_a_plan_alone_says_how_to_go_on(tab):
    assert tab.hint.isVisible()
    assert [card.isVisible() for card in tab.cards] == [True] + MOST * [False]
    assert "kv_cache" in rows(tab)


def test_what_a_change_does_stands_beside_the_pinned_plan(tab, window):
    pin(window)
    window.context.state.edit("inference.batch", 4)
    found = rows(tab)
    assert found["inference.batch"] == [4, 1]
    assert found["kv_cache"][0] == 4 * found["kv_cache"][1]
    assert "weights" in found
    assert "inference.prompt_tokens" not in found
    model = tab.table.differences
    cell = model.cell(list(found).index("kv_cache"), 2)
    assert "(−" in cell.text
    assert not tab.bars.segment_rectangle("kv_cache", "prefill").isEmpty()
    assert not tab.hint.isVisible()


def test_only_so_many_can_be_pinned_and_they_can_be_removed(tab, window):
    for batch in range(1, MOST + 2):
        window.context.state.edit("inference.batch", batch)
        pin(window)
    assert "remove one" in window.statusBar().currentMessage()
    assert len(window.context.pins.pins) == MOST
    QTest.mouseClick(tab.cards[1].remove, Qt.MouseButton.LeftButton)
    assert len(window.context.pins.pins) == MOST - 1
    assert not tab.cards[MOST].isVisible()


def test_a_pinned_plan_is_renamed_and_opened(tab, window):
    pin(window)
    window.context.state.edit("inference.batch", 32)
    card = tab.cards[1]
    card.name.setFocus()
    card.name.selectAll()
    QTest.keyClicks(card.name, "as it was")
    QTest.keyClick(card.name, Qt.Key.Key_Return)
    assert window.context.pins.pins[0].name == "as it was"
    assert tab.table.differences.columns[2].heading == "as it was"
    QTest.mouseClick(card.open, Qt.MouseButton.LeftButton)
    assert window.context.state.scenario.inference.batch == 1
    window.context.state.undo_stack.undo()
    assert window.context.state.scenario.inference.batch == 32


def test_a_click_on_the_first_bar_opens_why(tab, window):
    at = tab.bars.segment_rectangle("kv_cache", "prefill").center().toPoint()
    QTest.mouseClick(tab.bars, Qt.MouseButton.LeftButton, pos=at)
    assert window.why.text().startswith("KV cache")


def test_tasks_compare_with_what_both_have(tab, window):
    pin(window)
    window.context.state.edit("task", "training")
    found = rows(tab)
    assert found["task"] == ["training", "inference"]
    assert found["inference.batch"] == ["–", 1]
    assert found["optimizer_state"][1] == 0


def test_figures_are_held_against_the_first(window):
    first = window.context.state.footprint
    window.context.state.edit("inference.batch", 2)
    second = window.context.state.footprint
    cache = next(figure for figure in figures([first, second]) if figure.name == "kv_cache")
    assert cache.differences == (0, cache.sizes[0])
    assert [one.path for one in differing_inputs([first, second])] == ["inference.batch"]
    assert differing_inputs([first, first]) == ()


def test_the_differences_keep_qt_s_rules(window, qtmodeltester):
    table = DifferenceTable(window)
    table.show_plans(["a"], [window.context.state.footprint])
    qtmodeltester.check(table.differences)


@pytest.mark.parametrize("width", [1400, 1000])
def test_what_a_change_does_is_not_cut(open_window, width):
    window = open_window(size=(width, 700))
    tab = window.show_tab("compare")
    for batch in (4, 16):
        pin(window)
        window.context.state.edit("inference.batch", batch)
    QApplication.processEvents()
    model = tab.table.differences
    assert model.columnCount() == 4
    for at in range(1, 4):
        assert model.figures_width(at) <= tab.table.columnWidth(at)
    shown = next(model.cell(row, 2).text for row in range(model.rowCount()) if model.cell(row, 0).raw == "kv_cache")
    assert shown.startswith("−") == (width == 1000)


def test_three_pins_are_whole_in_the_smallest_window(open_window):
    window = open_window(size=(1000, 700))
    tab = window.show_tab("compare")
    for batch in (4, 16, 64):
        pin(window)
        window.context.state.edit("inference.batch", batch)
    QApplication.processEvents()
    assert len({card.width() for card in tab.cards}) <= 2, "all heads are of one width, to the pixel that is left over"
    for card in tab.cards[1:]:
        for part in (card.name, card.open, card.remove):
            assert card.rect().contains(part.geometry())
            assert part.width() >= part.minimumSizeHint().width()
    assert tab.cards[0].text.startswith("Does not fit"), "told whole to a screen reader"
    assert " GiB" in tab.cards[0]._words.shown
    assert tab.cards[3].name.shown.endswith("(3)")


def test_another_task_is_compared_without_what_was_left_as_it_is(tab, window):
    pin(window)
    window.context.state.edit("task", "training")
    found = rows(tab)
    assert "training.lora.rank" not in found
    assert "training.loss" not in found
    assert "training.optimizer" in found
    window.context.state.edit("training.loss", "chunked")
    assert rows(tab)["training.loss"][0] == "chunked"
    model = tab.table.differences
    assert model.cell(list(rows(tab)).index("training.loss"), 0).text == "Loss"
