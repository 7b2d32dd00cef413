"""Proposals as a table; the one that is current is what Apply takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import QModelIndex, QSignalBlocker, Qt, Signal, Slot
from PySide6.QtGui import QKeyEvent, QResizeEvent
from PySide6.QtWidgets import QHeaderView, QTableView, QWidget

from gui.cells import Cell, CellModel, Column, dress
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
_WIDTHS = ((1, 96), (2, 96), (3, 104), (4, 300))
_NARROW_WIDTHS = ((1, 84), (3, 88), (4, 128))
_NARROW_BELOW = 680
_ROW_HEIGHT = 30
_INK = {"fits": "fits", "tight": "tight", "does_not_fit": "over"}


class AdviceTable(QTableView):
    """``chosen`` when a row becomes current, ``adopted`` when it is double-clicked or Enter is pressed on it."""

    chosen = Signal(object)
    adopted = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._advice: tuple[Advice, ...] = ()
        self.proposals = CellModel(_COLUMNS, self)
        dress(self, self.proposals, _ROW_HEIGHT)
        self.setAccessibleName(tr("Changes that take less memory"))
        header = self.horizontalHeader()
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        for column, width in _WIDTHS:
            self.setColumnWidth(column, width)
        self.selectionModel().currentRowChanged.connect(self._moved)
        self.doubleClicked.connect(self._double_clicked)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Where there is little room, what the plan then takes is left out: it is what is saved less."""
        narrow = self.width() < _NARROW_BELOW
        self.setColumnHidden(2, narrow)
        for column, width in _NARROW_WIDTHS if narrow else _WIDTHS:
            self.setColumnWidth(column, width)
        super().resizeEvent(event)

    def show_advice(self, advice: tuple[Advice, ...]) -> None:
        """Show these, the first one chosen."""
        self._advice = advice
        with QSignalBlocker(self):
            self.proposals.show_cells([_cells(one) for one in advice])
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
    named = word(VERDICTS, advice.verdict)
    return [
        Cell(advice.title, advice.title, advice.title, bold=advice.verdict != "does_not_fit"),
        Cell(f"−{format_bytes(advice.saving_bytes)}", advice.saving_bytes, f"{advice.saving_bytes:,} bytes"),
        Cell(format_bytes(advice.device_bytes), advice.device_bytes, f"{advice.device_bytes:,} bytes", "muted"),
        Cell(named.label, advice.verdict, named.meaning, _INK.get(advice.verdict, "muted")),
        Cell(advice.cost, advice.cost, "\n".join(filter(None, (advice.cost, advice.because))), "muted"),
    ]
