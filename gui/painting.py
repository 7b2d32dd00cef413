"""Painting shared by charts and tables: fills with a hatch, so that colour is never the only cue."""

from __future__ import annotations

from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QColor, QPainter, QPen

from gui.theme import BACKWARD, CROSS, DIAGONAL, DOTS, HORIZONTAL, SOLID, theme

_STEP = 6.0


def paint_component(painter: QPainter, rectangle: QRectF, component: str) -> None:
    """Fill ``rectangle`` as ``component`` is filled everywhere: its colour, then its hatch."""
    colour, hatch = theme().fill(component)
    painter.fillRect(rectangle, colour)
    if hatch != SOLID:
        paint_hatch(painter, rectangle, hatch, _hatch_colour(colour))


def paint_hatch(painter: QPainter, rectangle: QRectF, hatch: str, colour: QColor) -> None:
    """Lines or dots over ``rectangle``, in step with the widget, so that neighbours line up."""
    painter.save()
    painter.setClipRect(rectangle, Qt.ClipOperation.IntersectClip)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    painter.setPen(QPen(colour, 1.2))
    if hatch in (DIAGONAL, CROSS):
        _slanted(painter, rectangle, rising=True)
    if hatch in (BACKWARD, CROSS):
        _slanted(painter, rectangle, rising=False)
    if hatch == HORIZONTAL:
        _horizontal(painter, rectangle)
    if hatch == DOTS:
        _dots(painter, rectangle, colour)
    painter.restore()


def _slanted(painter: QPainter, rectangle: QRectF, *, rising: bool) -> None:
    height = rectangle.height()
    x = rectangle.left() - height - (rectangle.left() - height) % _STEP
    while x < rectangle.right():
        low, high = (rectangle.bottom(), rectangle.top()) if rising else (rectangle.top(), rectangle.bottom())
        painter.drawLine(QPointF(x, low), QPointF(x + height, high))
        x += _STEP


def _horizontal(painter: QPainter, rectangle: QRectF) -> None:
    y = rectangle.top() + _STEP / 2
    while y < rectangle.bottom():
        painter.drawLine(QPointF(rectangle.left(), y), QPointF(rectangle.right(), y))
        y += _STEP - 1


def _dots(painter: QPainter, rectangle: QRectF, colour: QColor) -> None:
    painter.setPen(Qt.PenStyle.NoPen)
    painter.setBrush(colour)
    y, odd = rectangle.top() + 2, False
    while y < rectangle.bottom():
        x = rectangle.left() + (_STEP / 2 if odd else 1.0)
        while x < rectangle.right():
            painter.drawEllipse(QPointF(x, y), 1.1, 1.1)
            x += _STEP
        y, odd = y + _STEP / 2, not odd


def _hatch_colour(colour: QColor) -> QColor:
    return colour.darker(135) if colour.lightnessF() > 0.45 else colour.lighter(150)
