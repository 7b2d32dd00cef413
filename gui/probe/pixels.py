"""What the plot paints in pixels: lines, areas, marks and bands cost less so than as items that stroke in their own units."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyqtgraph as pg
from numpy.typing import NDArray
from pyqtgraph.functions import create_qpolygonf, ndarray_from_qpolygonf
from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QBrush, QPainter, QPen, QPolygonF, QTransform
from PySide6.QtWidgets import QStyleOptionGraphicsItem, QWidget

Floats = NDArray[np.float64]
_NOTHING: Floats = np.array([])
_FAR = 1e5
"""Pixels: beyond any window, and near enough for the painter."""
_SHAPE = 32
"""Points of a shape."""
_MARK = 3.5
"""Pixels from the middle of a mark to its corners."""


class InPixels(pg.GraphicsObject):
    """An item over the whole view that is told where the view's units lie in pixels, and paints there."""

    def viewRangeChanged(self) -> None:
        """It is as large as the view."""
        self.prepareGeometryChange()

    def boundingRect(self) -> QRectF:
        """All that can be seen."""
        return self.viewRect()

    def paint(self, painter: QPainter, _option: QStyleOptionGraphicsItem, _widget: QWidget | None = None) -> None:
        """In pixels, so that pens and hatches are the same at every scale."""
        to_pixels = painter.worldTransform()
        painter.resetTransform()
        self.paint_pixels(painter, to_pixels)
        painter.setWorldTransform(to_pixels)

    def paint_pixels(self, painter: QPainter, to_pixels: QTransform) -> None:
        """Paint; ``to_pixels`` maps seconds and bytes to where the painter is."""
        raise NotImplementedError


class _Points(InPixels):
    """Points of a series. Without any, nothing is painted."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.y = _NOTHING, _NOTHING
        self._pen, self._brush = QPen(Qt.PenStyle.NoPen), QBrush()

    def set_ink(self, pen: QPen | None, brush: QBrush | None = None) -> None:
        """How lines and grounds are painted; None for not at all."""
        self._pen, self._brush = pen or QPen(Qt.PenStyle.NoPen), brush or QBrush()
        self.update()

    def show_points(self, x: Floats, y: Floats) -> None:
        """Paint these, in order of ``x``; a NaN among ``y`` is a gap."""
        self.x, self.y = x, y
        self.setVisible(len(x) > 0)
        self.update()

    def _in_pixels(self, to_pixels: QTransform) -> tuple[Floats, Floats]:
        x, y = self.x * to_pixels.m11() + to_pixels.dx(), self.y * to_pixels.m22() + to_pixels.dy()
        return np.clip(x, -_FAR, _FAR), np.clip(y, -_FAR, _FAR)


class Line(_Points):
    """A line through the points."""

    def paint_pixels(self, painter: QPainter, to_pixels: QTransform) -> None:
        """One stroke between two gaps."""
        painter.setPen(self._pen)
        for x, y in _between_gaps(*self._in_pixels(to_pixels)):
            painter.drawPolyline(_polygon(x, y))


class Area(_Points):
    """The ground from steps down to zero."""

    def paint_pixels(self, painter: QPainter, to_pixels: QTransform) -> None:
        """In shapes of a few points each: a painter takes longer for one of many than for many of few."""
        painter.setPen(self._pen)
        painter.setBrush(self._brush)
        foot = [to_pixels.dy()]
        for whole in _between_gaps(*self._in_pixels(to_pixels)):
            x, y = _outline(*whole)
            for begin in range(0, len(x) - 1, _SHAPE):
                part = slice(begin, begin + _SHAPE + 1)
                corners = np.concatenate((foot, y[part], foot))
                painter.drawPolygon(_polygon(np.concatenate((x[part][:1], x[part], x[part][-1:])), corners))


class Marks(_Points):
    """A lozenge at each point."""

    def paint_pixels(self, painter: QPainter, to_pixels: QTransform) -> None:
        """Every mark whole, however the view is scaled."""
        painter.setPen(self._pen)
        painter.setBrush(self._brush)
        for x, y in zip(*self._in_pixels(to_pixels), strict=True):
            middle = QPointF(x, y)
            corners = (QPointF(0, -_MARK), QPointF(_MARK, 0), QPointF(0, _MARK), QPointF(-_MARK, 0))
            painter.drawPolygon([middle + corner for corner in corners])


def _between_gaps(x: Floats, y: Floats) -> Iterator[tuple[Floats, Floats]]:
    """Each stretch of at least two points without a gap."""
    gaps = np.flatnonzero(np.isnan(y))
    for begin, end in zip([0, *(gaps + 1)], [*gaps, len(y)], strict=True):
        if end - begin > 1:
            yield x[begin:end], y[begin:end]


def _outline(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Of the steps within one pixel the highest, and then the last, which may go on for many."""
    starts = np.flatnonzero(np.diff(np.floor(x), prepend=-np.inf))
    begins, lasts = x[starts], y[np.append(starts[1:], len(x)) - 1]
    ends = np.append(begins[1:], x[-1])
    across = np.stack((begins, np.minimum(begins + 1, ends), ends), axis=1)
    return across.ravel(), np.stack((np.minimum.reduceat(y, starts), lasts, lasts), axis=1).ravel()


def _polygon(x: Floats, y: Floats) -> QPolygonF:
    polygon = create_qpolygonf(len(x))
    points = ndarray_from_qpolygonf(polygon)
    points[:, 0], points[:, 1] = x, y
    return polygon
