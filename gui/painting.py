"""Painting shared by charts and tables: fills with a hatch, so that colour is never the only cue."""

from __future__ import annotations

from functools import lru_cache

from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QColor, QPainter, QPen, QPixmap

from gui.theme import theme
from planner.palette import BACKWARD, CROSS, DIAGONAL, DOTS, HORIZONTAL, SOLID

_STEP = 6
_CLEAR = 0
_TILE = 10 * _STEP
"""Edge of the tile that a hatch is drawn on once; fills are laid out of it."""


def paint_component(painter: QPainter, rectangle: QRectF, component: str) -> None:
    """Fill ``rectangle`` as ``component`` is filled everywhere: its colour, then its hatch."""
    colour, hatch = theme().fill(component)
    if hatch == SOLID:
        painter.fillRect(rectangle, colour)
    else:
        _lay_tiles(
            painter, rectangle, _tile(hatch, _hatch_colour(colour).rgba(), painter.device().devicePixelRatioF(), colour.rgba())
        )


def paint_hatch(painter: QPainter, rectangle: QRectF, hatch: str, colour: QColor) -> None:
    """Lines or dots over ``rectangle``, in step with the widget, so that neighbours line up."""
    _lay_tiles(painter, rectangle, _tile(hatch, colour.rgba(), painter.device().devicePixelRatioF(), _CLEAR))


def _lay_tiles(painter: QPainter, rectangle: QRectF, tile: QPixmap) -> None:
    offset = QPointF(rectangle.left() % _TILE, rectangle.top() % _TILE)
    painter.drawTiledPixmap(rectangle, tile, offset)


@lru_cache(maxsize=128)
def _tile(hatch: str, colour: int, ratio: float, ground: int) -> QPixmap:
    """A tile with its ground is opaque, which is much faster to lay."""
    pixmap = QPixmap(round(_TILE * ratio), round(_TILE * ratio))
    pixmap.setDevicePixelRatio(ratio)
    pixmap.fill(QColor.fromRgba(ground))
    painter = QPainter(pixmap)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    ink = QColor.fromRgba(colour)
    painter.setPen(QPen(ink, 1.2))
    if hatch in (DIAGONAL, CROSS):
        _slanted(painter, rising=True)
    if hatch in (BACKWARD, CROSS):
        _slanted(painter, rising=False)
    if hatch == HORIZONTAL:
        _horizontal(painter)
    if hatch == DOTS:
        _dots(painter, ink)
    painter.end()
    return pixmap


def _slanted(painter: QPainter, *, rising: bool) -> None:
    low, high = (_TILE, 0) if rising else (0, _TILE)
    for x in range(-_TILE, _TILE + 1, _STEP):
        painter.drawLine(QPointF(x - _STEP, low + (_STEP if rising else -_STEP)), QPointF(x + _TILE, high))


def _horizontal(painter: QPainter) -> None:
    for y in range(_STEP // 2, _TILE, _STEP - 1):
        painter.drawLine(QPointF(0, y), QPointF(_TILE, y))


def _dots(painter: QPainter, ink: QColor) -> None:
    painter.setPen(Qt.PenStyle.NoPen)
    painter.setBrush(ink)
    for row, y in enumerate(range(2, _TILE, _STEP // 2)):
        for x in range(_STEP // 2 if row % 2 else 1, _TILE, _STEP):
            painter.drawEllipse(QPointF(x, y), 1.1, 1.1)


def mixed(ground: QColor, tint: QColor, share: float) -> QColor:
    """``tint`` laid over ``ground`` as an opaque colour: a translucent one takes ten times as long to fill."""
    parts = [round((1 - share) * one + share * other) for one, other in zip(ground.getRgb(), tint.getRgb(), strict=True)]
    return QColor(*parts)


def rehearsed_fill() -> QColor:
    """The area under what was rehearsed."""
    return mixed(theme().colour("surface"), theme().colour("allocated"), 0.16)


def _hatch_colour(colour: QColor) -> QColor:
    return colour.darker(135) if colour.lightnessF() > 0.45 else colour.lighter(150)
