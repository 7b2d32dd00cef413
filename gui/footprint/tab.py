"""The Footprint tab: the parts together, each showing the state's plan and selection."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from PySide6.QtCore import Slot
from PySide6.QtGui import QResizeEvent, QShowEvent
from PySide6.QtWidgets import QFrame, QHBoxLayout, QVBoxLayout, QWidget

from gui.cells import TABLE_STRETCH
from gui.export import ChartMenu, TableMenu
from gui.footprint.all_bars import AllBars
from gui.footprint.bars import Bars
from gui.footprint.figures import Figures
from gui.footprint.legend import ERROR_BAND, OVER, Legend
from gui.footprint.rows import rows_of
from gui.footprint.table import ComponentTable, Line, Reason, lines_of, reasons_of
from gui.footprint.verdict import VerdictCard
from gui.form.editors import SEGMENT_HEIGHT, Segments
from gui.settle import settle
from gui.state import Selection
from gui.theme import px, set_role, theme
from gui.translate import tr
from gui.units import format_bytes, units
from gui.words import word
from planner.footprint import COMPONENTS as COMPONENT_ORDER
from planner.footprint import HOST
from planner.footprint import METERS as METER_NAMES
from planner.words import METERS, PHASES

if TYPE_CHECKING:
    from gui.context import Context
    from planner.footprint import Host, Phase

_PHASE_WIDTH, _LEAST_PHASE_WIDTH, _USUAL_PHASES, _FIGURES_WIDTH = 84, 62, 4, 150
_NO_PLAN = "As soon as the scenario can be planned, what it takes is listed here."


class FootprintTab(QWidget):
    """Where the bytes go."""

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._state = context.state
        self._machine = context.machine
        self._reasons: tuple[tuple[str, int], dict[str, Reason]] = (("", 0), {})
        self.verdict = VerdictCard()
        self.bars = Bars()
        self.table = ComponentTable()
        self.phases = Segments(width=_PHASE_WIDTH)
        self._legend = Legend()
        self._all_bars = AllBars(self.bars)
        self._meters = Figures()
        ChartMenu(self.bars)
        TableMenu(self.table, self.table.components)
        self._lay_out()
        self._connect()
        self._show_plan()

    def _lay_out(self) -> None:
        self._chart = QFrame()
        set_role(self._chart, "card")
        chart = QVBoxLayout(self._chart)
        chart.setContentsMargins(8, 10, 12, 8)
        chart.setSpacing(6)
        chart.addWidget(self._all_bars)
        chart.addWidget(self._legend)
        row = QHBoxLayout()
        self._room = _Room(self.phases)
        row.addWidget(self._room)
        row.addWidget(self._meters, 1)
        column = QVBoxLayout(self)
        column.setContentsMargins(12, 12, 12, 12)
        column.setSpacing(10)
        column.addWidget(self.verdict)
        column.addWidget(self._chart)
        column.addLayout(row)
        column.addWidget(self.table, TABLE_STRETCH)
        column.addStretch(1)

    def _connect(self) -> None:
        state = self._state
        state.plan_changed.connect(self._show_plan)
        state.explained.connect(self._show_selection)
        state.selection_changed.connect(self._show_selection)
        state.faults_changed.connect(self._show_currency)
        state.busy_changed.connect(self._show_currency)
        self._machine.changed.connect(self._show_plan)
        self._machine.free_changed.connect(self._show_plan)
        units().changed.connect(self._show_plan)
        self.bars.picked.connect(state.select)
        self.table.picked.connect(self._pick_component)
        self.table.hovered.connect(self.bars.point_at)
        self.phases.edited.connect(self._pick_phase)

    def showEvent(self, event: QShowEvent) -> None:
        """Catch up with the plan."""
        super().showEvent(event)
        self._show_plan()

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Phases and figures share a row."""
        super().resizeEvent(event)
        self._room.restyle()
        self._all_bars.share(self.height())

    @Slot()
    def _show_plan(self) -> None:
        plan = self._state.plan
        if plan is None:
            self._show_currency()
        if plan is None or not self.isVisible():
            return
        name, machine = plan.gpu.name, self._machine
        now = machine.now_of(name, self._state.settled.hardware.gpus)
        self.verdict.show_footprint(plan.footprint, plan.cards, simulated=not machine.has(name), now=now)
        names = [phase.name for phase in plan.footprint.gpus[0].phases]
        self._room.keep(len(names))
        self.phases.set_choices([(name, word(PHASES, name).label, word(PHASES, name).meaning) for name in names])
        self._show_currency()
        self._show_selection()

    @Slot()
    def _show_currency(self) -> None:
        self.bars.set_dimmed(not self._state.current)
        self.verdict.set_trouble(self._state.trouble, "over" if self._state.faults else "muted")
        self.table.say_when_empty(tr(_NO_PLAN) if self._state.plan is None else "")

    @Slot()
    def _show_selection(self) -> None:
        if not self.isVisible():
            return
        shown, footprint = self._state.shown_phase(), self._state.footprint
        if footprint is None:
            return
        rows = rows_of(footprint, self._state.selection.phase, self._free())
        present = {name for row in rows for name, _ in row.parts}
        self.bars.show_rows(rows)
        self._all_bars.fit()
        self.bars.set_chosen(replace(self._state.selection, gpu=shown[0].index) if shown else self._state.selection)
        signs = (
            *([ERROR_BAND] if footprint.uncertainty_bytes else []),
            *([OVER] if len({row.capacity_bytes for row in rows if row.capacity_bytes}) == 1 else []),
        )
        self._legend.show_components((*(name for name in COMPONENT_ORDER if name in present), *signs))
        if shown is None:
            self.table.components.show_lines(())
            self._meters.show_parts(())
            settle(self, self._chart, self._room)
            return
        gpu, phase = shown
        self.phases.set_value(phase.name)
        self.table.components.show_lines(self._lines(phase, gpu.index))
        self.table.choose(self._state.selection.component)
        if gpu.index == HOST:
            self._meters.show_parts(_host_words(footprint.host))
        else:
            whose = tr("GPU {}").format(gpu.index) if len(footprint.gpus) > 1 else ""
            self._meters.show_parts(_meter_words(phase), whose)
        settle(self, self._chart, self._room)

    def _free(self) -> tuple[int | None, ...]:
        plan = self._state.plan
        return tuple(reading.memory.free_bytes for reading in self._machine.readings_of(plan.gpu.name)) if plan else ()

    def _lines(self, phase: Phase, gpu: int) -> tuple[Line, ...]:
        """Until the terms of an edit have come, the formulas of the phase stay as they were."""
        terms = self._state.terms
        if terms is not None:
            self._reasons = ((phase.name, gpu), reasons_of(phase, terms, gpu))
        return lines_of(phase, self._reasons[1] if self._reasons[0] == (phase.name, gpu) else {})

    @Slot(str)
    def _pick_component(self, component: str) -> None:
        now = self._state.selection
        self._state.select(Selection(component, now.phase, now.gpu))

    @Slot(object)
    def _pick_phase(self, phase: object) -> None:
        now = self._state.selection
        self._state.select(Selection(now.component, str(phase), None if now.gpu == HOST else now.gpu))


def _meter_words(phase: Phase) -> tuple[str, ...]:
    return tuple(f"{word(METERS, name).label} {format_bytes(phase.meter(name))}" for name in METER_NAMES)


def _host_words(host: Host) -> tuple[str, ...]:
    loading = (tr("While loading {}").format(format_bytes(host.load_bytes)),) if host.load_bytes else ()
    return (tr("Host memory {}").format(format_bytes(host.bytes)), *loading)


class _Room(QWidget):
    """Room for the phases of any task: a change of task must not lay the whole window out anew."""

    def __init__(self, phases: Segments) -> None:
        super().__init__()
        self._phases, self._count = phases, _USUAL_PHASES
        line = QHBoxLayout(self)
        line.setContentsMargins(0, 0, 0, 0)
        line.addWidget(phases)
        line.addStretch(1)
        theme().changed.connect(self.restyle)
        self.restyle()

    def keep(self, count: int) -> None:
        """Room for so many, and for as many as most tasks have."""
        if max(count, _USUAL_PHASES) != self._count:
            self._count = max(count, _USUAL_PHASES)
            self.restyle()

    @Slot()
    def restyle(self) -> None:
        """Phases are narrower where the figures beside them need the room."""
        whole = self.parentWidget().width() * 100 // theme().percent - _FIGURES_WIDTH if self.parentWidget() else 0
        width = min(_PHASE_WIDTH, max(_LEAST_PHASE_WIDTH, whole // self._count))
        self._phases.set_width(width)
        self.setFixedSize(self._count * px(width), px(SEGMENT_HEIGHT))
