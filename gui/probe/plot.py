"""The live plot: three meters over time, phase bands, predicted levels and the capacity line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyqtgraph as pg
from pyqtgraph.GraphicsScene.mouseEvents import MouseClickEvent
from PySide6.QtCore import Qt, QTimer, Signal, Slot
from PySide6.QtGui import QBrush, QFont, QHideEvent, QPen, QShowEvent
from PySide6.QtWidgets import QVBoxLayout, QWidget

from gui.painting import mixed, rehearsed_fill
from gui.probe.axes import BytesAxis, Grid, SecondsAxis
from gui.probe.differences import Difference, Differences
from gui.probe.phase_bands import LabelledBand, PhaseBands, joined
from gui.probe.pixels import Area, Line, Marks
from gui.probe.rehearsed import Rehearsed, Stretch
from gui.probe.run import Band, Run
from gui.probe.series import Ring, Thinner
from gui.probe.zoom import Zoom
from gui.scale import round_up, round_up_span
from gui.theme import SMALL, font, theme
from gui.translate import tr
from gui.units import format_bytes
from gui.words import word
from planner.footprint import METERS
from planner.words import PHASES

FRAME_MS = 33
_LEAST_POINTS = 200
_LEAST_DIFFERENCE = 0.005
"""Smaller ones can't be seen, and need no words over the lines."""
_MIN_SPAN_S = 2.0
_LEAST_BAND = 3
"""Pixels."""
_NOTHING_BYTES = 512
"""Below the smallest tensor: there is nothing to put a scale to."""
_ROOM_ABOVE = 1.12
_RANKS_DRAWN = 15
_RANK_STYLES = (Qt.PenStyle.DashLine, Qt.PenStyle.DotLine, Qt.PenStyle.DashDotLine)
_NOTHING = np.array([])
_CAPACITY_IN_VIEW = 3.0
"""The capacity line is drawn when it is at most this many times the highest level; else it is told in words."""

Levels = Mapping[str, Mapping[str, int]]
"""Predicted bytes by phase and meter."""


class ProbePlot(QWidget):
    """Shows a run; repaints on one timer, and only when something came and it can be seen. A click picks a phase."""

    picked = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._no_run = Run()
        self._run = self._no_run
        self._moved = {"samples", "rehearsed"}
        self._rehearsed: Rehearsed | None = None
        self._preview: list[Band] = []
        self._drawn: list[Band] = []
        """The phases of the last frame, those too short to be seen in one."""
        self._levels: Levels = {}
        self._capacity_bytes: int | None = None
        self._dirty = True
        self._ranges: tuple[float, float, float, bool] | None = None
        self._bands, self._grid = PhaseBands(), Grid()
        self.widget = pg.PlotWidget(axisItems={"left": BytesAxis("left"), "bottom": SecondsAxis("bottom")})
        self._make_items()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.widget)
        self._timer = QTimer(self, interval=FRAME_MS)
        self._timer.timeout.connect(self._frame)
        self.widget.scene().sigMouseClicked.connect(self._clicked)
        self.widget.setAccessibleName(tr("Memory of the run over time"))
        theme().changed.connect(self.restyle)
        self.restyle()

    def show_run(self, run: Run | None) -> None:
        """Show another run from its beginning, or none."""
        run = run or self._no_run
        if run is not self._run:
            self._moved.add("samples")
            for thinner in self._thinners.values():
                thinner.forget()
        self._run = run
        self.mark_dirty()

    def set_rehearsed(self, rehearsed: Rehearsed | None) -> None:
        """The course of a rehearsal, drawn behind everything."""
        self._moved |= {"rehearsed"} if rehearsed is not self._rehearsed else set()
        self._rehearsed = rehearsed
        self.mark_dirty()

    def set_levels(self, levels: Levels, capacity_bytes: int | None) -> None:
        """The predicted level of every phase and meter, and where memory ends."""
        self._levels, self._capacity_bytes = levels, capacity_bytes
        self._preview = [Band(name, 0, float(index), float(index + 1)) for index, name in enumerate(levels)]
        self.mark_dirty()

    @property
    def _shown_bands(self) -> list[Band]:
        """The run's phases; before a run the rehearsed ones or the predicted ones, each as wide as the next."""
        if self._timed:
            return self._run.bands
        course = self._rehearsed.course if self._rehearsed else ()
        return [Band(stretch.phase, 0, float(index), index + 1.0) for index, stretch in enumerate(course)] or self._preview

    @property
    def differences(self) -> tuple[Difference, ...]:
        """What is shaded between prediction and run."""
        return self._differences.shown

    @property
    def _compared(self) -> tuple[str, ...]:
        """The meters that a difference is told of, the first that is known: on a CPU only live tensors compare."""
        return ("allocated",) if self._run.on_cpu or not self._timed else ("device", "reserved", "allocated")

    @property
    def _timed(self) -> bool:
        """Whether the axis is that of a run's seconds; else, and until the first phase begins, phases stand side by side."""
        return bool(self._run.bands or (self._run.last_s and self._run.outcome))

    def mark_dirty(self) -> None:
        """Something came: draw it with the next frame."""
        self._dirty = True

    def draw(self) -> None:
        """Draw with what else changes now, and not with the next frame."""
        if self.isVisible():
            self._frame()

    @property
    def dirty(self) -> bool:
        """Whether the next frame has something to draw."""
        return self._dirty

    @property
    def frames_running(self) -> bool:
        """Whether the repaint timer is on: only while the plot can be seen."""
        return self._timer.isActive()

    def showEvent(self, event: QShowEvent) -> None:
        """Draw again."""
        self._timer.start()
        self._frame()
        super().showEvent(event)

    def hideEvent(self, event: QHideEvent) -> None:
        """What cannot be seen is not drawn."""
        self._timer.stop()
        super().hideEvent(event)

    def _make_items(self) -> None:
        plot = self.widget.getPlotItem()
        plot.setMenuEnabled(False)
        plot.hideButtons()
        plot.getViewBox().disableAutoRange()
        self.zoom = Zoom(self.widget)
        self.zoom.changed.connect(self._zoomed)
        self._capacity = pg.InfiniteLine(angle=0, movable=False)
        self._capacity_text = pg.TextItem(anchor=(1, 1))
        plot.addItem(self._capacity)
        plot.addItem(self._capacity_text)
        self._differences = Differences()
        self._area = Area()
        self._area.setZValue(-10)
        self._course = {meter: Line() for meter in ("reserved", "allocated")}
        self._curves = {meter: Line() for meter in reversed(METERS)}
        self._ranks = [Line() for _ in range(_RANKS_DRAWN)]
        self._predicted = {meter: Line() for meter in reversed(METERS)}
        self._peaks = {meter: Marks() for meter in METERS}
        groups = (self._course, self._curves, self._predicted, self._peaks)
        for item in (self._bands, self._grid, self._differences, self._area, *(one for group in groups for one in group.values())):
            plot.addItem(item)
        for item in self._ranks:
            item.setZValue(-1)
            plot.addItem(item)
        for item in self._course.values():
            item.setZValue(-9)
        self._thinners = {item: Thinner() for item in (*self._curves.values(), *self._ranks)}

    @Slot()
    def restyle(self) -> None:
        """Look every colour up again."""
        self.widget.setBackground(theme().colour("surface"))
        for side in ("left", "bottom"):
            axis = self.widget.getAxis(side)
            axis.enableAutoSIPrefix(False)  # marks have units of their own; a label that is not shown is written with each range
            axis.setPen(theme().colour("border"))
            axis.setTextPen(theme().colour("muted"))
            axis.setStyle(tickFont=QFont(font(SMALL)), tickLength=0, maxTickLevel=0)
        self.widget.getAxis("left").setWidth(64)
        for meter in METERS:
            colour = theme().colour(meter)
            self._curves[meter].set_ink(pg.mkPen(colour, width=1))
            self._predicted[meter].set_ink(pg.mkPen(colour, width=1, style=Qt.PenStyle.DashLine))
            self._peaks[meter].set_ink(QPen(theme().colour("surface"), 1), QBrush(colour))
        for number, item in enumerate(self._ranks):
            ink = mixed(theme().colour("surface"), theme().colour("allocated"), 0.65)
            item.set_ink(pg.mkPen(ink, width=1, style=_RANK_STYLES[number % len(_RANK_STYLES)]))
        self._area.set_ink(None, QBrush(rehearsed_fill()))
        for meter, item in self._course.items():
            item.set_ink(pg.mkPen(mixed(theme().colour("surface"), theme().colour(meter), 0.6), width=1))
        self._capacity.setPen(QPen(theme().colour("capacity"), 1))
        self._capacity_text.setColor(theme().colour("capacity"))
        self._capacity_text.setFont(font(SMALL, bold=True))
        self._bands.update()
        self._grid.update()
        self.mark_dirty()

    @Slot()
    def _zoomed(self) -> None:
        """The part that is seen is drawn with all its points."""
        self._moved.add("samples")
        self.mark_dirty()

    @Slot(object)
    def _clicked(self, event: MouseClickEvent) -> None:
        x = self.widget.getViewBox().mapSceneToView(event.scenePos()).x()
        phase = next((band.name for band in self._shown_bands if self._extent(band)[0] <= x <= self._extent(band)[1]), None)
        if phase is not None:
            self.picked.emit(phase)

    @Slot()
    def _frame(self) -> None:
        """One repaint. While a phase is open its band grows with the clock of the samples."""
        if not self._dirty:
            return
        self._dirty = False
        self._drawn = joined(self._shown_bands, self._least_s, self._extent, self._heights)
        if self._rehearsed is not None or "rehearsed" in self._moved:
            self._draw_rehearsed()
        if self._run is not self._no_run or "samples" in self._moved:
            self._draw_samples()
        self._moved = set()
        self._draw_bands()
        self._draw_levels()
        self._set_ranges()
        self.widget.scene().prepareForPaint()  # else the new range comes to light while painting, and all is painted twice

    def _draw_rehearsed(self) -> None:
        """Each stretch over the band of the same pass through its phase; where the two are equal the line is one."""
        pairs = matched(self._shown_bands, self._rehearsed.course if self._rehearsed else ())
        for meter, item in self._course.items():
            item.show_points(*_steps([(stretch, meter, *self._extent(band)) for band, stretch in pairs]))
        self._area.show_points(*_steps([(stretch, "allocated", *self._extent(band)) for band, stretch in pairs]))

    def _draw_samples(self) -> None:
        times = self._run.samples.time_s
        seen = slice(0, None) if self._timed else slice(0, 0)
        if self._timed and self.zoom.zoomed:
            begin, end = np.searchsorted(times, self.zoom.x_range)
            seen = slice(max(int(begin) - 1, 0), int(end) + 1)
        for column, meter in enumerate(METERS):
            self._draw_series(self._curves[meter], self._run.samples, column, seen)
        for number, item in enumerate(self._ranks):
            self._draw_series(item, self._run.ranks.get(number + 1), 0, slice(0, None))
        for meter in METERS:
            ended = [band for band in self._drawn if band.peaks and meter in band.peaks]
            heights = [float((band.peaks or {})[meter]) for band in ended]
            self._peaks[meter].show_points(np.array([_middle(band) for band in ended]), np.array(heights))

    def _draw_series(self, item: Line, ring: Ring | None, column: int, seen: slice) -> None:
        """As many of its points as there are pixels."""
        if ring is None:
            item.show_points(_NOTHING, _NOTHING)
            return
        most = 2 * max(_LEAST_POINTS, round(self.widget.width() * self.devicePixelRatioF()))
        values, first = ring.column(column)[seen], ring.first + seen.start
        item.show_points(*self._thinners[item].thinned(ring.time_s[seen], values, most, first))

    def _draw_bands(self) -> None:
        self._bands.show_bands(tuple(LabelledBand(*self._extent(band), _band_label(band)) for band in self._drawn))

    def _draw_levels(self) -> None:
        for meter in METERS:
            x, y = self._steps(meter)
            self._predicted[meter].show_points(np.array(x), np.array(y))
        self._differences.show_differences(tuple(self._gaps()))

    def _gaps(self) -> Iterator[Difference]:
        """The prediction of each phase that has ended against what was measured of it, or else rehearsed."""
        rehearsed = self._rehearsed.meters if self._rehearsed else {}
        for band in self._drawn:
            reached = band.peaks or ({} if self._timed else rehearsed.get(band.name, {}))
            meter = next((name for name in self._compared if name in reached), None)
            predicted = self._levels.get(band.name, {}).get(meter or "")
            if predicted and meter and abs(reached[meter] / predicted - 1) >= _LEAST_DIFFERENCE:
                yield Difference(*self._extent(band), float(predicted), float(reached[meter]))

    def _steps(self, meter: str) -> tuple[list[float], list[float]]:
        """A level over every band of its phase, with a gap after it."""
        x: list[float] = []
        y: list[float] = []
        for band in self._drawn:
            level = self._levels.get(band.name, {}).get(meter)
            if level is not None:
                begin, end = self._extent(band)
                x += [begin, end, end]
                y += [float(level), float(level), np.nan]
        return x, y

    def _extent(self, band: Band) -> tuple[float, float]:
        return band.begin_s, band.end_s if band.end_s is not None else max(self._run.last_s, band.begin_s)

    @property
    def _least_s(self) -> float:
        """As much of the axis as can be told from its neighbours."""
        begin, end = self.zoom.x_range if self.zoom.zoomed else (0.0, self._span())
        return (end - begin) * _LEAST_BAND / max(self.widget.width(), 1)

    @property
    def _heights(self) -> Mapping[str, float]:
        """How high the prediction of each phase is."""
        return {name: max(meters.values(), default=0) for name, meters in self._levels.items()}

    def _span(self) -> float:
        if not self._timed:
            return max(1.0, float(len(self._shown_bands)))
        length = max(_MIN_SPAN_S, self._run.last_s - self._begin())
        return length if self._run.outcome else round_up_span(length)

    def _begin(self) -> float:
        """Where the axis begins: what goes before the first phase takes long and holds nothing of the load."""
        return self._run.bands[0].begin_s if self._timed and self._run.bands else 0.0

    def _highest(self) -> float:
        reached = {band.name for band in self._shown_bands}
        levels = [max(meters.values(), default=0) for name, meters in self._levels.items() if name in reached]
        rehearsed = self._rehearsed.highest_bytes if self._rehearsed else 0
        return max([self._run.highest_bytes, *levels, rehearsed, 1.0])

    def _top(self) -> float:
        capacity = self._capacity_bytes or 0
        highest = self._highest()
        return round_up(max(highest, capacity if capacity <= highest * _CAPACITY_IN_VIEW else 0) * _ROOM_ABOVE)

    def _set_ranges(self) -> None:
        top = self._top()
        begin, end = self._begin(), self._begin() + self._span()
        if (begin, end, top, self._timed) != self._ranges:
            self._ranges = (begin, end, top, self._timed)
            self.widget.getAxis("bottom").setStyle(showValues=self._timed)
            self.widget.getAxis("left").setStyle(showValues=top > _NOTHING_BYTES)
            self.zoom.show_all((begin - (end - begin) / 100, end + (end - begin) / 100), (0.0, top))
        capacity = self._capacity_bytes
        in_view = capacity is not None and capacity <= top
        self._capacity.setVisible(in_view)
        self._capacity_text.setVisible(in_view)
        if in_view and capacity is not None:
            self._capacity.setPos(capacity)
            _say(self._capacity_text, f"Capacity {format_bytes(capacity)}")
            self._capacity_text.setPos(end, capacity)


def matched(bands: Sequence[Band], course: Sequence[Stretch]) -> list[tuple[Band, Stretch]]:
    """Bands and stretches of the same phase, the first with the first and so on; what has no partner is left out."""
    waiting: dict[str, list[Stretch]] = {}
    for stretch in course:
        waiting.setdefault(stretch.phase, []).append(stretch)
    return [(band, waiting[band.name].pop(0)) for band in bands if waiting.get(band.name)]


def _steps(parts: list[tuple[Stretch, str, float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """The course as steps from ``begin`` to ``end`` of each band, with a gap between bands."""
    x: list[np.ndarray] = []
    y: list[np.ndarray] = []
    for stretch, meter, begin, end in parts:
        edges = np.append(begin + stretch.share * (end - begin), end)
        values = stretch.meters[meter]
        x += [np.repeat(edges, 2)[1:-1], np.array([end])]
        y += [np.repeat(values, 2), np.array([np.nan])]
    return (np.concatenate(x), np.concatenate(y)) if x else (np.array([]), np.array([]))


def _say(item: pg.TextItem, text: str) -> None:
    """A text item lays its text out anew even when it is the same."""
    if item.toPlainText() != text:
        item.setText(text)


def _middle(band: Band) -> float:
    return (band.begin_s + (band.end_s if band.end_s is not None else band.begin_s)) / 2


def _band_label(band: Band) -> str:
    name = word(PHASES, band.name).label
    return f"{name} {band.step}" if band.step > 1 else name
