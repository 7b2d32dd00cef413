"""The axes of the plot."""

from __future__ import annotations

import pyqtgraph as pg

from gui.scale import ticks

_WANTED = 6


class BytesAxis(pg.AxisItem):
    """Round marks, each with its unit: the topmost may be out of sight."""

    def tickValues(self, minimum: float, maximum: float, _size: float) -> list[tuple[float, list[float]]]:
        """Where the marks are."""
        return [(1.0, [position for position, _ in ticks(maximum, _WANTED) if position >= minimum])]

    def tickStrings(self, values: list[float], _scale: float, _spacing: float) -> list[str]:
        """How they are written."""
        marks = ticks(self.range[1], _WANTED)
        labels, unit = dict(marks), marks[-1][1].partition(" ")[2]
        return [f"{labels.get(value, '').partition(' ')[0]} {unit}" if value else "0" for value in values]


class SecondsAxis(pg.AxisItem):
    """Round marks, each with its unit."""

    def tickStrings(self, values: list[float], _scale: float, _spacing: float) -> list[str]:
        """How they are written."""
        return [f"{value:g} s" for value in values]
