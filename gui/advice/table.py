"""Proposals as a table; the one that is current is what Apply takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import QModelIndex, QSignalBlocker, Qt, Signal, Slot
from PySide6.QtGui import QKeyEvent, QResizeEvent
from PySide6.QtWidgets import QHeaderView, QWidget

from gui.cells import LINE, PADDING, Cell, CellModel, CellTable, Column, dress
from gui.fits.cards import MARKS
from gui.text import width_of, wrapped
from gui.theme import px, theme
from gui.translate import tr
from gui.units import format_bytes
from gui.words import word
from planner.words import VERDICTS

if TYPE_CHECKING:
    from planner.advise import Advice

_COLUMNS = (
    Column("Change"),
    Column("Saves", figures=True),
    Column("Then takes", figures=True),
    Column("Then"),
    Column("What it costs"),
)
_FIGURES = (1, 2, 3)
_LEAST_CHANGE = 110
_ROW_HEIGHT = 30


class AdviceTable(CellTable):
    """``chosen`` when a row becomes current, ``adopted`` when it is double-clicked or Enter is pressed on it."""

    chosen = Signal(object)
    adopted = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._advice: tuple[Advice, ...] = ()
        self.proposals = CellModel(_COLUMNS, self)
        dress(self, self.proposals, _ROW_HEIGHT)
        self.setAccessibleName(tr("Changes that take less memory"))
        self.horizontalHeader().setSectionResizeMode(4, QHeaderView.ResizeMode.Stretch)
        self.selectionModel().currentRowChanged.connect(self._moved)
        self.doubleClicked.connect(self._double_clicked)
        theme().changed.connect(self._share_out)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Share the room out anew."""
        self._share_out()
        super().resizeEvent(event)

    @Slot()
    def _share_out(self) -> None:
        """Everything whole; with little room without what the plan then takes (what is saved less), then in several lines."""
        wanted = {column: self.proposals.width_wanted(column) for column in range(len(_COLUMNS))}
        width, needed = self.viewport().width(), sum(wanted.values())
        self.setColumnHidden(2, needed > width)
        left = width
        for column in _FIGURES:
            self.setColumnWidth(column, wanted[column])
            left -= 0 if self.isColumnHidden(column) else wanted[column]
        shared = left * wanted[0] // (wanted[0] + wanted[4])
        least = min(max(px(_LEAST_CHANGE), self._longest_word()), left // 2)
        self.setColumnWidth(0, min(wanted[0], max(least, shared)) if wanted[0] + wanted[4] > left else wanted[0])
        for row in range(len(self._advice)):
            self.setRowHeight(row, px(_ROW_HEIGHT + LINE * (self._lines(row) - 1)))
        self.hug()

    def _longest_word(self) -> int:
        """Pixels in which no word of a change is cut."""
        words = {word: one.verdict != "does_not_fit" for one in self._advice for word in one.title.split(" ")}
        return round(max((width_of(word, bold=bold, tabular=True) for word, bold in words.items()), default=0)) + 2 * PADDING + 1

    def _lines(self, row: int) -> int:
        """How many lines the longest text of a row takes."""
        cells = [(self.proposals.cell(row, column), self.columnWidth(column) - 2 * PADDING) for column in (0, 4)]
        return max(len(wrapped(cell.text, room, bold=cell.bold, tabular=True)) for cell, room in cells)

    def show_advice(self, advice: tuple[Advice, ...]) -> None:
        """Show these, the first one chosen."""
        self._advice = advice
        with QSignalBlocker(self):
            self.proposals.show_cells([_cells(one) for one in advice])
            self._share_out()
            if advice:
                self.setCurrentIndex(self.proposals.index(0, 0))
        self.chosen.emit(advice[0] if advice else None)

    def current(self) -> Advice | None:
        """The proposal that is chosen."""
        row = self.currentIndex().row()
        return self._advice[row] if 0 <= row < len(self._advice) else None

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Enter adopts."""
        advice = self.current()
        if advice is not None and event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            self.adopted.emit(advice)
        else:
            super().keyPressEvent(event)

    @Slot(QModelIndex, QModelIndex)
    def _moved(self, _current: QModelIndex, _previous: QModelIndex) -> None:
        self.chosen.emit(self.current())

    @Slot(QModelIndex)
    def _double_clicked(self, _index: QModelIndex) -> None:
        self.adopted.emit(self.current())


def _cells(advice: Advice) -> list[Cell]:
    named, (mark, ink) = word(VERDICTS, advice.verdict), MARKS[advice.verdict]
    return [
        Cell(advice.title, advice.title, advice.title, bold=advice.verdict != "does_not_fit"),
        Cell(f"−{format_bytes(advice.gain_bytes)}", advice.gain_bytes, _gain_words(advice)),
        Cell(format_bytes(advice.device_bytes), advice.device_bytes, f"{advice.device_bytes:,} bytes", "muted"),
        Cell(f"{mark} {named.label}", advice.verdict, named.meaning, ink),
        Cell(advice.cost, advice.cost, "\n".join(filter(None, (advice.cost, advice.because))), "muted"),
    ]


def _gain_words(advice: Advice) -> str:
    if advice.gain_bytes == advice.saving_bytes:
        return tr("{} bytes").format(f"{advice.gain_bytes:,}")
    return tr("{} bytes, which the server gives to its cache").format(f"{advice.gain_bytes:,}")
