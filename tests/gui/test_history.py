from __future__ import annotations

import json
from dataclasses import replace

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QFileDialog

from gui.actions import Act
from gui.history.table import RunModel, RunTable
from planner.scenario import to_json
from resources.history import History, Run

GIB = 2**30


@pytest.fixture
def runs(home, small):
    """Three runs, the scenario of the first known."""
    history = History()
    result = {"scenario": to_json(small)}
    first = Run("measure", "HuggingFaceTB/SmolLM2-135M", "inference", "transformers", "H100 SXM5 80GB", "CPU", "completed", "fits",
                3.0, "prefill", 110, 120, 130, 100, 130, "", "2026-01-01T10:00:00+00:00", result=result)  # fmt: skip
    later = replace(first, model="Qwen/Qwen3-8B", level="rehearse", allocated_bytes=16 * GIB, predicted_allocated_bytes=16 * GIB,
                    created="2026-01-02T10:00:00+00:00")  # fmt: skip
    last = replace(
        later, outcome="out_of_memory", allocated_bytes=None, created="2026-01-03T10:00:00+00:00", result={"scenario": 5}
    )
    for run in (first, later, last):
        history.add(run)
    return history


@pytest.fixture
def tab(window, runs, qtbot):
    found = window.show_tab("history")
    qtbot.waitUntil(lambda: found.table.runs.rowCount() == 3)
    return found


def click(tab, name):
    QTest.mouseClick(tab.buttons[name], Qt.MouseButton.LeftButton)


def column(tab, number):
    return [tab.table.runs.cell(row, number).raw for row in range(tab.table.runs.rowCount())]


def test_without_runs_it_says_how_there_will_be_some(window, qtbot):
    tab = window.show_tab("history")
    qtbot.waitUntil(lambda: "No run yet" in tab.note.text())
    assert not tab.buttons["open"].isEnabled()


def test_the_latest_run_stands_first_and_errors_are_signed(tab):
    assert column(tab, 0)[0].startswith("2026-01-03")
    assert tab.table.runs.cell(2, 7).text == "+10.0 %"
    assert tab.table.runs.cell(0, 6).text == "N/A"


def test_words_filter(tab, qtbot):
    QTest.keyClicks(tab.filter, "qwen memory")
    qtbot.waitUntil(lambda: tab.table.runs.rowCount() == 1)
    tab.filter.clear()
    QTest.keyClicks(tab.filter, "nothing like that")
    qtbot.waitUntil(lambda: "every word" in tab.note.text())


def test_columns_sort_as_numbers_with_what_is_not_known_at_one_end(tab):
    tab.table.sortByColumn(6, Qt.SortOrder.AscendingOrder)
    assert column(tab, 6)[1:] == [110, 16 * GIB]
    tab.table.sortByColumn(6, Qt.SortOrder.DescendingOrder)
    assert column(tab, 6)[:2] == [16 * GIB, 110]


def test_a_run_is_reopened(tab, window, small, qtbot):
    tab.table.selectRow(2)
    click(tab, "open")
    qtbot.waitUntil(lambda: window.context.state.scenario == small)
    window.context.state.undo_stack.undo()
    assert window.context.state.scenario != small


def test_a_run_whose_scenario_cannot_be_read_is_said(tab, qtbot):
    tab.table.selectRow(0)
    click(tab, "open")
    qtbot.waitUntil(lambda: "can't be read" in tab.note.text())


def test_a_run_is_compared(tab, window, qtbot):
    tab.table.selectRow(2)
    click(tab, "pin")
    qtbot.waitUntil(lambda: len(window.context.pins.pins) == 1)
    assert window.context.pins.pins[0].name == "SmolLM2-135M"


def test_a_recording_that_is_gone_is_said(tab, runs, qtbot, tmp_path):
    runs.add(Run("measure", "x/y", recording=str(tmp_path / "gone.jsonl")))
    tab.refresh()
    qtbot.waitUntil(lambda: tab.table.runs.rowCount() == 4)
    tab.table.selectRow(0)
    click(tab, "replay")
    assert "is gone" in tab.note.text()


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_runs_are_exported(tab, qtbot, tmp_path, monkeypatch, suffix):
    path = tmp_path / f"runs.{suffix}"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(path), ""))
    tab.table.selectRow(1)
    click(tab, "export")
    qtbot.waitUntil(path.exists)
    qtbot.waitUntil(lambda: "Saved" in tab.window().statusBar().currentMessage())
    text = path.read_text()
    assert "Qwen/Qwen3-8B" in text
    assert len(text.splitlines()) == 2 if suffix == "csv" else len(json.loads(text)["runs"]) == 1


def test_runs_are_forgotten(tab, runs, qtbot):
    tab.table.selectAll()
    click(tab, "delete")
    qtbot.waitUntil(lambda: tab.table.runs.rowCount() == 0)
    assert runs.runs() == []


def test_a_broken_database_is_set_aside_and_said(window, home, qtbot):
    home.mkdir(exist_ok=True)
    (home / "history.sqlite").write_bytes(b"no database at all" * 100)
    tab = window.show_tab("history")
    qtbot.waitUntil(lambda: "set aside" in tab.note.text())
    assert len(list(home.glob("history*"))) >= 1


def test_the_runs_keep_qt_s_rules(qtmodeltester, runs):
    model = RunModel()
    model.show_runs(runs.runs())
    qtmodeltester.check(model)


def test_chosen_runs_are_tagged_and_found_by_their_tags(tab, qtbot, runs):
    assert not tab.tags.isEnabled()
    assert tab.table.isColumnHidden(9)
    tab.table.selectRow(0)
    QTest.keyClicks(tab.tags, "night run")
    QTest.keyClick(tab.tags, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: column(tab, 9).count("night run") == 1)
    assert not tab.table.isColumnHidden(9)
    tab.filter.setText("night")
    qtbot.waitUntil(lambda: tab.table.runs.rowCount() == 1)
    assert [run.tags for run in runs.runs("night")] == ["night run"]


def test_a_plan_is_kept_without_a_run_and_opened_again(window, tab, qtbot):
    window.context.state.edit("inference.batch", 3)
    window.action(Act.KEEP).trigger()
    qtbot.waitUntil(lambda: "predict" in column(tab, 2))
    row = column(tab, 2).index("predict")
    kept = tab.table.runs.run(row)
    peak = window.context.state.footprint.fullest.peak
    assert (kept.predicted_allocated_bytes, kept.allocated_bytes, kept.outcome) == (peak.allocated, None, "kept")
    window.context.state.edit("inference.batch", 9)
    tab.table.selectRow(row)
    click(tab, "open")
    qtbot.waitUntil(lambda: window.context.state.scenario.inference.batch == 3)


def test_no_button_is_cut_in_the_smallest_window(open_window, qtbot):
    tab = open_window(size=(1000, 700)).show_tab("history")
    qtbot.wait(50)
    for button in tab.buttons.values():
        assert button.fontMetrics().horizontalAdvance(button.text().replace("&", "")) <= button.width() - 12, button.text()


def test_choosing_thousands_of_runs_does_not_go_through_them_with_every_repaint(qtbot, monkeypatch):
    """Qt's header asks row by row whether a column is selected as a whole; it must have nothing to ask."""
    table = RunTable()
    qtbot.addWidget(table)
    run = Run("measure", "Qwen/Qwen3-8B", "inference", "transformers", created="2026-01-01T10:00:00+00:00")
    table.runs.show_runs([replace(run, id=number) for number in range(5000)])
    table.resize(900, 500)
    table.show()
    qtbot.waitExposed(table)
    asked = []
    monkeypatch.setattr(RunModel, "columnCount", lambda self, *_: asked.append(1) or len(self.columns))
    for rows in (lambda: table.selectAll(), lambda: [table.selectRow(row) for row in (0, 4999)]):
        asked.clear()
        rows()
        table.viewport().repaint()
        table.horizontalHeader().repaint()
        assert len(asked) < 1000
    table.selectAll()
    assert len(table.selected()) == 5000


def test_the_columns_follow_the_size_of_texts(open_window, runs, qtbot):
    window = open_window()
    window._zoom(150)
    tab = window.show_tab("history")
    qtbot.waitUntil(lambda: tab.table.runs.rowCount() == 3)
    shown = [column for column in range(tab.table.runs.columnCount()) if not tab.table.isColumnHidden(column)]
    assert sum(tab.table.columnWidth(column) for column in shown) <= tab.table.viewport().width()
    assert all(tab.table.columnWidth(column) >= tab.table.runs.width_wanted(column) for column in shown if column not in (1, 4))
    window._zoom(100)
