"""The axes of the plot and its grid. They write their marks as the rest of the window does: a picture played back takes longer."""

from __future__ import annotations

from typing import Any

import pyqtgraph as pg
from PySide6.QtCore import QLineF, QRectF
from PySide6.QtGui import QColor, QPainter, QPen, QPicture, QTransform
from PySide6.QtWidgets import QStyleOptionGraphicsItem, QWidget

from gui.probe.phase_bands import LABEL_HEIGHT, LABEL_TOP
from gui.probe.pixels import InPixels
from gui.scale import ticks
from gui.text import CENTRE, RIGHT, write
from gui.theme import SMALL, theme

_WANTED = 6
_SPARE = 24
"""Rooms are measured by a font that writes narrower."""
_GRID = 0.18


class _Axis(pg.AxisItem):
    """Marks are laid out when the range has changed, and kept."""

    _align = CENTRE

    def __init__(self, orientation: str) -> None:
        super().__init__(orientation)
        self._laid: list[tuple[QRectF, str]] = []

    def paint(self, painter: QPainter, _option: QStyleOptionGraphicsItem, _widget: QWidget | None = None) -> None:
        """The texts."""
        if self.picture is None:
            self._lay_out()
        for measured, text in self._laid:
            room = measured.adjusted(-_SPARE, 0, _SPARE * (self._align == CENTRE), 0)
            write(painter, room, text, theme().colour("muted"), SMALL, tabular=True, align=self._align)

    def _lay_out(self) -> None:
        measured = QPicture()
        painter = QPainter(measured)
        painter.setFont(self.style["tickFont"])
        specs: tuple[Any, list[Any], list[Any]] | None = self.generateDrawSpecs(painter)
        painter.end()
        lowest = self.mapFromScene(0, self.getViewWidget().height()).y()
        self._laid = [(room, text) for room, _, text in specs[2] if room.bottom() <= lowest] if specs else []
        self.picture = measured


class BytesAxis(_Axis):
    """Round marks, each with its unit: the topmost may be out of sight."""

    _align = RIGHT

    def tickValues(self, minimum: float, maximum: float, _size: float) -> list[tuple[float, list[float]]]:
        """Where the marks are."""
        return [(1.0, [position for position, _ in ticks(maximum, _WANTED, minimum)])]

    def tickStrings(self, values: list[float], _scale: float, _spacing: float) -> list[str]:
        """How they are written."""
        marks = ticks(self.range[1], _WANTED, self.range[0])
        labels, unit = dict(marks), marks[-1][1].partition(" ")[2] if marks else ""
        return [f"{labels.get(value, '').partition(' ')[0]} {unit}" if value else "0" for value in values]


class SecondsAxis(_Axis):
    """Round marks, each with its unit."""

    def tickStrings(self, values: list[float], _scale: float, _spacing: float) -> list[str]:
        """How they are written."""
        return [f"{value:g} s" for value in values]


class Grid(InPixels):
    """A line at each mark of the axis of bytes: behind what is measured and predicted, and clear of the names of phases."""

    def __init__(self) -> None:
        super().__init__()
        self.setZValue(-9.5)

    def paint_pixels(self, painter: QPainter, to_pixels: QTransform) -> None:
        """Lines as wide as the view."""
        view = self.viewRect()
        room = to_pixels.mapRect(view)
        ink = QColor(theme().colour("muted"))
        ink.setAlphaF(_GRID)  # over bands of two shades
        painter.setPen(QPen(ink, 1))
        for position, _ in ticks(view.bottom(), _WANTED, view.top()):
            y = round(position * to_pixels.m22() + to_pixels.dy()) + 0.5
            if y > room.top() + LABEL_TOP + LABEL_HEIGHT:
                painter.drawLine(QLineF(room.left(), y, room.right(), y))
