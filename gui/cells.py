"""Tables of figures: cells that know how they look, one model that holds them, one view that paints them.

Qt asks a delegate cell by cell, which under a style sheet takes longer than a frame for a screenful; the view paints all cells in
sight at once, from kept text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import (
    QAbstractTableModel,
    QItemSelectionModel,
    QModelIndex,
    QObject,
    QPersistentModelIndex,
    QRect,
    QRectF,
    Qt,
    Slot,
)
from PySide6.QtGui import QPainter, QPaintEvent
from PySide6.QtWidgets import QAbstractItemView, QHeaderView, QTableView, QWidget

from gui.painting import paint_component
from gui.settle import settle
from gui.text import LEFT, RIGHT, width_of, wrapped, write
from gui.theme import font, px, theme
from gui.translate import tr

PADDING, _SWATCH, _SPACE = 8, 12, 8
LINE = 16
LEAST_HEIGHT = 290
"""Rows that come and go with an edit must not lay the window out anew."""
TABLE_STRETCH = 1000
"""A table takes the height it needs before anything below it stretches."""
_NO_PARENT = QModelIndex()
Index = QModelIndex | QPersistentModelIndex


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure or word: as shown and as it is, the colour role of its ink, and the component whose swatch stands before it."""

    text: str
    raw: Any
    tip: str = ""
    ink: str = "text"
    bold: bool = False
    swatch: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, and whether its cells are figures, which stand at the right."""

    heading: str
    figures: bool = False


class CellModel(QAbstractTableModel):
    """Rows of cells. Text in ``DisplayRole``, the raw value in ``UserRole``."""

    def __init__(self, columns: Sequence[Column], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.columns = translated(columns)
        self._cells: list[Sequence[Cell]] = []

    def show_cells(self, rows: Sequence[Sequence[Cell]]) -> None:
        """Show ``rows``. Rows come and go at the end; of those that stay, only the cells that changed are told."""
        before = self._put(rows)
        for row, (old, new) in enumerate(zip(before, rows, strict=False)):
            changed = [column for column, (one, other) in enumerate(zip(old, new, strict=True)) if one != other]
            if changed:
                self.dataChanged.emit(self.index(row, changed[0]), self.index(row, changed[-1]))

    def _put(self, rows: Sequence[Sequence[Cell]]) -> Sequence[Sequence[Cell]]:
        """Hold ``rows`` and tell how many there are; what stood there before, of those that stay."""
        before, shared = self._cells, min(len(self._cells), len(rows))
        if len(rows) < len(before):
            self.beginRemoveRows(_NO_PARENT, shared, len(before) - 1)
            self._cells = before[:shared]
            self.endRemoveRows()
        elif len(rows) > len(before):
            self.beginInsertRows(_NO_PARENT, shared, len(rows) - 1)
            self._cells = [*before, *rows[shared:]]
            self.endInsertRows()
        self._cells = list(rows)
        return before[:shared]

    def show_columns(self, columns: Sequence[Column]) -> None:
        """Begin anew under other headings."""
        self.beginResetModel()
        self.columns, self._cells = translated(columns), []
        self.endResetModel()

    def cell(self, row: int, column: int) -> Cell:
        """The cell there."""
        return self._cells[row][column]

    def rowCount(self, parent: Index = _NO_PARENT) -> int:
        """How many rows are shown."""
        return 0 if parent.isValid() else len(self._cells)

    def columnCount(self, parent: Index = _NO_PARENT) -> int:
        """One for each heading."""
        return 0 if parent.isValid() else len(self.columns)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Column titles."""
        if orientation != Qt.Orientation.Horizontal or not 0 <= section < len(self.columns):
            return None
        if role == Qt.ItemDataRole.DisplayRole:
            return self.columns[section].heading
        return self._alignment(section) if role == Qt.ItemDataRole.TextAlignmentRole else None

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """A cell in one of its roles."""
        if not index.isValid() or not 0 <= index.row() < len(self._cells):
            return None
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return self._alignment(index.column())
        reader = _ROLES.get(role)
        return reader(self.cell(index.row(), index.column())) if reader else None

    def width_wanted(self, column: int) -> int:
        """Pixels in which no cell of a column, nor its heading, is cut."""
        return max(round(width_of(self.columns[column].heading, tabular=True)) + 2 * PADDING + 1, self.figures_width(column))

    def figures_width(self, column: int) -> int:
        """Pixels in which no cell of a column is cut."""
        cells = [row[column] for row in self._cells]
        texts = (width_of(one.text, bold=one.bold, tabular=True) + (_SWATCH + _SPACE if one.swatch else 0) for one in cells)
        return round(max(texts, default=0)) + 2 * PADDING + 1

    def _alignment(self, column: int) -> Qt.AlignmentFlag:
        side = Qt.AlignmentFlag.AlignRight if self.columns[column].figures else Qt.AlignmentFlag.AlignLeft
        return side | Qt.AlignmentFlag.AlignVCenter


def translated(columns: Sequence[Column]) -> tuple[Column, ...]:
    """The headings in the language of the window."""
    return tuple(Column(tr(column.heading), column.figures) for column in columns)


class CellTable(QTableView):
    """Shows a :class:`CellModel`."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setShowGrid(False)
        self.setWordWrap(False)
        self.setTabKeyNavigation(False)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.verticalHeader().hide()
        self.horizontalHeader().setHighlightSections(False)
        self.horizontalHeader().setTextElideMode(Qt.TextElideMode.ElideRight)

    def setModel(self, model: CellModel) -> None:
        """Rows that come and go are placed at once: Qt would do it after the next repaint, and then paint again.

        The header shows nothing of what is selected, but asks for it with every repaint, row by row: it has a selection of its own.
        """
        super().setModel(model)
        self.horizontalHeader().setSelectionModel(QItemSelectionModel(model, self.horizontalHeader()))
        for moved in (model.rowsInserted, model.rowsRemoved):
            moved.connect(self._place_rows)

    @Slot()
    def _place_rows(self) -> None:
        self.hug()
        if self.parentWidget() and self.parentWidget().layout():
            settle(self.parentWidget())  # in its old height the table would show a scroll bar for a moment
        self.executeDelayedItemsLayout()

    @Slot()
    def hug(self) -> None:
        """End below the last row: in a large window a table is no empty sheet."""
        whole = self.horizontalHeader().sizeHint().height() + self.verticalHeader().length() + 2 * self.frameWidth()
        highest = max(whole, px(LEAST_HEIGHT), self.minimumHeight())
        if highest != self.maximumHeight():
            self.setMaximumHeight(highest)

    def set_widths(self, widths: Mapping[int, int]) -> None:
        """Columns as wide as that. Told of each by its header, Qt would paint the table a second time, after the next repaint."""
        header = self.horizontalHeader()
        changed = {column: width for column, width in widths.items() if header.sectionSize(column) != width}
        if changed:
            blocked = header.blockSignals(True)
            for column, width in changed.items():
                header.resizeSection(column, width)
            header.blockSignals(blocked)
            self.updateGeometries()
            self.viewport().update()

    def paintEvent(self, event: QPaintEvent) -> None:
        """Every cell in sight, each over a line that parts the rows."""
        model: CellModel = self.model()
        first, last = self.rowAt(event.rect().top()), self.rowAt(event.rect().bottom())
        if first < 0:
            return
        last = last if last >= 0 else model.rowCount() - 1
        chosen = [
            (one.top(), one.bottom(), one.left(), one.right())
            for one in self.selectionModel().selection()
            if one.top() <= last and one.bottom() >= first
        ]
        columns = [
            (column, self.columnViewportPosition(column), self.columnWidth(column))
            for column in range(len(model.columns))
            if not self.isColumnHidden(column)
        ]
        painter, lines = QPainter(self.viewport()), []
        for row in range(first, last + 1):
            top, height = self.rowViewportPosition(row), self.rowHeight(row)
            lines.append(QRect(0, top + height - 1, self.viewport().width(), 1))
            for column, left, width in columns:
                room = QRect(left, top, width, height)
                if any(above <= row <= below and left_of <= column <= right_of for above, below, left_of, right_of in chosen):
                    painter.fillRect(room, theme().colour("accent_soft"))
                _paint_cell(painter, room, model.cell(row, column), figures=model.columns[column].figures)
        for line in lines:
            painter.fillRect(line, theme().colour("grid"))
        painter.end()


def _paint_cell(painter: QPainter, room: QRect, cell: Cell, *, figures: bool) -> None:
    room = room.adjusted(PADDING, 0, -PADDING, -1)
    if cell.swatch:
        paint_component(
            painter, QRectF(room.left(), room.top() + (room.height() + 1 - _SWATCH) // 2, _SWATCH, _SWATCH), cell.swatch
        )
        room.setLeft(room.left() + _SWATCH + _SPACE)
    if cell.text:
        side = RIGHT if figures else LEFT
        lines = _lines(cell, room)
        for number, line in enumerate(lines):
            place = room.adjusted(0, px(LINE) * (2 * number + 1 - len(lines)), 0, 0)
            write(painter, place, line, theme().colour(cell.ink), bold=cell.bold, tabular=True, align=side)


def _lines(cell: Cell, room: QRect) -> tuple[str, ...]:
    """The text of a cell, in several lines where it needs and the row has room for them."""
    most = room.height() // px(LINE) if room.height() > 2 * px(LINE) else 1
    if most == 1 or width_of(cell.text, bold=cell.bold, tabular=True) <= room.width():
        return (cell.text,)
    lines = wrapped(cell.text, room.width(), bold=cell.bold, tabular=True)
    return (*lines[: most - 1], " ".join(lines[most - 1 :])) if len(lines) > most else lines


class Rows(QObject):
    """Rows as high as their texts need."""

    def __init__(self, table: CellTable, height: int) -> None:
        super().__init__(table)
        self._table, self._height, self._percent = table, height, 100
        self.restyle()

    @Slot()
    def restyle(self) -> None:
        """Look sizes and colours up again."""
        self._table.setFont(font(tabular=True))
        self._table.verticalHeader().setDefaultSectionSize(px(self._height))
        self._table.hug()
        self._table.viewport().update()
        ratio, self._percent = theme().percent / self._percent, theme().percent
        header = self._table.horizontalHeader()
        for column in range(header.count()) if ratio != 1 else ():
            if header.sectionResizeMode(column) != QHeaderView.ResizeMode.Stretch:
                header.resizeSection(column, round(header.sectionSize(column) * ratio))


def dress(table: CellTable, model: CellModel, row_height: int) -> Rows:
    """Give ``table`` the model; returns what keeps its rows' height."""
    table.setModel(model)
    rows = Rows(table, row_height)
    theme().changed.connect(rows.restyle)
    return rows


_ROLES: dict[int, Callable[[Cell], Any]] = {
    Qt.ItemDataRole.DisplayRole: lambda cell: cell.text,
    Qt.ItemDataRole.UserRole: lambda cell: cell.raw,
    Qt.ItemDataRole.ToolTipRole: lambda cell: cell.tip or None,
    Qt.ItemDataRole.ForegroundRole: lambda cell: theme().colour(cell.ink),
    Qt.ItemDataRole.FontRole: lambda cell: font(bold=cell.bold, tabular=True),
}
