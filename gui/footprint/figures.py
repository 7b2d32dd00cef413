"""The meters of the phase on screen, at the right of the row; in two lines when one is too narrow."""

from __future__ import annotations

from PySide6.QtCore import QRect, QSize
from PySide6.QtGui import QPainter, QPaintEvent
from PySide6.QtWidgets import QSizePolicy, QWidget

from gui.text import RIGHT, width_of, write
from gui.theme import theme

_GAP, _LINE = "    ", 16


class Figures(QWidget):
    """Parts of a sentence, none of which is broken."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._parts: tuple[str, ...] = ()
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        theme().changed.connect(self.update)

    def show_parts(self, parts: tuple[str, ...]) -> None:
        """Show these."""
        if parts != self._parts:
            self._parts = parts
            self.setAccessibleName(", ".join(parts))
            self.update()

    def sizeHint(self) -> QSize:
        """Room for two lines."""
        return QSize(120, 2 * _LINE)

    def minimumSizeHint(self) -> QSize:
        """The longest part in each of two lines."""
        return QSize(120, 2 * _LINE)

    def paintEvent(self, _event: QPaintEvent) -> None:
        """As few lines as there is room for."""
        lines = [_GAP.join(self._parts)]
        if width_of(lines[0], tabular=True) > self.width():
            lines = [_GAP.join(self._parts[:-1]), *self._parts[-1:]]
        painter = QPainter(self)
        top = (self.height() - len(lines) * _LINE) // 2
        for number, line in enumerate(lines):
            room = QRect(0, top + number * _LINE, self.width(), _LINE)
            write(painter, room, line, theme().colour("muted"), tabular=True, align=RIGHT)
        painter.end()
