"""The list under the model box: names with the place each was found in, and a quiet last line on the search itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import QAbstractListModel, QModelIndex, QPersistentModelIndex, QRect, QSize, Qt
from PySide6.QtGui import QPainter
from PySide6.QtWidgets import QStyle, QStyledItemDelegate, QStyleOptionViewItem

from gui.text import RIGHT, width_of, write
from gui.theme import SMALL, theme

_PADDING, _HEIGHT, _SPACE = 8, 24, 10
_NO_PARENT = QModelIndex()
Index = QModelIndex | QPersistentModelIndex


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A model that can be picked. ``source``: catalog, cache or Hub; empty marks a line that only tells something."""

    name: str
    source: str = ""
    tip: str = ""


def merge(groups: Iterable[Sequence[Suggestion]]) -> list[Suggestion]:
    """All groups in order; a model that an earlier group has is not listed again."""
    found: dict[str, Suggestion] = {}
    for group in groups:
        for suggestion in group:
            found.setdefault(suggestion.name.lower(), suggestion)
    return list(found.values())


class SuggestionModel(QAbstractListModel):
    """Names in ``DisplayRole`` and ``EditRole``, the suggestion in ``UserRole``."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._rows: list[Suggestion] = []

    @property
    def rows(self) -> list[Suggestion]:
        """What is listed."""
        return self._rows

    def show_rows(self, rows: list[Suggestion]) -> None:
        """List ``rows``."""
        self.beginResetModel()
        self._rows = rows
        self.endResetModel()

    def rowCount(self, parent: Index = _NO_PARENT) -> int:
        """One for each suggestion."""
        return 0 if parent.isValid() else len(self._rows)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """A suggestion in one of its roles."""
        if not index.isValid() or not 0 <= index.row() < len(self._rows):
            return None
        row = self._rows[index.row()]
        roles = {
            Qt.ItemDataRole.DisplayRole: row.name, Qt.ItemDataRole.EditRole: row.name, Qt.ItemDataRole.UserRole: row,
            Qt.ItemDataRole.ToolTipRole: row.tip or None, Qt.ItemDataRole.AccessibleTextRole: f"{row.name}, {row.source}",
        }  # fmt: skip
        return roles.get(role)

    def flags(self, index: Index) -> Qt.ItemFlag:
        """A line that only tells something cannot be picked."""
        pickable = index.isValid() and index.row() < len(self._rows) and self._rows[index.row()].source
        return Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable if pickable else Qt.ItemFlag.NoItemFlags


class SuggestionDelegate(QStyledItemDelegate):
    """The name at the left, its source small at the right."""

    def sizeHint(self, _option: QStyleOptionViewItem, _index: Index) -> QSize:
        """One line."""
        return QSize(0, _HEIGHT)

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        """One suggestion, or what is told about the search."""
        row: Suggestion = index.data(Qt.ItemDataRole.UserRole)
        area: QRect = option.rect
        if option.state & QStyle.StateFlag.State_Selected and row.source:
            painter.fillRect(area, theme().colour("accent_soft"))
        room = area.adjusted(_PADDING, 0, -_PADDING, 0)
        if not row.source:
            write(painter, room, row.name, theme().colour("muted"), SMALL)
            return
        write(painter, room, row.source, theme().colour("muted"), SMALL, align=RIGHT)
        taken = int(width_of(row.source, SMALL)) + _SPACE
        write(painter, room.adjusted(0, 0, -taken, 0), row.name, theme().colour("text"))
