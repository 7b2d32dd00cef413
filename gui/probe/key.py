"""The key of the plot: a line for each meter, solid measured and dashed predicted."""

from __future__ import annotations

from PySide6.QtCore import QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QSizePolicy, QWidget

from gui.theme import SMALL, font, theme
from gui.words import CPU_METERS, METERS, word
from planner.footprint import METERS as METER_NAMES

_LINE, _SPACE, _HEIGHT = 22, 18, 20


class PlotKey(QWidget):
    """One row of entries."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._on_cpu = False
        self.setFont(font(SMALL))
        self.setFixedHeight(_HEIGHT)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName("Key: solid lines are measured, dashed lines are predicted, diamonds are peaks")
        theme().changed.connect(self.update)

    def set_on_cpu(self, on_cpu: bool) -> None:  # noqa: FBT001  a setter
        """Call the meters what they are on the device."""
        self._on_cpu = on_cpu
        self.update()

    def sizeHint(self) -> QSize:  # noqa: N802  Qt's name
        """One line of text."""
        return QSize(400, _HEIGHT)

    def paintEvent(self, _event: QPaintEvent) -> None:  # noqa: N802  Qt's name
        """Line and name, one after the other."""
        painter = QPainter(self)
        table = CPU_METERS if self._on_cpu else METERS
        entries = [(theme().colour(meter), Qt.PenStyle.SolidLine, word(table, meter).label) for meter in reversed(METER_NAMES)]
        entries.append((theme().colour("muted"), Qt.PenStyle.DashLine, "Predicted"))
        x = 66.0
        for colour, style, label in entries:
            painter.setPen(QPen(colour, 2, style))
            painter.drawLine(QPointF(x, _HEIGHT / 2), QPointF(x + _LINE, _HEIGHT / 2))
            painter.setPen(theme().colour("muted"))
            width = painter.fontMetrics().horizontalAdvance(label)
            painter.drawText(QRectF(x + _LINE + 6, 0, width + 4, _HEIGHT), Qt.AlignmentFlag.AlignVCenter, label)
            x += _LINE + 6 + width + _SPACE
        painter.end()
