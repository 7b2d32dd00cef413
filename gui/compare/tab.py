"""The Compare tab: the plan in the form beside those that were pinned."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from PySide6.QtCore import Slot
from PySide6.QtGui import QResizeEvent, QShowEvent
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QVBoxLayout, QWidget

from gui.cells import TABLE_STRETCH
from gui.compare.card import PlanCard
from gui.compare.difference import peak_of
from gui.compare.table import DifferenceTable
from gui.export import ChartMenu, TableMenu
from gui.footprint.all_bars import room_in
from gui.footprint.bars import Bars
from gui.footprint.legend import Legend
from gui.footprint.rows import Row
from gui.pins import MOST, Pin
from gui.settle import settle
from gui.state import Selection
from gui.theme import set_role
from gui.translate import tr
from gui.units import units
from planner.footprint import COMPONENTS

if TYPE_CHECKING:
    from gui.context import Context
    from planner.footprint import Footprint

_LABEL_WIDTH = 150


class CompareTab(QWidget):
    """Cards, bars, differences."""

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._state, self._pins = context.state, context.pins
        self.cards = [PlanCard(pinned=index > 0) for index in range(MOST + 1)]
        self.bars = Bars(label_width=_LABEL_WIDTH)
        self.table = DifferenceTable()
        self._legend = Legend()
        self.hint = QLabel(wordWrap=True)
        self._lay_out()
        self._connect()

    def _lay_out(self) -> None:
        self.bars.setAccessibleName(tr("Memory of each plan at its peak"))
        set_role(self.hint, "muted")
        heads, self._chart = QHBoxLayout(), QFrame()
        heads.setSpacing(10)
        for one in self.cards:
            heads.addWidget(one, 1)
        set_role(self._chart, "card")
        chart = QVBoxLayout(self._chart)
        chart.setContentsMargins(8, 10, 12, 8)
        chart.addWidget(self.bars)
        chart.addWidget(self._legend)
        column = QVBoxLayout(self)
        column.setContentsMargins(12, 12, 12, 12)
        column.setSpacing(10)
        column.addLayout(heads)
        column.addWidget(self.hint)
        column.addWidget(self._chart)
        column.addWidget(self.table, TABLE_STRETCH)
        column.addStretch(1)
        ChartMenu(self.bars)
        TableMenu(self.table, self.table.differences)

    def _connect(self) -> None:
        for index, card in enumerate(self.cards[1:]):
            card.renamed.connect(partial(self._pins.rename, index))
            card.opened.connect(partial(self._open, index))
            card.removed.connect(partial(self._pins.remove, index))
        for signal in (self._state.plan_changed, self._state.faults_changed, self._pins.changed, units().changed):
            signal.connect(self._show)
        self.bars.picked.connect(self._pick)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """A high window has thicker bars."""
        super().resizeEvent(event)
        self.bars.set_room(*room_in(self.height()))

    def showEvent(self, event: QShowEvent) -> None:
        """Plan what was pinned before, and catch up."""
        super().showEvent(event)
        self._pins.load()
        self._show()

    @Slot()
    def _show(self) -> None:
        plan = self._state.plan
        if plan is None or not self.isVisible():
            self.hint.setText(self._state.trouble)
            for card in self.cards if plan is None else ():
                card.hide()
            return
        shown = [Pin(tr("In the form"), plan), *self._pins.pins]
        for index, card in enumerate(self.cards):
            card.setVisible(index < len(shown))
            if index < len(shown):
                card.show_plan(shown[index].name, shown[index].plan)
        alone = len(shown) == 1
        self.hint.setText(tr("Pin this plan (Ctrl+D), change the form, and see here what the change does.") if alone else "")
        self.hint.setVisible(alone)
        rows = tuple(_row(index, pin.name, pin.plan.footprint) for index, pin in enumerate(shown))
        self.bars.show_rows(rows)
        present = {name for row in rows for name, _ in row.parts}
        self._legend.show_components(tuple(name for name in COMPONENTS if name in present))
        self.table.show_plans([pin.name for pin in shown], [pin.plan.footprint for pin in shown])
        settle(self, self._chart)

    def _open(self, index: int) -> None:
        pin = self._pins.pins[index]
        self._state.open(pin.plan.scenario, tr("open {}").format(pin.name))

    @Slot(object)
    def _pick(self, selection: object) -> None:
        """Only the plan in the form has a why; the other bars are marked all the same."""
        self.bars.set_chosen(selection)
        if isinstance(selection, Selection) and selection.gpu == 0:
            self._state.select(replace(selection, gpu=None))


def _row(index: int, name: str, footprint: Footprint) -> Row:
    """One plan as a bar: the fullest GPU at its peak, or the weights alone where nothing could be sized."""
    peak = peak_of(footprint)
    fullest = footprint.fullest or next(iter(footprint.gpus), None)
    capacity = fullest.capacity_bytes if fullest else None
    if peak is None:
        weights = footprint.weight_bytes or 0
        return Row(index, "", name, (("weights", weights),) if weights else (), weights, capacity, peak=False)
    parts = tuple((part, peak.components[part]) for part in COMPONENTS if peak.components.get(part, 0) > 0)
    return Row(index, peak.name, name, parts, peak.device, capacity, peak=index == 0)
