"""The Probe tab: measure the plan on a device here, see it live beside the prediction, replay recordings."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import Qt, Slot
from PySide6.QtGui import QCloseEvent, QShowEvent
from PySide6.QtWidgets import QFileDialog, QFrame, QSplitter, QVBoxLayout, QWidget

from gui.operations import Operation
from gui.probe.controls import Controls
from gui.probe.key import PlotKey
from gui.probe.live import LiveProbe
from gui.probe.plot import Levels, ProbePlot
from gui.probe.run import Run
from gui.probe.status import StatusLine
from gui.probe.table import ComparisonTable, compare
from gui.theme import set_role
from gui.words import PHASES, word
from planner.footprint import METERS, Footprint
from probes.measurement import Measurement
from probes.recording import Event, Recorded, read_recording, recordings_folder
from probes.request import Request, predict_run, request

if TYPE_CHECKING:
    from gui.context import Context
    from resources.plan import Plan


class ProbeTab(QWidget):
    """Holds one run at a time, live or replayed."""

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._state, self._operations = context.state, context.operations
        self.controls = Controls(context.machine)
        self.plot = ProbePlot()
        self.status = StatusLine()
        self.table = ComparisonTable()
        self.live = LiveProbe(self)
        self._key = PlotKey()
        self._run: Run | None = None
        self._measurement: Measurement | None = None
        self._levels: Levels = {}
        self._on_cpu = True
        self._lay_out()
        self._connect()
        self._show_plan()

    @property
    def measurement(self) -> Measurement | None:
        """The run on screen."""
        return self._measurement

    @Slot()
    def measure(self) -> None:
        """Run the plan on the chosen device."""
        plan = self._state.plan
        if self.live.running or self._operations.running("probe"):
            return
        if plan is None or not self._state.current:
            self.status.complain("The scenario has faults: mend them in the form, then measure.")
            return
        controls = self.controls
        bad = [name for name, value in (("Layers", controls.layers.value()), ("New tokens", controls.new_tokens.value()),
               ("Budget", controls.budget_gib.value())) if isinstance(value, str) or value == 0]  # fmt: skip
        if bad:
            self.status.complain(f"{' and '.join(bad)}: must be a whole number of at least 1, or empty.")
            return
        self.controls.set_running(True)
        self.status.say("Starting the probe …")
        work = partial(request, plan, str(controls.device.value()), controls.layers.value(), controls.new_tokens.value(),
                       controls.budget_bytes)  # fmt: skip
        self._operations.start(Operation("probe", work, self._begin, self._fail))

    @Slot()
    def stop(self) -> None:
        """End the run."""
        self.live.stop()
        if self.live.running:
            self.status.say("Stopping …")

    def replay(self, path: Path) -> None:
        """Show a recording."""
        if self.live.running:
            self.status.complain("A run is under way: stop it before opening a recording.")
            return
        self._operations.start(Operation("probe", partial(_read, path), self._show_recorded, self._fail))

    def showEvent(self, event: QShowEvent) -> None:
        """Catch up with the plan."""
        super().showEvent(event)
        self._show_plan()

    def closeEvent(self, event: QCloseEvent) -> None:
        """End what runs."""
        self.live.close()
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
        self.controls.stop_asked.connect(self.stop)
        self.controls.changed.connect(self._show_plan)
        self.status.open_asked.connect(self._ask_recording)
        self.live.told.connect(self._take)
        self.live.ended.connect(self._ended)
        self._state.plan_changed.connect(self._show_plan)

    @Slot()
    def _show_plan(self) -> None:
        """Before a run: the prediction that it will be held against."""
        plan = self._state.plan
        if plan is None:
            return
        settled = self._state.settled
        inference = settled.inference.new_tokens if settled.task == "inference" else None
        self.controls.set_task(settled.task, len(plan.architecture.decoder.layers), inference)
        if self._run is None and self.isVisible():
            self._preview(plan)

    def _preview(self, plan: Plan) -> None:
        """The levels that a run with these controls will be held against."""
        controls = self.controls
        device, layers, tokens = controls.device.value(), controls.layers.value(), controls.new_tokens.value()
        if isinstance(layers, str) or isinstance(tokens, str) or 0 in (layers, tokens):
            return
        self._set_on_cpu(on_cpu=device == "cpu")
        self._show_levels(predict_run(plan, str(device), layers, tokens))
        self._key.set_title(f"Predicted for {'CPU' if device == 'cpu' else device}")

    def _show_levels(self, prediction: Footprint) -> None:
        self._levels = levels_of(prediction)
        self.plot.set_levels(self._levels, None)
        self._show_table()

    def _set_on_cpu(self, *, on_cpu: bool) -> None:
        """Call the meters what they are on the device."""
        self._on_cpu = on_cpu
        self._key.set_on_cpu(on_cpu)

    def _show_table(self) -> None:
        self.table.comparisons.show_rows(compare(self._levels, self._measurement, on_cpu=self._on_cpu))

    @Slot(object)
    def _begin(self, asked: Request) -> None:
        self._open_run(Measurement(asked.order["scenario"], asked.prediction.to_json()))
        self._set_on_cpu(on_cpu=asked.order["device"] == "cpu")
        self._show_levels(asked.prediction)
        self.live.start(asked)

    def _open_run(self, measurement: Measurement) -> None:
        self._run, self._measurement = Run(), measurement
        self.plot.show_run(self._run)
        self.status.show_notes([])
        self.status.show_path(None)
        self._key.set_title(title_of(measurement))

    @Slot(object)
    def _take(self, event: Event) -> None:
        if self._run is None or self._measurement is None:
            return
        self._run.take(event)
        self._measurement.add(event)
        self.plot.mark_dirty()
        self.status.show_path(self.live.recording_path)
        kind = event.get("event")
        if kind == "hello":
            self._show_device()
        if kind in ("phase", "outcome"):
            self._show_table()
        if kind in ("note", "outcome"):
            self.status.show_notes(self._run.notes)
        if kind in ("phase", "progress", "hello"):
            self.status.say(self._doing())

    def _show_device(self) -> None:
        """The device says how large it is: on a GPU that is where the capacity line belongs, on CPU the machine's memory."""
        if self._run is not None:
            self.plot.set_levels(self._levels, self._run.total_bytes)

    def _doing(self) -> str:
        run = self._run or Run()
        where = "on CPU" if run.on_cpu else f"on {run.device.get('name', 'the device')}"
        what = word(PHASES, run.phase).label if run.phase else run.progress.capitalize() or "Starting"
        count = f" ({run.progress})" if run.phase and run.progress else ""
        return f"Measuring {where}: {what}{count}"

    @Slot()
    def _ended(self) -> None:
        self.controls.set_running(False)
        self._show_outcome()

    def _show_outcome(self) -> None:
        if self._run is not None and self._run.outcome is not None:
            where = "Ran on CPU, no GPU was used." if self._run.on_cpu else ""
            self.status.show_outcome(self._run.outcome, where)
        self._show_table()

    @Slot(object)
    def _fail(self, error: Exception) -> None:
        self.controls.set_running(False)
        self.status.complain(str(error) or repr(error))

    @Slot()
    def _ask_recording(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Open recording", str(recordings_folder()), "Recordings (*.jsonl)")
        if path:
            self.replay(Path(path))

    @Slot(object)
    def _show_recorded(self, found: tuple[Path, Recorded, Measurement]) -> None:
        path, recorded, measurement = found
        self._open_run(measurement)
        run = self._run or Run()
        for event in recorded.events:
            run.take(event)
        prediction = recorded.header.get("prediction")
        self._levels = levels_of_json(prediction if isinstance(prediction, dict) else {})
        self._set_on_cpu(on_cpu=run.on_cpu)
        self.plot.set_levels(self._levels, run.total_bytes)
        self.status.show_path(path)
        torn = ["Its last line was torn and is left out."] if recorded.skipped_lines else []
        self.status.show_notes([*run.notes, *torn])
        if run.outcome is None:
            self.status.complain(f"The recording ends without an outcome{f', in {run.phase}' if run.phase else ''}.")
        self._show_outcome()


def _read(path: Path) -> tuple[Path, Recorded, Measurement]:
    recorded = read_recording(path)
    return path, recorded, Measurement.of_recording(recorded)


def title_of(measurement: Measurement) -> str:
    """Which run is on screen: model and task."""
    model = measurement.scenario.get("model")
    name = model.rsplit("/", 1)[-1] if isinstance(model, str) else "custom model"
    return f"{name} · {measurement.scenario.get('task')}"


def levels_of(prediction: Footprint) -> Levels:
    """The predicted level of each phase and meter."""
    phases = prediction.gpus[0].phases if prediction.gpus else ()
    return {phase.name: {meter: phase.meter(meter) for meter in METERS} for phase in phases}


def levels_of_json(prediction: dict[str, object]) -> Levels:
    """The same from a recorded footprint."""
    gpus = prediction.get("gpus")
    phases = gpus[0].get("phases", []) if isinstance(gpus, list) and gpus else []
    return {str(phase["name"]): {meter: int(phase[meter]) for meter in METERS} for phase in phases}
