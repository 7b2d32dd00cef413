"""The meters of the phase on screen, at the right of the row; in two or three lines where it is narrow."""

from __future__ import annotations

from PySide6.QtCore import QRect, QSize
from PySide6.QtGui import QPainter, QPaintEvent
from PySide6.QtWidgets import QSizePolicy, QWidget

from gui.text import RIGHT, width_of, write
from gui.theme import NORMAL, SMALL, px, theme

_GAP, _LINE, _LEAST_LINE = "    ", 16, 12
_MOST = 3


class Figures(QWidget):
    """Parts of a sentence, none of which is broken."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._parts: tuple[str, ...] = ()
        self._whose = ""
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        theme().changed.connect(self.update)

    def show_parts(self, parts: tuple[str, ...], whose: str = "") -> None:
        """Show these; before them ``whose`` they are, where there is room for it."""
        if (parts, whose) != (self._parts, self._whose):
            self._parts, self._whose = parts, whose
            self.setAccessibleName(", ".join(filter(None, (whose, *parts))))
            self.update()

    def sizeHint(self) -> QSize:
        """Room for three small lines."""
        return QSize(120, _MOST * px(_LEAST_LINE))

    def minimumSizeHint(self) -> QSize:
        """The longest part in each line."""
        return QSize(120, _MOST * px(_LEAST_LINE))

    def paintEvent(self, _event: QPaintEvent) -> None:
        """As few lines as there is room for."""
        lines = self._lines()
        pitch, size = (px(_LINE), NORMAL) if len(lines) < _MOST else (px(_LEAST_LINE), SMALL)
        painter = QPainter(self)
        top = (self.height() - len(lines) * pitch) // 2
        for number, line in enumerate(lines):
            room = QRect(0, top + number * pitch, self.width(), pitch)
            write(painter, room, line, theme().colour("muted"), size, tabular=True, align=RIGHT)
        painter.end()

    def _lines(self) -> list[str]:
        """All in one line, the last in a second, or each in its own."""
        whole = _GAP.join(filter(None, (self._whose, *self._parts)))
        for lines in ([whole], [_GAP.join(self._parts)], [_GAP.join(self._parts[:-1]), *self._parts[-1:]]):
            if all(width_of(line, tabular=True) <= self.width() for line in lines):
                return lines
        return list(self._parts)
