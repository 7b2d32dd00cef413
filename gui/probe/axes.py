"""The axes of the plot. They write their marks as the rest of the window does: a picture that is played back takes longer."""

from __future__ import annotations

from typing import Any

import pyqtgraph as pg
from PySide6.QtCore import QLineF, QRectF
from PySide6.QtGui import QPainter, QPen, QPicture
from PySide6.QtWidgets import QStyleOptionGraphicsItem, QWidget

from gui.painting import mixed
from gui.probe.phase_bands import LABEL_HEIGHT, LABEL_TOP
from gui.scale import ticks
from gui.text import CENTRE, RIGHT, write
from gui.theme import SMALL, theme

_WANTED = 6
_SPARE = 24
"""Rooms are measured by a font that writes narrower."""
_GRID = 0.12


class _Axis(pg.AxisItem):
    """Marks are laid out when the range has changed, and kept."""

    _align = CENTRE
    _names_height = 0
    """Pixels at the top through which no line goes."""

    def __init__(self, orientation: str) -> None:
        super().__init__(orientation)
        self._laid: tuple[list[QLineF], list[tuple[QRectF, str]]] = ([], [])

    def paint(self, painter: QPainter, _option: QStyleOptionGraphicsItem, _widget: QWidget | None = None) -> None:
        """Lines through the view, then the texts."""
        if self.picture is None:
            self._lay_out()
        lines, texts = self._laid
        painter.setPen(QPen(mixed(theme().colour("surface"), theme().colour("muted"), _GRID), 1))
        painter.drawLines(lines)
        for measured, text in texts:
            room = measured.adjusted(-_SPARE, 0, _SPARE * (self._align == CENTRE), 0)
            write(painter, room, text, theme().colour("muted"), SMALL, tabular=True, align=self._align)

    def _lay_out(self) -> None:
        measured = QPicture()
        painter = QPainter(measured)
        painter.setFont(self.style["tickFont"])
        specs: tuple[Any, list[Any], list[Any]] | None = self.generateDrawSpecs(painter)
        painter.end()
        _, marks, texts = specs or (None, [], [])
        lines = (QLineF(begin, end) for _, begin, end in marks)
        clear = [line for line in lines if line.dy() or line.y1() > self._names_height]
        self._laid = (clear, [(room, text) for room, _, text in texts])
        self.picture = measured


class BytesAxis(_Axis):
    """Round marks, each with its unit: the topmost may be out of sight."""

    _align = RIGHT
    _names_height = LABEL_TOP + LABEL_HEIGHT

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
