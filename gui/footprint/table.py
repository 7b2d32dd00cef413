"""The components of one phase as a sortable table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import QEvent, QModelIndex, QRect, Qt, Signal, Slot
from PySide6.QtGui import QPainter, QPaintEvent, QResizeEvent
from PySide6.QtWidgets import QAbstractItemView, QHeaderView, QWidget

from gui.cells import PADDING, Cell, CellModel, CellTable, Column, dress
from gui.text import wrapped, write
from gui.theme import px, theme
from gui.translate import tr
from gui.units import format_bytes
from gui.words import word
from planner.footprint import COMPONENTS as ORDER
from planner.footprint import HOST, Phase, Term
from planner.words import CERTAINTIES, COMPONENTS, Word

_SURENESS = ("", "exact", "measured", "derived", "modelled")
_COLUMNS = (
    Column("Component"), Column("Size", figures=True), Column("Share", figures=True), Column("Certainty"), Column("Formula"),
)  # fmt: skip
_NO_CLOSED_FORM = (
    "There is no closed form for this choice yet, so no phase is sized. Rehearse in the Probe tab runs the model itself on fake "
    "tensors and shows what it takes."
)
_NOT_YET = Word("", "Being worked out")
_LINE = 18
_LEAST_SHARE = 0.0005
_ROOM_FOR_FORMULA, _ROW_HEIGHT = 560, 28
_WIDE = ((0, 150), (1, 96), (2, 72), (3, 90))
_NARROW = ((1, 84), (2, 64), (3, 80))


@dataclass(frozen=True, slots=True)
class Line:
    """One component of a phase. ``share`` is of the phase's device figure; ``certainty`` the least of its terms'."""

    component: str
    size_bytes: int
    share: float
    certainty: str
    formula: str


Reason = tuple[str, str]
"""Certainty and formula of a component."""
_TO_COME: Reason = ("", "")


def lines_of(phase: Phase, reasons: Mapping[str, Reason]) -> tuple[Line, ...]:
    """The components of ``phase`` that take memory, in the order of the vocabulary; ``reasons`` by component."""
    present = [(name, phase.components[name]) for name in ORDER if phase.components.get(name, 0) > 0]
    whole = max(phase.device, 1)
    return tuple(Line(name, size, size / whole, *reasons.get(name, _TO_COME)) for name, size in present)


def reasons_of(phase: Phase, terms: Sequence[Term], gpu: int = 0) -> dict[str, Reason]:
    """How sure each component of ``phase`` is on a GPU or on the host, and its formula."""
    found: dict[str, list[Term]] = {name: [] for name in phase.components}
    for term in terms:
        if term.gpu == HOST if gpu == HOST else term.tells_of(phase.name, gpu):
            found.setdefault(term.component, []).append(term)
    return {name: (_certainty(mine), _formula(mine)) for name, mine in found.items()}


def _certainty(terms: list[Term]) -> str:
    return max((term.certainty for term in terms), key=_SURENESS.index, default="modelled")


def _formula(terms: list[Term]) -> str:
    """The largest term; where there are more, how many they are first: the end is what is cut."""
    largest = max(terms, key=lambda term: term.bytes, default=None)
    if largest is None:
        return ""
    return tr("Σ {}: {} …").format(len(terms), largest.formula) if len(terms) > 1 else largest.formula


class ComponentModel(CellModel):
    """Lines as rows, sorted by Python's own comparison: Qt's would read sizes beyond 31 bits as 32-bit numbers."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(_COLUMNS, parent)
        self._lines: tuple[Line, ...] = ()
        self._column, self._descending = 1, True

    def show_lines(self, lines: tuple[Line, ...]) -> None:
        """Show ``lines`` in the order asked for last."""
        self._lines = tuple(sorted(lines, key=self._key, reverse=self._descending))
        self.show_cells([_cells(line) for line in self._lines])

    def sort(self, column: int, order: Qt.SortOrder = Qt.SortOrder.AscendingOrder) -> None:
        """Sort by the raw values of a column, now and from now on."""
        self._column, self._descending = column, order == Qt.SortOrder.DescendingOrder
        self.show_lines(self._lines)

    def line(self, row: int) -> Line:
        """The line of a row."""
        return self._lines[row]

    def row_of(self, component: str | None) -> int:
        """The row of a component, -1 when it has none."""
        return next((row for row, line in enumerate(self._lines) if line.component == component), -1)

    def _key(self, line: Line) -> Any:
        sure = _SURENESS.index(line.certainty)
        return (ORDER.index(line.component), line.size_bytes, line.share, sure, line.formula)[self._column]


class ComponentTable(CellTable):
    """The table with its sorting; a row that becomes current is picked."""

    picked = Signal(str)
    hovered = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.components = ComponentModel(self)
        self._when_empty = ""
        dress(self, self.components, _ROW_HEIGHT)
        self.setAccessibleName(tr("Components of the phase"))
        self.setSortingEnabled(True)
        self.sortByColumn(1, Qt.SortOrder.DescendingOrder)
        self.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setMouseTracking(True)
        self.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        self.horizontalHeader().setMinimumSectionSize(60)
        self.selectionModel().currentRowChanged.connect(self._moved)
        self.entered.connect(self._entered)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """The formula is shown where there is room for it; the why panel has it anyway."""
        narrow = self.width() < px(_ROOM_FOR_FORMULA)
        self.setColumnHidden(4, narrow)
        header = self.horizontalHeader()
        header.setSectionResizeMode(4, QHeaderView.ResizeMode.Stretch)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch if narrow else QHeaderView.ResizeMode.Interactive)
        for column, width in _NARROW if narrow else _WIDE:
            self.setColumnWidth(column, px(width))
        super().resizeEvent(event)

    def say_when_empty(self, text: str) -> None:
        """Say this where there are no rows, instead of what helps a plan without a closed form."""
        if text != self._when_empty:
            self._when_empty = text
            self.viewport().update()

    def choose(self, component: str | None) -> None:
        """Mark the row of a component without picking it."""
        row = self.components.row_of(component)
        blocked = self.blockSignals(True)
        if row < 0:
            self.clearSelection()
        elif row != self.currentIndex().row() or not self.selectionModel().hasSelection():
            self.setCurrentIndex(self.components.index(row, 0))
        self.blockSignals(blocked)

    def paintEvent(self, event: QPaintEvent) -> None:
        """Where no phase could be sized, say what helps."""
        super().paintEvent(event)
        if self.components.rowCount():
            return
        painter = QPainter(self.viewport())
        for number, line in enumerate(wrapped(self._when_empty or tr(_NO_CLOSED_FORM), self.viewport().width() - 4 * PADDING)):
            room = QRect(2 * PADDING, 2 * PADDING + number * _LINE, self.viewport().width() - 4 * PADDING, _LINE)
            write(painter, room, line, theme().colour("muted"))
        painter.end()

    def leaveEvent(self, event: QEvent) -> None:
        """The mouse points at no row any more."""
        self.hovered.emit(None)
        super().leaveEvent(event)

    @Slot(QModelIndex, QModelIndex)
    def _moved(self, current: QModelIndex, _previous: QModelIndex) -> None:
        if current.isValid():
            self.picked.emit(self.components.line(current.row()).component)

    @Slot(QModelIndex)
    def _entered(self, index: QModelIndex) -> None:
        self.hovered.emit(self.components.line(index.row()).component)


def _percent(share: float) -> str:
    """A share that takes memory is never shown as none."""
    return "< 0.1 %" if 0 < share < _LEAST_SHARE else f"{share:.1%}".replace("%", " %")


def _cells(line: Line) -> list[Cell]:
    named, sure = word(COMPONENTS, line.component), word(CERTAINTIES, line.certainty) if line.certainty else _NOT_YET
    return [
        Cell(named.label, line.component, named.meaning, swatch=line.component),
        Cell(format_bytes(line.size_bytes), line.size_bytes, tr("{} bytes").format(f"{line.size_bytes:,}")),
        Cell(_percent(line.share), line.share, named.meaning, "muted"),
        Cell(sure.label, line.certainty, sure.meaning, "muted"),
        Cell(line.formula, line.formula, line.formula, "muted"),
    ]
