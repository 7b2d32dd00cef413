"""The runs as a sortable table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from math import nan
from typing import Any

from PySide6.QtCore import QItemSelection, Qt, Signal, Slot
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QAbstractItemView, QHeaderView, QWidget

from gui.cells import Cell, CellModel, CellTable, Column, dress
from gui.theme import px
from gui.translate import tr
from gui.units import format_bytes, signed_percent
from resources.history import Run

_COLUMNS = (
    Column("When"), Column("Model"), Column("Kind"), Column("Workload"), Column("Where"), Column("Predicted", figures=True),
    Column("Took", figures=True), Column("Error", figures=True), Column("Outcome"), Column("Tags"),
)  # fmt: skip
_WIDTHS = {0: 96, 2: 82, 3: 78, 5: 80, 6: 78, 7: 62, 8: 102, 9: 90}
_WORKLOAD, _TAGS, _ROOM_FOR_TAGS = 3, 9, 640
_ROOM_FOR = {4: 860, 3: 640, 2: 600, 5: 560}
"""Columns that give way where the table is narrower; the tool tip of the model tells the same."""
_ROW_HEIGHT = 26
_CLOSE, _NEAR = 0.05, 0.15
_KINDS = {"measure": "Measured", "rehearse": "Rehearsed", "predict": "Predicted"}
_OUTCOMES = {
    "completed": ("Completed", "fits"),
    "out_of_memory": ("Out of memory", "over"),
    "stopped": ("Stopped", "muted"),
    "kept": ("Kept", "muted"),
}


class RunModel(CellModel):
    """Runs as rows, sorted by their raw values."""

    shown = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__([Column(tr(column.heading), column.figures) for column in _COLUMNS], parent)
        self._runs: list[Run] = []
        self._column, self._descending = 0, True

    def show_runs(self, runs: Sequence[Run]) -> None:
        """Show ``runs`` in the order asked for last."""
        raw = _RAW[self._column]
        self._runs = sorted(runs, key=lambda run: (run.created, run.id), reverse=True)
        self._runs.sort(key=lambda run: _order(raw(run)), reverse=self._descending)
        stayed = self._put([_Row(run) for run in self._runs])
        if stayed:
            self.dataChanged.emit(self.index(0, 0), self.index(len(stayed) - 1, len(_COLUMNS) - 1))
        self.shown.emit()

    def sort(self, column: int, order: Qt.SortOrder = Qt.SortOrder.AscendingOrder) -> None:
        """Sort by a column, now and from now on."""
        asked = (column, order == Qt.SortOrder.DescendingOrder)
        if asked != (self._column, self._descending):
            self._column, self._descending = asked
            self.show_runs(self._runs)

    @property
    def tagged(self) -> bool:
        """Whether any run has tags."""
        return any(run.tags for run in self._runs)

    def run(self, row: int) -> Run:
        """The run of a row."""
        return self._runs[row]


class _Row(Sequence[Cell]):
    """A run's cells, made when they are first looked at: of thousands only a screenful ever is."""

    def __init__(self, run: Run) -> None:
        self._run = run

    @cached_property
    def _made(self) -> list[Cell]:
        return _cells(self._run)

    def __getitem__(self, column: Any) -> Any:
        return self._made[column]

    def __len__(self) -> int:
        return len(_COLUMNS)


class RunTable(CellTable):
    """``chosen`` whenever other rows are selected, ``opened`` on a double click or Return."""

    chosen = Signal()
    opened = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.runs = RunModel(self)
        dress(self, self.runs, _ROW_HEIGHT)
        self.setAccessibleName(tr("Runs"))
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.setSortingEnabled(True)
        self.sortByColumn(0, Qt.SortOrder.DescendingOrder)
        header = self.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        for column, width in _WIDTHS.items():
            header.setSectionResizeMode(column, QHeaderView.ResizeMode.Interactive)
            self.setColumnWidth(column, px(width))
        self.selectionModel().selectionChanged.connect(self._changed)
        self.activated.connect(self.opened)
        self.runs.shown.connect(self._show_tags)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """What there is no room for is left out."""
        for column, width in _ROOM_FOR.items():
            self.setColumnHidden(column, self.width() < px(width))
        self._show_tags()
        super().resizeEvent(event)

    @Slot()
    def _show_tags(self) -> None:
        tagged = self.runs.tagged and self.width() >= px(_ROOM_FOR_TAGS)
        self.setColumnHidden(_TAGS, not tagged)
        self.setColumnHidden(_WORKLOAD, self.width() < px(_ROOM_FOR[4 if tagged else _WORKLOAD]))

    def selected(self) -> list[Run]:
        """The selected runs from top to bottom."""
        rows = {row for part in self.selectionModel().selection() for row in range(part.top(), part.bottom() + 1)}
        return [self.runs.run(row) for row in sorted(rows)]

    @Slot(QItemSelection, QItemSelection)
    def _changed(self, _now: QItemSelection, _before: QItemSelection) -> None:
        self.chosen.emit()


def _cells(run: Run) -> list[Cell]:
    outcome, ink = _OUTCOMES.get(run.outcome, (run.outcome.replace("_", " ").capitalize(), "tight"))
    when, model, level, workload, where, predicted, took, error, ended, tags = (raw(run) for raw in _RAW)
    return [
        Cell(_when(when), when, when),
        Cell(
            model.rsplit("/", 1)[-1],
            model,
            "\n".join(filter(None, (run.model, f"{run.task} · {run.engine}", where, run.tags))),
            bold=True,
        ),
        Cell(tr(_KINDS.get(level, level)), level, ink="muted"),
        Cell(tr(run.task.capitalize()), workload, f"{run.task} · {run.engine}", "muted"),
        Cell(where, where, f"{where}\n{run.gpu}", "muted"),
        _size(predicted),
        _size(took),
        _error(error),
        Cell(tr(outcome), ended, run.verdict, ink),
        Cell(tags, tags, tags, "muted"),
    ]


_RAW: tuple[Callable[[Run], Any], ...] = (
    lambda run: run.created, lambda run: run.model, lambda run: run.level, lambda run: f"{run.task} {run.engine}",
    lambda run: run.device or run.gpu, lambda run: run.predicted_allocated_bytes, lambda run: run.allocated_bytes,
    lambda run: run.error, lambda run: run.outcome, lambda run: run.tags,
)  # fmt: skip
"""What each column tells of a run, and sorts by."""


def _size(size: int | None) -> Cell:
    return (
        Cell(tr("N/A"), nan, "", "muted")
        if size is None
        else Cell(format_bytes(size), size, tr("{:,} bytes allocated").format(size))
    )


def _error(error: float | None) -> Cell:
    if error is None:
        return Cell("", nan)
    ink = "fits" if abs(error) <= _CLOSE else "tight" if abs(error) <= _NEAR else "over"
    return Cell(signed_percent(error), error, tr("Allocated: measured against predicted"), ink, bold=True)


def _when(created: str) -> str:
    """Local time, as short as it can be told."""
    try:
        local = datetime.fromisoformat(created).astimezone()
        return local.strftime("%d %b %H:%M" if local.year == datetime.now(UTC).year else "%d %b %Y")
    except ValueError:
        return created


def _order(raw: Any) -> tuple[bool, Any]:
    """What is not known goes to one end; words regardless of case."""
    raw = nan if raw is None else raw
    if isinstance(raw, int | float):
        return (raw == raw, 0.0 if raw != raw else raw)  # noqa: PLR0124  NaN
    return (bool(raw), str(raw).lower())
