"""Predicted, measured and error, by phase and meter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

from PySide6.QtCore import QAbstractTableModel, QModelIndex, QPersistentModelIndex, Qt, Slot
from PySide6.QtGui import QColor
from PySide6.QtWidgets import QAbstractItemView, QHeaderView, QTableView, QWidget

from gui.probe.plot import Levels
from gui.theme import font, theme
from gui.words import CPU_METERS, METERS, PHASES, word
from planner.footprint import METERS as METER_NAMES
from planner.units import format_bytes
from probes.measurement import Measurement

_NO_PARENT = QModelIndex()
_CLOSE, _NEAR = 0.05, 0.15
Index = QModelIndex | QPersistentModelIndex


@dataclass(frozen=True, slots=True)
class Comparison:
    """One meter of one phase; NaN where there is nothing to show. ``error`` is a fraction of the prediction."""

    phase: str
    meter: str
    predicted_bytes: float
    measured_bytes: float
    error: float
    on_cpu: bool


def compare(levels: Levels, measurement: Measurement | None, *, on_cpu: bool = False) -> tuple[Comparison, ...]:
    """Every phase predicted or measured, in the order of the prediction; ``on_cpu`` is where a run would be or was."""
    measured = {step.name: step.meters for step in measurement.phases} if measurement else {}
    errors = measurement.error() if measurement else {}
    names = [*levels, *(name for name in measured if name not in levels)]
    return tuple(
        Comparison(
            phase,
            meter,
            _number(levels.get(phase, {}).get(meter)),
            _number(measured.get(phase, {}).get(meter)),
            _number(errors.get(phase, {}).get(meter)),
            on_cpu,
        )
        for phase in names
        for meter in METER_NAMES
    )


class ComparisonModel(QAbstractTableModel):
    """Text in ``DisplayRole``, the raw number in ``UserRole``."""

    HEADERS = ("Phase", "Meter", "Predicted", "Measured", "Error")

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._rows: tuple[Comparison, ...] = ()

    @property
    def rows(self) -> tuple[Comparison, ...]:
        """What is shown."""
        return self._rows

    def show_rows(self, rows: tuple[Comparison, ...]) -> None:
        """Show ``rows``; they stay in place when phases and meters are the same."""
        same = [(row.phase, row.meter) for row in rows] == [(row.phase, row.meter) for row in self._rows]
        if not same:
            self.beginResetModel()
            self._rows = rows
            self.endResetModel()
        elif rows:
            self._rows = rows
            self.dataChanged.emit(self.index(0, 0), self.index(len(rows) - 1, len(self.HEADERS) - 1))

    def rowCount(self, parent: Index = _NO_PARENT) -> int:
        """One row per phase and meter."""
        return 0 if parent.isValid() else len(self._rows)

    def columnCount(self, parent: Index = _NO_PARENT) -> int:
        """Phase, meter, predicted, measured, error."""
        return 0 if parent.isValid() else len(self.HEADERS)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Column titles."""
        if orientation != Qt.Orientation.Horizontal or not 0 <= section < len(self.HEADERS):
            return None
        if role == Qt.ItemDataRole.DisplayRole:
            return self.HEADERS[section]
        return _alignment(section) if role == Qt.ItemDataRole.TextAlignmentRole else None

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """A cell in one of its roles."""
        if not index.isValid() or not 0 <= index.row() < len(self._rows):
            return None
        row, column = self._rows[index.row()], index.column()
        reader = _ROLES.get(Qt.ItemDataRole(role))
        return reader(row, column) if reader else None


class ComparisonTable(QTableView):
    """The table; it keeps the order of the phases."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.comparisons = ComparisonModel(self)
        self.setModel(self.comparisons)
        self.setAccessibleName("Predicted and measured memory")
        self.setFont(font(tabular=True))
        self.setShowGrid(False)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setTabKeyNavigation(False)
        self.verticalHeader().hide()
        self.verticalHeader().setDefaultSectionSize(22)
        self.horizontalHeader().setHighlightSections(False)
        header = self.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        for column, width in ((0, 84), (2, 88), (3, 88), (4, 62)):
            header.setSectionResizeMode(column, QHeaderView.ResizeMode.Fixed)
            self.setColumnWidth(column, width)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        theme().changed.connect(self._restyle)

    @Slot()
    def _restyle(self) -> None:
        self.viewport().update()


def _text(row: Comparison, column: int) -> str:
    if column == 0:
        return word(PHASES, row.phase).label
    if column == 1:
        return word(CPU_METERS if row.on_cpu else METERS, row.meter).label
    if column == 4:
        return "" if isnan(row.error) else f"{row.error:+.1%}".replace("%", " %").replace("-", "−")
    value = row.predicted_bytes if column == 2 else row.measured_bytes
    return "" if isnan(value) else format_bytes(value)


def _ink(row: Comparison, column: int) -> QColor | None:
    if column == 4 and not isnan(row.error):
        size = abs(row.error)
        return theme().colour("fits" if size <= _CLOSE else "tight" if size <= _NEAR else "over")
    return theme().colour("muted") if column == 1 else None


def _tip(row: Comparison, column: int) -> str | None:
    if column == 1:
        return word(CPU_METERS if row.on_cpu else METERS, row.meter).meaning
    if column in (2, 3):
        value = row.predicted_bytes if column == 2 else row.measured_bytes
        return None if isnan(value) else f"{value:,.0f} bytes"
    if column == 4 and row.on_cpu and row.meter != "allocated":
        return "On the CPU only allocated compares with a prediction for a GPU."
    return None


def _alignment(column: int) -> Qt.AlignmentFlag:
    side = Qt.AlignmentFlag.AlignRight if column > 1 else Qt.AlignmentFlag.AlignLeft
    return side | Qt.AlignmentFlag.AlignVCenter


def _raw(row: Comparison, column: int) -> object:
    return (row.phase, row.meter, row.predicted_bytes, row.measured_bytes, row.error)[column]


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else nan


_ROLES: dict[Qt.ItemDataRole, Callable[[Comparison, int], Any]] = {
    Qt.ItemDataRole.DisplayRole: _text,
    Qt.ItemDataRole.UserRole: _raw,
    Qt.ItemDataRole.ToolTipRole: _tip,
    Qt.ItemDataRole.ForegroundRole: _ink,
    Qt.ItemDataRole.TextAlignmentRole: lambda _row, column: _alignment(column),
    Qt.ItemDataRole.FontRole: lambda _row, column: font(bold=column == 4, tabular=True),
}
