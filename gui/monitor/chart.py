"""One meter of one GPU over the last minutes: a line that scrolls, its latest value, and where its scale ends."""

from __future__ import annotations

from math import isnan

import numpy as np
from PySide6.QtCore import QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QPainter, QPaintEvent, QPen, QPolygonF
from PySide6.QtWidgets import QSizePolicy, QWidget

from gui.painting import mixed
from gui.probe.series import Floats
from gui.text import RIGHT, write
from gui.theme import SMALL, px, theme
from gui.translate import tr

_HEAD, _HEIGHT, _FOOT = 18, 84, 16


class MeterChart(QWidget):
    """Paints a series against ``limit``; gaps where a reading is missing."""

    def __init__(self, title: str, colour: str, span_s: float, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._title, self._colour = title, colour
        self._times: Floats = np.array([])
        self._values: Floats = np.array([])
        self._span_s, self._limit, self._text = span_s, 1.0, ""
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName(title)
        self._height = px(_HEIGHT)
        theme().changed.connect(self.update)

    def set_height(self, height: int) -> None:
        """Be so high, and at least as high as a chart must be."""
        height = max(px(_HEIGHT), height)
        if height != self._height:
            self._height = height
            self.updateGeometry()

    def show_series(self, times: Floats, values: Floats, limit: float, text: str) -> None:
        """Show the last stretch of ``values`` from 0 to ``limit``; ``text`` is the latest in words."""
        self._times, self._values, self._limit, self._text = times, values, max(limit, 1e-9), text
        self.setAccessibleDescription(f"{self._title}: {text}")
        self.update()

    @property
    def text(self) -> str:
        """The latest value in words."""
        return self._text

    def sizeHint(self) -> QSize:
        """A line of text and the chart."""
        return QSize(150, self._height)

    def minimumSizeHint(self) -> QSize:
        """The width gives way."""
        return QSize(84, self._height)

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Title and value, then the line over its area."""
        painter = QPainter(self)
        head = QRectF(0, 0, self.width(), px(_HEAD))
        write(painter, head, self._title, theme().colour("muted"), SMALL)
        write(painter, head, self._text, theme().colour("text"), SMALL, bold=True, tabular=True, align=RIGHT)
        area = QRectF(0, px(_HEAD), self.width(), self.height() - px(_HEAD) - px(_FOOT))
        painter.fillRect(area, theme().colour("sunken"))
        for points in self._runs(area):
            ground = QPolygonF([QPointF(points[0].x(), area.bottom()), *points, QPointF(points[-1].x(), area.bottom())])
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(mixed(theme().colour("sunken"), theme().colour(self._colour), 0.25))
            painter.drawPolygon(ground)
            painter.setPen(QPen(theme().colour(self._colour), 1))
            painter.drawPolyline(QPolygonF(points))
        foot = QRectF(0, area.bottom(), self.width(), px(_FOOT))
        write(painter, foot, tr("{:.0f} minutes ago").format(self._span_s / 60), theme().colour("muted"), SMALL)
        write(painter, foot, tr("now"), theme().colour("muted"), SMALL, align=RIGHT)
        painter.end()

    def _runs(self, area: QRectF) -> list[list[QPointF]]:
        """The line in stretches without a gap."""
        if not len(self._times):
            return []
        end = self._times[-1]
        runs: list[list[QPointF]] = [[]]
        for time_s, value in zip(self._times, self._values, strict=True):
            if isnan(value):
                runs.append([])
            elif time_s >= end - self._span_s:
                x = area.right() - (end - time_s) / self._span_s * area.width()
                runs[-1].append(QPointF(x, area.bottom() - min(value / self._limit, 1.0) * area.height()))
        return [run for run in runs if run]
