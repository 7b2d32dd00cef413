"""The key of the plot: a line for each meter, solid measured and dashed predicted."""

from __future__ import annotations

from PySide6.QtCore import QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QSizePolicy, QWidget

from gui.theme import SMALL, font, theme
from gui.words import CPU_METERS, METERS, word
from planner.footprint import METERS as METER_NAMES

_LINE, _SPACE, _HEIGHT, _TITLE_ROOM = 22, 18, 20, 90


class PlotKey(QWidget):
    """One row of entries."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._on_cpu = False
        self._title = ""
        self.setFont(font(SMALL))
        self.setFixedHeight(_HEIGHT)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName("Key: solid lines are measured, dashed lines are predicted, diamonds are peaks")
        theme().changed.connect(self.update)

    def set_on_cpu(self, on_cpu: bool) -> None:  # noqa: FBT001  a setter
        """Call the meters what they are on the device."""
        self._on_cpu = on_cpu
        self.update()

    def set_title(self, title: str) -> None:
        """What the plot shows, at the right."""
        self._title = title
        self.setAccessibleDescription(title)
        self.update()

    def sizeHint(self) -> QSize:
        """One line of text."""
        return QSize(400, _HEIGHT)

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Line and name, one after the other."""
        painter = QPainter(self)
        table = CPU_METERS if self._on_cpu else METERS
        entry_labels = [word(table, meter).label.removesuffix(" (CPU)") for meter in reversed(METER_NAMES)]
        colours = [theme().colour(meter) for meter in reversed(METER_NAMES)]
        entries = [(colour, Qt.PenStyle.SolidLine, label) for colour, label in zip(colours, entry_labels, strict=True)]
        entries.append((theme().colour("muted"), Qt.PenStyle.DashLine, "Predicted"))
        x = 8.0
        for colour, style, label in entries:
            painter.setPen(QPen(colour, 2, style))
            painter.drawLine(QPointF(x, _HEIGHT / 2), QPointF(x + _LINE, _HEIGHT / 2))
            painter.setPen(theme().colour("muted"))
            width = painter.fontMetrics().horizontalAdvance(label)
            painter.drawText(QRectF(x + _LINE + 6, 0, width + 4, _HEIGHT), Qt.AlignmentFlag.AlignVCenter, label)
            x += _LINE + 6 + width + _SPACE
        if self.width() - x < _TITLE_ROOM:
            return
        room = QRectF(x, 0, self.width() - x - 4, _HEIGHT)
        whole = f"{self._title} · CPU" if self._on_cpu and "CPU" not in self._title else self._title
        title = painter.fontMetrics().elidedText(whole, Qt.TextElideMode.ElideMiddle, int(room.width()))
        painter.setPen(theme().colour("text"))
        painter.drawText(room, Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignRight, title)
