"""The Probe tab: rehearse and measure the plan, see both beside the prediction, replay recordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import Qt, Slot
from PySide6.QtGui import QCloseEvent, QShowEvent
from PySide6.QtWidgets import QFileDialog, QFrame, QSplitter, QVBoxLayout, QWidget

from gui.export import ChartMenu, TableMenu
from gui.operations import Operation
from gui.probe.controls import Controls
from gui.probe.key import PlotKey
from gui.probe.live import LiveProbe
from gui.probe.plot import ProbePlot
from gui.probe.rehearsed import Rehearsed, ask_rehearsal
from gui.probe.run import Run
from gui.probe.shown import Shown, title_of
from gui.probe.status import StatusLine
from gui.probe.table import ComparisonTable
from gui.probe.watch_dialog import WatchDialog, one_line
from gui.probe.watching import LiveWatch, keep_watch
from gui.probe.work import Opened, keep_ended, open_recording, watched_plan, with_prediction
from gui.state import Selection
from gui.theme import set_role
from gui.translate import tr
from gui.units import units
from gui.words import word
from planner.commands import commands_of
from planner.words import PHASES
from probes.history import keep
from probes.measurement import Measurement
from probes.recording import Event, recordings_folder
from probes.request import Request, predict_run, request
from probes.session import ProbeSession
from probes.watch import Attach, Launch, Watch

if TYPE_CHECKING:
    from gui.context import Context
    from resources.plan import Plan

_RAN_ON_CPU = "Ran on CPU, no GPU was used."
_REHEARSED = "Rehearsed on fake tensors, no GPU was used."


class ProbeTab(QWidget):
    """Holds one run at a time, live or replayed, and the last of the other kind beside it."""

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._state, self._operations = context.state, context.operations
        self.controls = Controls(context.machine)
        self.plot = ProbePlot()
        self.status = StatusLine()
        self.table = ComparisonTable()
        self.live = LiveProbe(self)
        self.watch = LiveWatch(self)
        self._machine = context.machine
        self._key = PlotKey()
        self._shown = Shown()
        self._now = Run()
        self._rehearsing = False
        ChartMenu(self.plot)
        TableMenu(self.table, self.table.comparisons)
        self._lay_out()
        self._connect()
        self._show_plan()

    @property
    def measurement(self) -> Measurement | None:
        """The measurement on screen."""
        return self._shown.measurement

    @property
    def rehearsed(self) -> Rehearsed | None:
        """The rehearsal on screen."""
        return self._shown.rehearsed

    @Slot()
    def measure(self) -> None:
        """Run the plan on the chosen device."""
        controls = self.controls
        if controls.device.value() == controls.CARD:
            self.status.complain(tr("This card is not in this machine: choose another device to measure on, or rehearse."))
        elif (plan := self._ready_plan()) is not None:
            work = partial(request, plan, str(controls.device.value()), controls.layers.value(), controls.new_tokens.value(),
                           controls.budget_bytes)  # fmt: skip
            self._start(work, tr("Starting the probe …"))

    @Slot()
    def rehearse(self) -> None:
        """Run the plan on fake tensors, as the chosen device would."""
        controls = self.controls
        if (plan := self._ready_plan()) is not None:
            work = partial(ask_rehearsal, plan, str(controls.device.value()), controls.layers.value(), controls.new_tokens.value())
            self._start(work, tr("Starting the rehearsal …"))

    @Slot()
    def ask_watch(self) -> WatchDialog | None:
        """Ask whom to watch."""
        if self._ready_plan() is None:
            return None
        lines = [one_line(found.text) for found in commands_of(self._state.settled) if not found.file]
        dialog = WatchDialog(self._machine.holders(), next((line for line in lines if "\n" not in line), ""), self)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.chosen.connect(self.begin_watch)
        dialog.show()
        return dialog

    @Slot(object)
    def begin_watch(self, target: Launch | Attach) -> None:
        """Watch a process or a command, beside the plan."""
        plan = self._ready_plan()
        if plan is not None:
            self.controls.set_running(True)
            self.status.say(tr("Beginning to watch …"))
            work = partial(watched_plan, plan, target)
            self._operations.start(Operation("probe", work, self._begin_watch, self._fail))

    @Slot(object)
    def _begin_watch(self, found: tuple[Launch | Attach, str, Mapping[str, Any]]) -> None:
        target, phase, prediction = found
        self._rehearsing = False
        self._open(prediction["scenario"], prediction, on_cpu=not self._machine.readings, title=_watch_title(target))
        self._shown.measure(Measurement(prediction["scenario"], prediction), self._now, outside=True)
        self._refresh(self._now.total_bytes)
        self.watch.start(target, phase, prediction["scenario"], prediction)

    def _ready_plan(self) -> Plan | None:
        """The plan, unless something stands in the way, which is said."""
        if self.live.running or self.watch.running or self._operations.running("probe"):
            return None
        if self._state.plan is None or not self._state.current:
            self.status.complain(self._state.trouble or tr("There is no plan to run yet."))
            return None
        if self.controls.bad:
            self.status.complain(
                tr("{}: must be a whole number of at least 1, or empty.").format(tr(" and ").join(map(tr, self.controls.bad)))
            )
            return None
        return self._state.plan

    def _start(self, work: partial[Request], words: str) -> None:
        self.controls.set_running(True)
        self.status.say(words)
        self._operations.start(Operation("probe", partial(with_prediction, work), self._begin, self._fail))

    @Slot()
    def stop(self) -> None:
        """End the run."""
        self.live.stop()
        self.watch.stop()
        if self.live.running or self.watch.running:
            self.status.say(tr("Stopping …"))

    def replay(self, path: Path) -> None:
        """Show a recording."""
        if self.live.running or self.watch.running:
            self.status.complain(tr("A run is under way: stop it before opening a recording."))
            return
        self._operations.start(Operation("probe", partial(open_recording, path), self._show_recorded, self._fail))

    def showEvent(self, event: QShowEvent) -> None:
        """Catch up with the plan."""
        super().showEvent(event)
        self._show_plan()

    def closeEvent(self, event: QCloseEvent) -> None:
        """End what runs."""
        self.live.close()
        self.watch.close()
        super().closeEvent(event)

    def _lay_out(self) -> None:
        card = QFrame()
        set_role(card, "card")
        inside = QVBoxLayout(card)
        inside.setContentsMargins(6, 8, 10, 6)
        inside.setSpacing(2)
        inside.addWidget(self._key)
        inside.addWidget(self.plot, 1)
        split = QSplitter(Qt.Orientation.Vertical, childrenCollapsible=False, handleWidth=10)
        split.addWidget(card)
        split.addWidget(self.table)
        split.setStretchFactor(0, 3)
        split.setStretchFactor(1, 2)
        split.setSizes([420, 262])
        card.setMinimumHeight(190)
        self.table.setMinimumHeight(110)
        column = QVBoxLayout(self)
        column.setContentsMargins(12, 12, 12, 12)
        column.setSpacing(10)
        column.addWidget(self.controls)
        column.addWidget(split, 1)
        column.addWidget(self.status)

    def _connect(self) -> None:
        self.controls.measure_asked.connect(self.measure)
        self.controls.rehearse_asked.connect(self.rehearse)
        self.controls.stop_asked.connect(self.stop)
        self.controls.changed.connect(self._show_plan)
        self.status.watch_asked.connect(self.ask_watch)
        self.status.open_asked.connect(self._ask_recording)
        self.live.told.connect(self._take)
        self.live.rehearsed.connect(self._take_rehearsed)
        self.live.ended.connect(self._ended)
        self.watch.told.connect(self._take)
        self.watch.ended.connect(self._watch_ended)
        self._state.plan_changed.connect(self._show_plan)
        units().changed.connect(self._show_units)
        self.plot.picked.connect(self._pick_phase)
        self.table.picked.connect(self._pick_phase)

    @Slot()
    def _show_plan(self) -> None:
        """Before a run: the prediction that it will be held against."""
        plan = self._state.plan
        if plan is None:
            return
        settled = self._state.settled
        inference = settled.inference.new_tokens if settled.task == "inference" else None
        self.controls.set_plan(settled.task, plan.gpu.name, len(plan.architecture.decoder.layers), inference)
        if self._shown.empty and self.isVisible():
            self._preview(plan)

    def _preview(self, plan: Plan) -> None:
        """The levels that a run with these controls will be held against."""
        controls = self.controls
        if controls.bad:
            return
        device = str(controls.device.value())
        prediction = predict_run(plan, device, controls.layers.value(), controls.new_tokens.value())
        where = plan.gpu.name if device == controls.CARD else controls.device.currentText().partition("  ")[0]
        self._shown.preview(prediction, tr("Predicted for {}").format(where), on_cpu=device == "cpu")
        self._refresh()
        self.plot.draw()

    def _refresh(self, capacity_bytes: int | None = None) -> None:
        """Show all that there is to show."""
        shown = self._shown
        self._key.set_contents(on_cpu=shown.on_cpu, rehearsed=shown.rehearsed is not None, title=shown.title)
        self.plot.show_run(shown.run)
        self.plot.set_levels(shown.levels, capacity_bytes)
        self.plot.set_rehearsed(shown.rehearsed)
        self._show_table()

    @Slot()
    def _show_units(self) -> None:
        self._show_table()
        self.plot.restyle()

    def _show_table(self) -> None:
        self.table.show_rows(self._shown.rows())

    @Slot(object)
    def _begin(self, found: tuple[Request, Mapping[str, object]]) -> None:
        asked, prediction = found
        order = asked.order
        self._rehearsing = order["mode"] == "rehearse"
        on_cpu = (order["personality"] if self._rehearsing else order["device"]) == "cpu"
        self._open(order["scenario"], prediction, on_cpu=on_cpu)
        if self._rehearsing:
            self._shown.rehearsed = None
        else:
            self._shown.measure(Measurement(order["scenario"], prediction), self._now)
        self._refresh((order.get("card") or {}).get("capacity_bytes"))
        self.live.start(asked, prediction)

    def _open(
        self, scenario: Mapping[str, object], prediction: Mapping[str, object] | None, *, on_cpu: bool, title: str = ""
    ) -> None:
        self._shown.open(prediction, title or title_of(scenario), on_cpu=on_cpu)
        self._now = Run()
        self.status.show_notes([])
        self.status.show_path(None)

    @Slot(object)
    def _take(self, events: Sequence[Event]) -> None:
        """Events of the run under way. Those of a measurement are drawn; those of a rehearsal tell how far it is."""
        for event in events:
            self._now.take(event)
        kinds = {event.get("event") for event in events}
        if not self._rehearsing and self._shown.measurement is not None:
            for event in events:
                self._shown.measurement.add(event)
            self.plot.mark_dirty()
            if "hello" in kinds:
                self.plot.set_levels(self._shown.levels, self._now.total_bytes)
            if kinds & {"phase", "outcome"}:
                self._show_table()
        self.status.show_path(self.live.recording_path)
        if kinds & {"note", "outcome"}:
            self.status.show_notes(self._now.notes)
        if kinds & {"phase", "progress", "hello"}:
            self.status.say(self._doing())

    @Slot(object)
    def _take_rehearsed(self, rehearsed: Rehearsed) -> None:
        self._shown.rehearsed = rehearsed
        self.plot.set_rehearsed(rehearsed)
        self._key.set_contents(on_cpu=self._shown.on_cpu, rehearsed=True, title=self._shown.title)
        self._show_table()

    def _doing(self) -> str:
        if self.watch.running:
            return self._shown.title
        run, verb = self._now, "Rehearsing" if self._rehearsing else "Measuring"
        where = "as on CPU" if self._rehearsing and self._shown.on_cpu else f"as on {self._card}" if self._rehearsing else ""
        where = where or ("on CPU" if run.on_cpu else f"on {run.device.get('name', 'the device')}")
        what = word(PHASES, run.phase).label if run.phase else run.progress.capitalize() or "Starting"
        count = f" ({run.progress})" if run.phase and run.progress else ""
        return f"{verb} {where}: {what}{count}"

    @property
    def _card(self) -> str:
        return self._state.plan.gpu.name if self._state.plan else "the card"

    @Slot(object)
    def _ended(self, session: ProbeSession) -> None:
        self.controls.set_running(False)
        self._show_outcome()
        ended = self.live.rehearsal or self._shown.measurement
        if ended is not None:
            work = partial(keep_ended, partial(keep, ended), session)
            self._operations.start(Operation("keep run", work, self._kept, self._fail, lasting=True))

    @Slot(object)
    def _watch_ended(self, watch: Watch) -> None:
        self.controls.set_running(False)
        self._show_outcome()
        self.status.show_path(watch.recording.path)
        work = partial(keep_ended, partial(keep_watch, self.watch.watched), watch)
        self._operations.start(Operation("keep run", work, self._kept, self._fail, lasting=True))

    @Slot(object)
    def _kept(self, trouble: str) -> None:
        """The run is in the history, or it is said why not."""
        if trouble:
            self.status.show_notes([*self._now.notes, trouble])
        self._state.run_kept.emit()

    def _show_outcome(self) -> None:
        shown = self._shown
        if self._rehearsing and shown.rehearsed is not None and shown.rehearsed.outcome is not None:
            answered = shown.rehearsed.outcome.get("kind") in ("completed", "out_of_memory")
            self.status.show_outcome(shown.rehearsed.outcome, tr(_REHEARSED) if answered else "")
            self.status.show_notes([*shown.rehearsed.notes])
            if shown.rehearsed.highest is not None:
                self._pick_phase(shown.rehearsed.highest.phase)
        elif self._now.outcome is not None:
            self.status.show_outcome(self._now.outcome, tr(_RAN_ON_CPU) if self._now.on_cpu and not self._shown.outside else "")
        self._show_table()

    @Slot(str)
    def _pick_phase(self, phase: str) -> None:
        """Have the why panel open the rehearsed peak of a phase, or explain the prediction of it."""
        rehearsed = self._shown.rehearsed
        self._state.select(Selection(None, phase, 0, rehearsed.peak_of(phase) if rehearsed else None))

    @Slot(object)
    def _fail(self, error: Exception) -> None:
        self.controls.set_running(False)
        self.status.complain(str(error) or repr(error))

    @Slot()
    def _ask_recording(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, tr("Open recording"), str(recordings_folder()), "Recordings (*.jsonl)")
        if path:
            self.replay(Path(path))

    @Slot(object)
    def _show_recorded(self, opened: Opened) -> None:
        header, folded = opened.recorded.header, opened.folded
        prediction = header.get("prediction")
        self._rehearsing = opened.rehearsed is not None
        self._open(folded.scenario, prediction if isinstance(prediction, dict) else None, on_cpu=folded.on_cpu)
        self._now = opened.run
        if opened.rehearsed is not None:
            self._shown.rehearsed = opened.rehearsed
            self._refresh(((header.get("order") or {}).get("card") or {}).get("capacity_bytes"))
        else:
            self._shown.measure(folded, self._now)
            self._refresh(self._now.total_bytes)
        self.status.show_path(opened.path)
        torn = [tr("Its last line was torn and is left out.")] if opened.recorded.skipped_lines else []
        self.status.show_notes([*self._now.notes, *torn])
        if self._now.outcome is None:
            where = tr(", in {}").format(word(PHASES, self._now.phase).label) if self._now.phase else ""
            self.status.complain(tr("The recording ends without an outcome{}.").format(where))
        self._show_outcome()


def _watch_title(target: Launch | Attach) -> str:
    return tr("Watching {}").format(target.command[0] if isinstance(target, Launch) else tr("process {}").format(target.pid))
