"""What lies between the predicted level of a phase and the level that was reached: shaded, and told in percent."""

from __future__ import annotations

from dataclasses import dataclass

from PySide6.QtCore import QRectF
from PySide6.QtGui import QPainter, QTransform

from gui.painting import mixed, paint_hatch
from gui.probe.pixels import InPixels
from gui.text import CENTRE, width_of, write
from gui.theme import SMALL, theme
from gui.units import signed_percent
from planner.palette import BACKWARD, DIAGONAL

_GROUND, _LINES = 0.22, 0.55
_LABEL_HEIGHT, _LABEL_MARGIN = 15, 6


@dataclass(frozen=True, slots=True)
class Difference:
    """From where to where on the axis of time, what was predicted and what was reached."""

    begin_s: float
    end_s: float
    predicted_bytes: float
    reached_bytes: float

    @property
    def words(self) -> str:
        """How far the two are apart."""
        return signed_percent(self.reached_bytes / self.predicted_bytes - 1)


class Differences(InPixels):
    """One shaded box for each; what went beyond the prediction leans the other way than what stayed below."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: tuple[Difference, ...] = ()
        self.setZValue(-8)

    @property
    def shown(self) -> tuple[Difference, ...]:
        """What is shaded."""
        return self._shown

    def show_differences(self, differences: tuple[Difference, ...]) -> None:
        """Shade these."""
        if differences != self._shown:
            self._shown = differences
            self.prepareGeometryChange()
            self.update()

    def paint_pixels(self, painter: QPainter, to_pixels: QTransform) -> None:
        """The hatch is the same at every scale."""
        for one in self._shown:
            low, high = sorted((one.predicted_bytes, one.reached_bytes))
            room = to_pixels.mapRect(QRectF(one.begin_s, low, one.end_s - one.begin_s, high - low))
            self._paint_one(painter, room, one)

    def _paint_one(self, painter: QPainter, room: QRectF, one: Difference) -> None:
        beyond = one.reached_bytes > one.predicted_bytes
        tint, surface = theme().colour("over" if beyond else "fits"), theme().colour("surface")
        painter.fillRect(room, mixed(surface, tint, _GROUND))
        paint_hatch(painter, room, DIAGONAL if beyond else BACKWARD, mixed(surface, tint, _LINES))
        width = width_of(one.words, SMALL, bold=True) + _LABEL_MARGIN
        if width > room.width():
            return
        label = QRectF(room.center().x() - width / 2, room.bottom() + 1, width, _LABEL_HEIGHT)
        if room.height() >= 2 * _LABEL_HEIGHT:  # clear of the lines of what was reached
            label.moveBottom(room.bottom() - 3 if beyond else room.center().y() + _LABEL_HEIGHT / 2)
            painter.fillRect(label, surface)
        write(painter, label, one.words, tint, SMALL, bold=True, tabular=True, align=CENTRE)
