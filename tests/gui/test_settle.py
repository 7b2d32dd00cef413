from __future__ import annotations

import pytest
from PySide6.QtCore import QEvent, QObject
from PySide6.QtWidgets import QApplication


class Painted(QObject):
    """How often a widget is painted."""

    def __init__(self, widget):
        super().__init__(widget)
        self.times = 0
        widget.installEventFilter(self)

    def eventFilter(self, _widget, event):
        self.times += event.type() == QEvent.Type.Paint
        return False


def let_go():
    """Everything that an edit has caused, but nothing that waits for a while."""
    for _ in range(4):
        QApplication.processEvents()


@pytest.mark.parametrize("name", ["footprint", "compare"])
def test_an_edit_that_adds_rows_paints_the_table_once(window, qtbot, name):
    """Scroll bars, columns and heights all follow before the first repaint."""
    tab, state = window.show_tab(name), window.context.state
    state.edit("task", "training")
    for method in ("lora", "qlora", "full", "lora"):
        qtbot.waitUntil(lambda: not state.settling and window.context.operations.idle, timeout=20_000)
        let_go()
        painted = Painted(tab.table.viewport())
        state.edit("training.method", method)
        while not painted.times:
            QApplication.processEvents()
        state.close()  # the formulas, which come a moment later, are not of the edit
        let_go()
        assert painted.times == 1
        state.predict_anew()


def test_a_change_inside_a_tab_lays_no_other_part_of_the_window_out(window, qtbot):
    state = window.context.state
    window.show_tab("compare")
    state.edit("task", "training")
    qtbot.waitUntil(lambda: not state.settling and window.context.operations.idle, timeout=20_000)
    let_go()
    bar = Painted(window.tabs.tabBar())
    state.edit("training.method", "qlora")
    let_go()
    assert bar.times == 0


def test_the_form_is_as_high_as_its_fields_after_any_edit(window):
    state, body = window.context.state, window.form.fields["task"].parentWidget().parentWidget()
    for task in ("training", "inference", "training"):
        state.edit("task", task)
        assert body.layout().isEnabled()
        assert body.height() == max(window.form.viewport().height(), body.heightForWidth(body.width()))
