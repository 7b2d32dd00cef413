"""Predicted, rehearsed, measured and error, by phase and meter."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

from PySide6.QtCore import QModelIndex, Qt, Signal, Slot
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QHeaderView, QWidget

from gui.cells import Cell, CellModel, CellTable, Column, dress
from gui.probe.plot import Levels
from gui.probe.rehearsed import Rehearsed
from gui.quiet_bar import QuietBar
from gui.theme import px, theme
from gui.translate import tr
from gui.units import format_bytes, signed_percent, units
from gui.words import word
from planner.footprint import METERS as METER_NAMES
from planner.words import CPU_METERS, METERS, PHASES
from probes.measurement import Measurement

_COLUMNS = (
    Column("Phase"), Column("Meter"), Column("Predicted", figures=True), Column("Rehearsed", figures=True),
    Column("Measured", figures=True), Column("Error", figures=True),
)  # fmt: skip
_ROW_HEIGHT = 22
_METER = 1
_LEVELS = (3, 4)
_LEAST_METER = 150
_CLOSE, _NEAR = 0.05, 0.15
_CPU_COMPARES = "On the CPU only allocated compares with a prediction."


@dataclass(frozen=True, slots=True)
class Comparison:
    """One meter of one phase; NaN where there is nothing to show.

    ``error`` is a fraction of the prediction: of what was measured, and while nothing is, of what was rehearsed.
    """

    phase: str
    meter: str
    predicted_bytes: float
    rehearsed_bytes: float
    measured_bytes: float
    error: float
    on_cpu: bool
    rank: int = 0


def compare(
    levels: Levels,
    measurement: Measurement | None,
    rehearsed: Rehearsed | None = None,
    *,
    on_cpu: bool = False,
    outside: bool = False,
) -> tuple[Comparison, ...]:
    """Every phase of any level, in the order of the prediction; ``on_cpu`` is where a run would be or was.

    ``outside``: it was watched from outside, where only what the process holds in all can be seen.
    """
    seen = ("device",) if outside else METER_NAMES
    measured = _only(seen, {step.name: step.meters for step in measurement.phases} if measurement else {})
    played = rehearsed.meters if rehearsed else {}
    errors = _only(seen, measurement.error()) if measurement else rehearsed.errors if rehearsed else {}
    names = dict.fromkeys([*levels, *played, *measured])
    first = tuple(
        Comparison(
            phase,
            meter,
            _number(levels, phase, meter),
            _number(played, phase, meter),
            _number(measured, phase, meter) or nan,
            _number(errors, phase, meter),
            on_cpu,
        )
        for phase in names
        for meter in METER_NAMES
    )
    return (*first, *_of_ranks(measurement, on_cpu=on_cpu)) if measurement else first


def _of_ranks(measurement: Measurement, *, on_cpu: bool) -> Iterator[Comparison]:
    """The peaks of every other rank, in the meter that compares."""
    meter = "allocated" if on_cpu else "device"
    for rank, run in sorted(measurement.ranks.items()):
        errors, levels = run.error(), _levels(run.prediction)
        for step in run.phases:
            predicted = _number(levels, step.name, meter)
            yield Comparison(step.name, meter, predicted, nan, step.meters[meter], _number(errors, step.name, meter), on_cpu, rank)


def _levels(prediction: Mapping[str, Any] | None) -> Levels:
    gpus = (prediction or {}).get("gpus") or [{}]
    return {phase["name"]: phase for phase in gpus[0].get("phases") or ()}


def _only(meters: Collection[str], table: Mapping[str, Mapping[str, float | None]]) -> Mapping[str, Mapping[str, float | None]]:
    return {phase: {meter: value for meter, value in row.items() if meter in meters} for phase, row in table.items()}


class ComparisonModel(CellModel):
    """Comparisons as rows."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(_COLUMNS, parent)
        self._rows: tuple[Comparison, ...] = ()

    @property
    def rows(self) -> tuple[Comparison, ...]:
        """What is shown."""
        return self._rows

    def show_rows(self, rows: tuple[Comparison, ...]) -> None:
        """Show ``rows``."""
        self._rows = rows
        self.show_cells([_cells(row) for row in rows])

    def tells(self, column: int) -> bool:
        """Whether any row has something in a column."""
        return any(self.cell(row, column).text for row in range(self.rowCount()))


class ComparisonTable(CellTable):
    """The table; it keeps the order of the phases. A row that becomes current picks its phase."""

    picked = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.comparisons = ComparisonModel(self)
        self._widths: dict[int, int] = {}
        dress(self, self.comparisons, _ROW_HEIGHT)
        self.setAccessibleName(tr("Predicted, rehearsed and measured memory"))
        self.setVerticalScrollBar(QuietBar(Qt.Orientation.Vertical))
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOn)
        self.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        self.horizontalHeader().setSectionResizeMode(_METER, QHeaderView.ResizeMode.Stretch)
        theme().changed.connect(self._begin_anew)
        units().changed.connect(self._begin_anew)
        self.selectionModel().currentRowChanged.connect(self._moved)

    def show_rows(self, rows: tuple[Comparison, ...]) -> None:
        """Show ``rows``."""
        self.comparisons.show_rows(rows)
        self._share_out()

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Share the room out anew."""
        if event.size().width() < event.oldSize().width():
            self._widths.clear()
        self._share_out()
        super().resizeEvent(event)

    @Slot()
    def _begin_anew(self) -> None:
        self._widths.clear()
        self._share_out()

    @Slot()
    def _share_out(self) -> None:
        """Names and figures whole; where there is little room, levels of which nothing is known are left out.

        Columns only grow: one that changes its width has Qt paint the table a second time.
        """
        for column in range(len(_COLUMNS)):
            if column != _METER:
                self._widths[column] = max(self._widths.get(column, 0), self.comparisons.width_wanted(column))
        wanted = self._widths
        cramped = self.viewport().width() - sum(wanted.values()) < px(_LEAST_METER)
        for column, width in wanted.items():
            if self.columnWidth(column) != width:
                self.setColumnWidth(column, width)
        for column in _LEVELS:
            self.setColumnHidden(column, cramped and not self.comparisons.tells(column))

    @Slot(QModelIndex, QModelIndex)
    def _moved(self, current: QModelIndex, _previous: QModelIndex) -> None:
        if current.isValid():
            self.picked.emit(self.comparisons.rows[current.row()].phase)


def _cells(row: Comparison) -> list[Cell]:
    phase, meter = word(PHASES, row.phase), word(CPU_METERS if row.on_cpu else METERS, row.meter)
    return [
        Cell(f"{phase.label} · GPU {row.rank}" if row.rank else phase.label, row.phase, phase.meaning),
        Cell(meter.label, row.meter, meter.meaning, "muted"),
        _size_cell(row.predicted_bytes),
        _size_cell(row.rehearsed_bytes),
        _size_cell(row.measured_bytes),
        _error_cell(row),
    ]


def _size_cell(value: float) -> Cell:
    return Cell("", value) if isnan(value) else Cell(format_bytes(value), value, f"{value:,.0f} bytes")


def _error_cell(row: Comparison) -> Cell:
    if isnan(row.error):
        tip = _CPU_COMPARES if row.on_cpu and row.meter != "allocated" else ""
        return Cell("", row.error, tr(tip), bold=True)
    size = abs(row.error)
    ink = "fits" if size <= _CLOSE else "tight" if size <= _NEAR else "over"
    text = signed_percent(row.error)
    told = tr("Rehearsed against predicted") if isnan(row.measured_bytes) else tr("Measured against predicted")
    return Cell(text, row.error, told, ink, bold=True)


def _number(table: Mapping[str, Mapping[str, float | None]], phase: str, meter: str) -> float:
    value = table.get(phase, {}).get(meter)
    return nan if value is None else float(value)
