"""What large and small windows do with their room."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gui.cells import LEAST_HEIGHT
from gui.first import FIRST_SCENARIO
from gui.form.layers import LayerStrip
from gui.text import width_of

SMALLEST, LARGEST = (1000, 700), (3840, 2160)


@pytest.mark.parametrize("name", ["footprint", "fits", "advice", "compare", "probe"])
def test_no_table_is_an_empty_sheet_in_a_large_window(open_window, qtbot, name):
    window = open_window(size=LARGEST)
    table = window.show_tab(name).table
    qtbot.waitUntil(lambda: table.model().rowCount() > 0 and window.context.operations.idle, timeout=20_000)
    rows = table.verticalHeader().length
    qtbot.waitUntil(lambda: rows() <= table.viewport().height() <= max(rows(), LEAST_HEIGHT))


def test_the_map_fills_its_card(open_window, qtbot):
    window = open_window(size=LARGEST)
    tab = window.show_tab("fits")
    qtbot.waitUntil(lambda: tab.settled, timeout=20_000)
    heat_map = tab.heat_map
    assert heat_map._cell_size()[1] * len(heat_map._map.batches) > heat_map.height() - 80


def test_figures_stand_near_the_names_of_their_rows(open_window, qtbot):
    window = open_window(size=LARGEST)
    tab = window.show_tab("fits")
    qtbot.waitUntil(lambda: tab.settled, timeout=20_000)
    assert tab.table.columnViewportPosition(1) < 500
    compare = window.show_tab("compare").table
    assert compare.columnViewportPosition(1) + compare.columnWidth(1) < 800


def test_cards_and_questions_are_read_whole_in_the_smallest_window(open_window, qtbot):
    window = open_window(size=SMALLEST)
    tab = window.show_tab("fits")
    qtbot.waitUntil(lambda: tab.settled, timeout=20_000)
    longest = max((tab.table.cards.cell(row, 0) for row in range(5)), key=lambda cell: len(cell.text))
    assert width_of(longest.text, bold=longest.bold, tabular=True) + 16 <= tab.table.columnWidth(0)
    *pairs, last = (answer.width() for answer in tab.answers)
    assert max(pairs) - min(pairs) <= 1
    assert last > sum(pairs[:2])
    assert all("…" not in answer._question.shown for answer in tab.answers)


def test_a_kind_of_layers_is_told_whole(open_window, qtbot):
    window = open_window(size=SMALLEST)
    window.context.state.edit("model", "Qwen/Qwen3-30B-A3B")
    strip = window.form.findChild(LayerStrip)
    told = " ".join(line for _, _, line in strip._lines(strip.width()))
    assert told == " ".join(kind.text for kind in strip.kinds)
    assert "768" in told
    qtbot.waitUntil(lambda: strip.height() >= strip.heightForWidth(strip.width()))
    assert strip.tip_at(20, strip.height() - 2) == strip.kinds[-1].text


def test_a_session_begins_with_every_kind_of_layers_in_sight(open_window, qtbot):
    window = open_window(replace(FIRST_SCENARIO, model="deepseek-ai/DeepSeek-V3"))
    strip = window.form.findChild(LayerStrip)
    assert len(strip.kinds) == 3
    qtbot.waitUntil(lambda: strip.height() == strip.heightForWidth(strip.width()))


def test_form_and_why_are_wider_in_a_very_wide_window(open_window):
    usual, wide = open_window(), open_window(size=LARGEST)
    assert wide.why.width() > usual.why.width()
    assert wide.form.width() > usual.form.width()
