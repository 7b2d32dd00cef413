"""The table of differences: inputs that differ, then every component and meter with its difference to the first plan."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

from PySide6.QtCore import Qt
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QHeaderView, QWidget

from gui.cells import Cell, CellModel, CellTable, Column, dress, translated
from gui.compare.difference import Figure, Input, differing_inputs, figures
from gui.form.fields import FIELDS
from gui.state import value_at
from gui.theme import px
from gui.translate import tr
from gui.units import format_bytes
from gui.words import word
from planner.footprint import METERS as METER_NAMES
from planner.footprint import Footprint
from planner.scenario import Scenario, parse_scenario
from planner.words import COMPONENTS, METERS, Word

_ROW_HEIGHT, _FIRST_WIDTH, _FIRST_SHARE = 24, 190, 0.3
_WIDEST = 420
"""Figures stay where the eye finds them from the name of their row."""
_SPECS = {spec.path: spec for spec in FIELDS}


class DifferenceTable(CellTable):
    """Plans across, what differs down."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.differences = CellModel([Column("")], self)
        dress(self, self.differences, _ROW_HEIGHT)
        self.setAccessibleName(tr("Differences between the plans"))
        self.horizontalHeader().setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self._inputs: Sequence[Input] = ()
        self._figures: Sequence[Figure] = ()
        self._filled = 0
        """The width for which the columns were shared out."""

    def show_plans(self, names: Sequence[str], footprints: Sequence[Footprint]) -> None:
        """Compare ``footprints``, called ``names``; the first is what the others are held against."""
        columns = (Column(tr("At the peak")), *(Column(name, figures=True) for name in names))
        self._inputs, self._figures = _told(differing_inputs(footprints), footprints), figures(footprints)
        if translated(columns) != self.differences.columns:
            self.differences.show_columns(columns)
            header = self.horizontalHeader()
            header.setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        self._fill()

    def resizeEvent(self, event: QResizeEvent) -> None:
        """What there is room for is another."""
        super().resizeEvent(event)
        if self.viewport().width() != self._filled:
            self._fill()

    def _fill(self) -> None:
        """Sizes with their differences; where these would be cut, the differences alone: what they differ from stands first."""
        self._filled = self.viewport().width()
        inputs = [_input_cells(one) for one in self._inputs]
        self.differences.show_cells([*inputs, *(_figure_cells(one) for one in self._figures)])
        room = max(px(_FIRST_WIDTH) * 0.7, min(px(_FIRST_WIDTH), self._filled * _FIRST_SHARE))
        first = min(round(room), self.differences.width_wanted(0))
        others = range(1, self.differences.columnCount())
        room = min((self._filled - first) // max(1, len(others)), px(_WIDEST))
        self.set_widths({0: first} | dict.fromkeys(others, room))
        if any(self.differences.figures_width(column) > room for column in others):
            self.differences.show_cells([*inputs, *(_figure_cells(one, alone=True) for one in self._figures)])


def _told(rows: Sequence[Input], footprints: Sequence[Footprint]) -> tuple[Input, ...]:
    """Without the fields that only some plans have, as far as these leave them as they were: another task has many."""
    scenarios: list[Scenario] = []
    kept = []
    for row in rows:
        if None in row.values:
            scenarios = scenarios or [parse_scenario(footprint.scenario) for footprint in footprints]
            if not any(_matters(row.path, one) for one, value in zip(scenarios, row.values, strict=True) if value is not None):
                continue
        kept.append(row)
    return tuple(kept)


def _matters(path: str, scenario: Scenario) -> bool:
    """Whether the form shows the field without being unfolded, or it was set."""
    spec = _SPECS.get(path)
    if spec is not None and not spec.advanced and spec.suits(scenario):
        return True
    now, usual = scenario, Scenario(scenario.model, scenario.task)
    try:
        return bool(value_at(now, path) != value_at(usual, path))
    except AttributeError:  # an option of an engine: it is there because it was set
        return True


def _input_cells(row: Input) -> list[Cell]:
    spec = _SPECS.get(row.path)
    tip = "\n".join(filter(None, (row.path, tr(spec.tip) if spec else "", tr("An input that differs"))))
    label = tr(spec.label).replace("&", "") if spec else row.path.rpartition(".")[2]
    values = [Cell(_shown(value), _raw(value), f"{label}: {_shown(value)}", bold=True) for value in row.values]
    return [Cell(label, row.path, tip, "accent"), *values]


def _figure_cells(row: Figure, *, alone: bool = False) -> list[Cell]:
    named: Word = word(METERS if row.name in METER_NAMES else COMPONENTS, row.name)
    head = Cell(named.label, row.name, named.meaning, swatch="" if row.name in METER_NAMES else row.name)
    return [head, *(_size_cell(size, change, alone=alone) for size, change in zip(row.sizes, row.differences, strict=True))]


def _size_cell(size: int | None, change: int | None, *, alone: bool) -> Cell:
    if size is None:
        return Cell(tr("N/A"), nan, tr("No phase of this plan could be sized"), "muted")
    signed = f"{'+' if change and change > 0 else ''}{format_bytes(change)}" if change else ""
    text = signed if signed and alone else f"{format_bytes(size)}   ({signed})" if signed else format_bytes(size)
    ink = "text" if not change else "over" if change > 0 else "fits"
    return Cell(text, size, "\n".join(filter(None, (format_bytes(size), tr("{} bytes").format(f"{size:,}"), signed))), ink)


def _raw(value: object) -> object:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else _shown(value)


def _shown(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return tr("on") if value else tr("off")
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
