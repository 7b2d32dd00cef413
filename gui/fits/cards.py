"""The load of the plan on other cards, one, two, four and eight of each."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

from PySide6.QtCore import QModelIndex, Signal, Slot
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QAbstractItemView, QHeaderView, QWidget

from gui.cells import Cell, CellModel, CellTable, Column, dress
from gui.fits.answers import COUNTS, Answer, CardRow
from gui.theme import px, theme
from gui.translate import tr
from gui.units import format_bytes
from gui.words import word
from planner.words import VERDICTS

_ROW_HEIGHT, _NAMES, _WIDEST, _ROOM_FOR_MEMORY = 24, 420, 150, 600
MARKS = {"fits": ("✔", "fits"), "tight": ("▲", "tight"), "does_not_fit": ("✘", "over"), "unknown": ("?", "muted")}
"""A sign and a colour for each verdict: colour is never the only cue."""


class CardTable(CellTable):
    """``adopted`` with the answer of a cell on a double click or Return."""

    adopted = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        headings = [
            Column(tr("Card")),
            Column(tr("Memory"), figures=True),
            *(Column(f"{count} ×", figures=True) for count in COUNTS),
        ]
        self.cards = CellModel(headings, self)
        self._rows: Sequence[CardRow] = ()
        dress(self, self.cards, _ROW_HEIGHT)
        self.setAccessibleName(tr("What fits on which cards"))
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectItems)
        header = self.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        theme().changed.connect(self._share_out)
        self.activated.connect(self._adopt)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """The card's memory gives way where there is little room."""
        self.setColumnHidden(1, self.width() < px(_ROOM_FOR_MEMORY))
        self._share_out()
        super().resizeEvent(event)

    @Slot()
    def _share_out(self) -> None:
        """The names of the cards whole; what is left is shared by the figures, so that they stand near each other."""
        wanted = self.cards.width_wanted(0)
        figures = [column for column in range(1, self.cards.columnCount()) if not self.isColumnHidden(column)]
        room = (self.viewport().width() - wanted) // max(1, len(figures))
        for column in figures:
            least = self.cards.width_wanted(column)
            self.setColumnWidth(column, max(least, min(room, px(_WIDEST))))
        spare = self.viewport().width() - sum(self.columnWidth(column) for column in figures)
        self.setColumnWidth(0, min(spare, max(wanted, px(_NAMES))))

    def show_cards(self, rows: Sequence[CardRow], own: str) -> None:
        """Show ``rows``; ``own`` is the card of the plan."""
        self._rows = rows
        self.cards.show_cells([_cells(row, own) for row in rows])
        self._share_out()

    @Slot(QModelIndex)
    def _adopt(self, index: QModelIndex) -> None:
        count = index.column() - 2
        if count >= 0:
            self.adopted.emit(self._rows[index.row()].answers[count])


def _cells(row: CardRow, own: str) -> list[Cell]:
    memory = Cell(format_bytes(row.memory_bytes), row.memory_bytes, ink="muted")
    return [Cell(row.name, row.name, bold=row.name == own), memory, *(_cell(answer) for answer in row.answers)]


def _cell(answer: Answer) -> Cell:
    mark, ink = MARKS[answer.verdict]
    tip = f"{word(VERDICTS, answer.verdict).label}. {tr('Double-click to take it into the form.')}"
    if answer.share is None:
        return Cell(mark, nan, tr("Unknown: there is no closed form for this choice yet."), ink)
    if answer.refused:
        return Cell(mark, answer.share, tr("The engine refuses it.") + f" {tip}", ink)
    tip = tr("Peak of the fullest card: {} of its memory.").format(f"{answer.share:,.1%}".replace("%", " %")) + f" {tip}"
    share = f"{answer.share:.0%}".replace("%", " %") if answer.share < 10 else ">999 %"
    return Cell(f"{mark} {share}", answer.share, tip, ink)
