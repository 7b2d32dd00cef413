"""The key of the plot: a line for each meter, solid measured and dashed predicted."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QSizePolicy, QWidget

from gui.painting import rehearsed_fill
from gui.text import RIGHT, width_of, write
from gui.theme import SMALL, px, theme
from gui.translate import tr
from gui.words import word
from planner.footprint import METERS as METER_NAMES
from planner.words import CPU_METERS, METERS

_LINE, _SPACE, _HEIGHT, _TITLE_ROOM = 20, 14, 20, 90
_SHORT_LINE, _SHORT_SPACE = 11, 8
_WHAT_IS_WHAT = "Key: solid lines are measured, dashed lines predicted, the filled area is rehearsed, diamonds are peaks"
Sign = Callable[[QPainter, QRectF], None]


class PlotKey(QWidget):
    """One row of entries."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._on_cpu = False
        self._rehearsed = False
        self._title = ""
        self.setFixedHeight(px(_HEIGHT))
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName(tr(_WHAT_IS_WHAT))
        theme().changed.connect(self.update)

    def set_contents(self, *, on_cpu: bool, rehearsed: bool, title: str) -> None:
        """Call the meters what they are on the device, list what is drawn, and tell at the right what it shows."""
        contents = (on_cpu, rehearsed, title)
        if contents != (self._on_cpu, self._rehearsed, self._title):
            self._on_cpu, self._rehearsed, self._title = contents
            self.setAccessibleDescription(title)
            self.update()

    def sizeHint(self) -> QSize:
        """One line of text."""
        return QSize(400, px(_HEIGHT))

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Line and name, one after the other."""
        painter = QPainter(self)
        x, entries = 8.0, self._entries()
        needed = x + sum(px(_LINE) + 6 + width_of(label, SMALL) + px(_SPACE) for _, label in entries)
        line, space = (px(_LINE), px(_SPACE)) if needed <= self.width() else (_SHORT_LINE, _SHORT_SPACE)
        for paint_sign, label in entries:
            paint_sign(painter, QRectF(x, 0, line, px(_HEIGHT)))
            width = width_of(label, SMALL)
            write(painter, QRectF(x + line + 5, 0, width + 4, px(_HEIGHT)), label, theme().colour("muted"), SMALL)
            x += line + 5 + width + space
        if self.width() - x >= _TITLE_ROOM:
            whole = f"{self._title} · CPU" if self._on_cpu and "CPU" not in self._title else self._title
            write(painter, QRectF(x, 0, self.width() - x - 4, px(_HEIGHT)), whole, theme().colour("text"), SMALL, align=RIGHT)
        painter.end()

    def _entries(self) -> list[tuple[Sign, str]]:
        table = CPU_METERS if self._on_cpu else METERS
        named = [(meter, word(table, meter).label.removesuffix(" (CPU)")) for meter in reversed(METER_NAMES)]
        entries = [(_line(meter, Qt.PenStyle.SolidLine), label) for meter, label in named]
        entries.append((_line("muted", Qt.PenStyle.DashLine), tr("Predicted")))
        return [*entries, (_area, tr("Rehearsed"))] if self._rehearsed else entries


def _line(colour: str, style: Qt.PenStyle) -> Sign:
    def paint(painter: QPainter, room: QRectF) -> None:
        painter.setPen(QPen(theme().colour(colour), 2, style))
        painter.drawLine(QPointF(room.left(), room.center().y()), QPointF(room.right(), room.center().y()))

    return paint


def _area(painter: QPainter, room: QRectF) -> None:
    painter.fillRect(QRectF(room.left(), room.center().y() - 4, room.width(), 9), rehearsed_fill())
    painter.fillRect(QRectF(room.left(), room.center().y() - 4, room.width(), 1), theme().colour("allocated"))
