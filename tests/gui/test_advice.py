"""The Advice tab as a person uses it: read the proposals, apply one, undo it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QAbstractItemModelTester

from gui.cells import PADDING
from gui.text import width_of, wrapped
from planner.scenario import Hardware, Scenario, Training

TOO_LARGE = Scenario(
    "meta-llama/Llama-3.1-8B", "training", training=Training(batch=4, sequence=4096), hardware=Hardware("A100 SXM4 80GB")
)


@pytest.fixture
def advised(open_window, qtbot):
    window = open_window(TOO_LARGE)
    tab = window.show_tab("advice")
    qtbot.waitUntil(lambda: tab.table.current() is not None and tab.apply.isEnabled())
    return window, tab


def test_the_cheapest_change_that_fits_stands_first(advised) -> None:
    _, tab = advised
    QAbstractItemModelTester(tab.table.proposals)
    first = tab.table.current()
    assert first.verdict in ("fits", "tight")
    assert first.title in tab.headline.text()
    assert tab.table.proposals.index(0, 0).data() == first.title


def test_apply_takes_it_into_the_plan_and_undo_brings_the_plan_back(advised, qtbot) -> None:
    window, tab = advised
    first = tab.table.current()
    qtbot.mouseClick(tab.apply, Qt.MouseButton.LeftButton)
    assert window.context.state.footprint.verdict == first.verdict
    qtbot.waitUntil(lambda: tab.apply.isEnabled() or tab.table.current() is None)
    qtbot.keyClick(window, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    assert window.context.state.footprint.verdict == "does_not_fit"


def test_enter_adopts_the_row_that_is_current(advised, qtbot) -> None:
    window, tab = advised
    tab.table.setFocus()
    qtbot.keyClick(tab.table, Qt.Key.Key_Down)
    chosen = tab.table.current()
    qtbot.keyClick(tab.table, Qt.Key.Key_Return)
    assert window.context.state.settled == chosen.scenario


def test_nothing_can_be_applied_to_a_plan_that_is_not_sound(advised) -> None:
    window, tab = advised
    window.context.state.open(replace(TOO_LARGE, training=replace(TOO_LARGE.training, batch=0)), "a batch of none")
    assert not tab.apply.isEnabled()


@pytest.mark.parametrize("width", [1400, 1000])
def test_no_change_is_cut(open_window, qtbot, width) -> None:
    window = open_window(TOO_LARGE, (width, 800))
    tab = window.show_tab("advice")
    qtbot.waitUntil(lambda: tab.table.current() is not None)
    table = tab.table
    for row in range(table.proposals.rowCount()):
        lines = (table.rowHeight(row) - 14) // 16
        for column in (column for column in range(5) if not table.isColumnHidden(column)):
            cell = table.proposals.cell(row, column)
            room = table.columnWidth(column) - 2 * PADDING
            assert len(wrapped(cell.text, room, bold=cell.bold, tabular=True)) <= lines, cell.text
            assert lines > 1 or width_of(cell.text, bold=cell.bold, tabular=True) <= room, cell.text


def test_a_row_is_as_high_as_its_own_words_need(open_window, qtbot):
    tab = open_window(TOO_LARGE, size=(1000, 700)).show_tab("advice")
    qtbot.waitUntil(lambda: tab.table.proposals.rowCount() > 4, timeout=20_000)
    rows = range(tab.table.proposals.rowCount())
    heights = {tab.table.proposals.cell(row, 0).text: tab.table.rowHeight(row) for row in rows}
    assert len(set(heights.values())) > 1
    assert min(heights.values()) < 40
    assert all(tab.table.proposals.cell(row, 3).text[0] in "✔▲✘" for row in rows)
