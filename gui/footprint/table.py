"""The components of one phase as a sortable table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from PySide6.QtCore import QAbstractTableModel, QEvent, QModelIndex, QPersistentModelIndex, QSortFilterProxyModel, Qt, Signal, Slot
from PySide6.QtGui import QColor, QIcon, QPainter, QPixmap, QResizeEvent
from PySide6.QtWidgets import QAbstractItemView, QHeaderView, QTableView, QWidget

from gui.painting import paint_component
from gui.theme import font, theme
from gui.words import CERTAINTIES, COMPONENTS, word
from planner.footprint import COMPONENTS as ORDER
from planner.footprint import Phase, Term
from planner.units import format_bytes

_NO_PARENT = QModelIndex()
_SURENESS = ("exact", "measured", "derived", "modelled")
_ROOM_FOR_FORMULA = 560
_WIDE = ((0, 150), (1, 96), (2, 72), (3, 90))
_NARROW = ((1, 84), (2, 64), (3, 80))
Index = QModelIndex | QPersistentModelIndex


@dataclass(frozen=True, slots=True)
class Line:
    """One component of a phase. ``share`` is of the phase's device figure; ``certainty`` the least of its terms'."""

    component: str
    size_bytes: int
    share: float
    certainty: str
    formula: str


def lines_of(phase: Phase, terms: tuple[Term, ...]) -> tuple[Line, ...]:
    """The components of ``phase`` that take memory, in the order of the vocabulary."""
    present = [(name, phase.components[name]) for name in ORDER if phase.components.get(name, 0) > 0]
    return tuple(_line(name, size, phase, terms) for name, size in present)


def _line(component: str, size_bytes: int, phase: Phase, terms: tuple[Term, ...]) -> Line:
    mine = [term for term in terms if term.component == component and term.phase in (None, phase.name)]
    certainty = max((term.certainty for term in mine), key=_SURENESS.index, default="modelled")
    return Line(component, size_bytes, size_bytes / max(phase.device, 1), certainty, _formula(mine))


def _formula(terms: list[Term]) -> str:
    """The largest term, and how many more there are."""
    largest = max(terms, key=lambda term: term.bytes, default=None)
    if largest is None:
        return ""
    return f"{largest.formula}   + {len(terms) - 1} more" if len(terms) > 1 else largest.formula


class ComponentModel(QAbstractTableModel):
    """Text in ``DisplayRole``, the raw number in ``UserRole``."""

    HEADERS = ("Component", "Size", "Share", "Certainty", "Formula")

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._lines: tuple[Line, ...] = ()

    def show_lines(self, lines: tuple[Line, ...]) -> None:
        """Show ``lines``; rows stay in place when the components are the same."""
        same = [line.component for line in lines] == [line.component for line in self._lines]
        if not same:
            self.beginResetModel()
            self._lines = lines
            self.endResetModel()
        elif lines:
            self._lines = lines
            self.dataChanged.emit(self.index(0, 0), self.index(len(lines) - 1, len(self.HEADERS) - 1))

    def line(self, row: int) -> Line:
        """The line of a row."""
        return self._lines[row]

    def row_of(self, component: str | None) -> int:
        """The row of a component, -1 when it has none."""
        return next((row for row, line in enumerate(self._lines) if line.component == component), -1)

    def rowCount(self, parent: Index = _NO_PARENT) -> int:
        """One row per component."""
        return 0 if parent.isValid() else len(self._lines)

    def columnCount(self, parent: Index = _NO_PARENT) -> int:
        """Component, size, share, certainty, formula."""
        return 0 if parent.isValid() else len(self.HEADERS)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Column titles."""
        if orientation != Qt.Orientation.Horizontal or not 0 <= section < len(self.HEADERS):
            return None
        if role == Qt.ItemDataRole.DisplayRole:
            return self.HEADERS[section]
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return _alignment(section)
        return None

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """A cell in one of its roles."""
        if not index.isValid() or not 0 <= index.row() < len(self._lines):
            return None
        line, column = self._lines[index.row()], index.column()
        reader = _ROLES.get(Qt.ItemDataRole(role))
        return reader(line, column) if reader else None


class NumberSort(QSortFilterProxyModel):
    """Sorts by Python's own comparison: Qt's would read a size beyond 31 bits beside a smaller one as a 32-bit number."""

    def lessThan(self, left: Index, right: Index) -> bool:
        """Whether the raw number of ``left`` is less."""
        return bool(left.data(self.sortRole()) < right.data(self.sortRole()))


class ComponentTable(QTableView):
    """The table with its sorting; a row that becomes current is picked."""

    picked = Signal(str)
    hovered = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.components = ComponentModel(self)
        self._sorted = NumberSort(self)
        self._sorted.setSourceModel(self.components)
        self._sorted.setSortRole(Qt.ItemDataRole.UserRole)
        self.setModel(self._sorted)
        self._dress()
        self.selectionModel().currentRowChanged.connect(self._moved)
        self.entered.connect(self._entered)
        theme().changed.connect(self._restyle)

    def _dress(self) -> None:
        self.setAccessibleName("Components of the phase")
        self.setFont(font(tabular=True))
        self.setShowGrid(False)
        self.setSortingEnabled(True)
        self.sortByColumn(1, Qt.SortOrder.DescendingOrder)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setTabKeyNavigation(False)
        self.setMouseTracking(True)
        self.setWordWrap(False)
        self.verticalHeader().hide()
        self.verticalHeader().setDefaultSectionSize(28)
        header = self.horizontalHeader()
        header.setHighlightSections(False)
        header.setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        header.setMinimumSectionSize(60)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """The formula is shown where there is room for it; the why panel has it anyway."""
        narrow = self.width() < _ROOM_FOR_FORMULA
        self.setColumnHidden(4, narrow)
        header = self.horizontalHeader()
        header.setSectionResizeMode(4, QHeaderView.ResizeMode.Stretch)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch if narrow else QHeaderView.ResizeMode.Interactive)
        for column, width in _NARROW if narrow else _WIDE:
            self.setColumnWidth(column, width)
        super().resizeEvent(event)

    def choose(self, component: str | None) -> None:
        """Mark the row of a component without picking it."""
        row = self.components.row_of(component)
        blocked = self.blockSignals(True)  # noqa: FBT003  Qt's own signature
        if row < 0:
            self.clearSelection()
        else:
            self.setCurrentIndex(self._sorted.mapFromSource(self.components.index(row, 0)))
        self.blockSignals(blocked)

    def leaveEvent(self, event: QEvent) -> None:
        """The mouse points at no row any more."""
        self.hovered.emit(None)
        super().leaveEvent(event)

    @Slot(QModelIndex, QModelIndex)
    def _moved(self, current: QModelIndex, _previous: QModelIndex) -> None:
        if current.isValid():
            self.picked.emit(self.components.line(self._sorted.mapToSource(current).row()).component)

    @Slot(QModelIndex)
    def _entered(self, index: QModelIndex) -> None:
        self.hovered.emit(self.components.line(self._sorted.mapToSource(index).row()).component)

    @Slot()
    def _restyle(self) -> None:
        self.viewport().update()


def swatch(component: str) -> QIcon:
    """A small square filled as the component is filled everywhere."""
    return _swatch(component, dark=theme().dark)


@lru_cache(maxsize=64)
def _swatch(component: str, *, dark: bool, size: int = 12) -> QIcon:  # noqa: ARG001  dark tells cached swatches apart
    pixmap = QPixmap(size * 2, size * 2)
    pixmap.setDevicePixelRatio(2)
    pixmap.fill(Qt.GlobalColor.transparent)
    painter = QPainter(pixmap)
    paint_component(painter, pixmap.rect().toRectF().adjusted(0, 0, -size, -size), component)
    painter.end()
    return QIcon(pixmap)


def _text(line: Line, column: int) -> str:
    labels = (word(COMPONENTS, line.component).label, format_bytes(line.size_bytes), f"{line.share:.1%}".replace("%", " %"))
    return (*labels, word(CERTAINTIES, line.certainty).label, line.formula)[column]


def _tip(line: Line, column: int) -> str:
    if column == 1:
        return f"{line.size_bytes:,} bytes"
    if column == 4:
        return line.formula
    return word(CERTAINTIES, line.certainty).meaning if column == 3 else word(COMPONENTS, line.component).meaning


def _alignment(column: int) -> Qt.AlignmentFlag:
    side = Qt.AlignmentFlag.AlignRight if column in (1, 2) else Qt.AlignmentFlag.AlignLeft
    return side | Qt.AlignmentFlag.AlignVCenter


def _raw(line: Line, column: int) -> object:
    order, sure = ORDER.index(line.component), _SURENESS.index(line.certainty)
    return (order, line.size_bytes, line.share, sure, line.formula)[column]


def _ink(_line: Line, column: int) -> QColor | None:
    return theme().colour("muted") if column > 1 else None


_ROLES: dict[Qt.ItemDataRole, Callable[[Line, int], Any]] = {
    Qt.ItemDataRole.DisplayRole: _text,
    Qt.ItemDataRole.UserRole: _raw,
    Qt.ItemDataRole.ToolTipRole: _tip,
    Qt.ItemDataRole.ForegroundRole: _ink,
    Qt.ItemDataRole.TextAlignmentRole: lambda _line, column: _alignment(column),
    Qt.ItemDataRole.DecorationRole: lambda line, column: swatch(line.component) if column == 0 else None,
}
