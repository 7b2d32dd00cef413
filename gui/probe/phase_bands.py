"""The bands behind the plot, one for each pass through a phase, with its name at the top. One item paints them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from PySide6.QtCore import QRectF
from PySide6.QtGui import QPainter, QPen, QTransform

from gui.painting import mixed
from gui.probe.pixels import InPixels
from gui.probe.run import Band
from gui.text import CENTRE, width_of, write
from gui.theme import SMALL, theme

_SHADES = (0.10, 0.04)
"""Share of the accent in every other band."""
LABEL_TOP, LABEL_HEIGHT = 3, 16
"""Pixels above and of a phase's name."""
_LABEL_MARGIN = 8


def joined(
    bands: Sequence[Band], least_s: float, extent: Callable[[Band], tuple[float, float]], heights: Mapping[str, float]
) -> list[Band]:
    """Bands of at least ``least_s``: a stretch of shorter ones in one, called like the highest, with the highest of their peaks.

    A training of a thousand steps has thousands, and a frame must not take longer than a few.
    """
    made: list[Band] = []
    stretch: list[Band] = []
    for band in bands:
        begin, end = extent(band)
        if end - begin >= least_s and not stretch:
            made.append(band)
            continue
        stretch.append(band)
        if end - extent(stretch[0])[0] >= least_s:
            made.append(_one_of(stretch, heights))
            stretch = []
    return [*made, _one_of(stretch, heights)] if stretch else made


def _one_of(stretch: Sequence[Band], heights: Mapping[str, float]) -> Band:
    if len(stretch) == 1:
        return stretch[0]
    highest = max(stretch, key=lambda band: heights.get(band.name, 0))
    most: dict[str, int] = {}
    for band in stretch:
        for meter, peak in (band.peaks or {}).items():
            if peak > most.get(meter, -1):
                most[meter] = peak
    return replace(highest, begin_s=stretch[0].begin_s, end_s=stretch[-1].end_s, peaks=most or None)


@dataclass(frozen=True, slots=True)
class LabelledBand:
    """From where to where on the axis of time, and what it is called."""

    begin_s: float
    end_s: float
    label: str


class PhaseBands(InPixels):
    """Bands over the whole height of the view."""

    def __init__(self) -> None:
        super().__init__()
        self._bands: tuple[LabelledBand, ...] = ()
        self.setZValue(-20)

    def show_bands(self, bands: tuple[LabelledBand, ...]) -> None:
        """Paint these."""
        if bands != self._bands:
            self._bands = bands
            self.update()

    def paint_pixels(self, painter: QPainter, to_pixels: QTransform) -> None:
        """Grounds and edges, and the names of those that are wide enough."""
        view = self.viewRect()
        for index, band in enumerate(self._bands):
            room = to_pixels.mapRect(QRectF(band.begin_s, view.top(), band.end_s - band.begin_s, view.height()))
            self._paint_band(painter, room, band.label, _SHADES[index % len(_SHADES)])

    def _paint_band(self, painter: QPainter, room: QRectF, label: str, share: float) -> None:
        painter.fillRect(room, mixed(theme().colour("surface"), theme().colour("accent"), share))
        painter.setPen(QPen(theme().colour("border"), 1))
        for x in (round(room.left()) + 0.5, round(room.right()) + 0.5):
            painter.drawLine(x, room.top(), x, room.bottom())
        if width_of(label, SMALL, bold=True) + _LABEL_MARGIN <= room.width():
            top = QRectF(room.left(), room.top() + LABEL_TOP, room.width(), LABEL_HEIGHT)
            write(painter, top, label, theme().colour("muted"), SMALL, bold=True, align=CENTRE)
