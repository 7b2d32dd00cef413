"""Files of the window: open and save, what was opened lately, examples, and the session that the next start goes on with."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import QObject, Qt, QTimer, Signal, Slot
from PySide6.QtGui import QAction
from PySide6.QtWidgets import QFileDialog, QMenu

from gui import files
from gui.actions import Act
from gui.examples import EXAMPLES
from gui.operations import Operation
from gui.settings import RECENT_FILES, SESSION, Settings
from gui.translate import tr
from planner.faults import Faults
from planner.scenario import ModelPath, Scenario, parse_scenario, to_json
from resources.history import History, HistoryError

if TYPE_CHECKING:
    from gui.window import MainWindow
    from planner.footprint import Footprint

KEPT = 10
_LULL_MS = 1500
_MODEL_FILES = "Models (config.json *.json *.gguf *.safetensors);;All files (*)"


class Documents(QObject):
    """``recording_opened`` with the path of a recording to replay."""

    recording_opened = Signal(object)

    def __init__(self, window: MainWindow) -> None:
        super().__init__(window)
        self._window, self._state, self._settings = window, window.context.state, window.context.settings
        self.path: Path | None = None
        self._lull = QTimer(self, singleShot=True, interval=_LULL_MS)
        self._lull.timeout.connect(self.remember_session)
        self._state.scenario_changed.connect(self._lull.start)
        self.recent = QMenu(tr("Open &recent"), window)
        self.examples = QMenu(tr("E&xamples"), window)
        self.slots = {
            Act.OPEN_SCENARIO: self.ask_scenario, Act.SAVE_SCENARIO: self.save, Act.SAVE_SCENARIO_AS: self.save_as,
            Act.OPEN_MODEL_FILE: self.ask_model_file, Act.OPEN_MODEL_FOLDER: self.ask_model_folder,
            Act.OPEN_RECORDING: self.ask_recording, Act.KEEP: self.keep,
        }  # fmt: skip
        self._fill_examples()
        self._fill_recent()

    def open_file(self, path: Path) -> None:
        """Open a scenario, a recording or a model, whichever the file is; a file that is none of them is said so."""
        try:
            opened = files.read_any(path)
        except files.Unreadable as error:
            self._window.say(str(error))
            self._forget(path)
            return
        self._remember(path)
        if isinstance(opened, files.RecordingFile):
            self.recording_opened.emit(opened.path)
        elif isinstance(opened, ModelPath):
            self._state.edit("model", opened, tr("open {}").format(path.name))
        else:
            self.path = path
            self._state.open(opened, tr("open {}").format(path.name))
            self._window.say(tr("Opened {}").format(path))

    def open_example(self, name: str) -> None:
        """Show one of the examples."""
        example = next(found for found in EXAMPLES if found.name == name)
        self.path = None
        self._state.open(example.scenario, tr(example.title))
        self._window.say(tr(example.tip))

    @Slot()
    def remember_session(self) -> None:
        """Keep the scenario for the next start: at the end, and whenever nothing was edited for a moment."""
        self._lull.stop()
        save_session(self._settings, self._state.scenario)

    @Slot()
    def ask_scenario(self) -> None:
        """Ask for any file that can be opened."""
        self._ask(tr("Open scenario"), "Scenarios (*.json);;All files (*)")

    @Slot()
    def ask_recording(self) -> None:
        """Ask for a recording."""
        from probes.recording import recordings_folder  # noqa: PLC0415  NumPy is not needed for the first paint

        self._ask(tr("Open recording"), "Recordings (*.jsonl);;All files (*)", str(recordings_folder()))

    @Slot()
    def ask_model_file(self) -> None:
        """Ask for a model's file."""
        path, _ = QFileDialog.getOpenFileName(self._window, tr("Open model"), "", _MODEL_FILES)
        self._take_model(path)

    @Slot()
    def ask_model_folder(self) -> None:
        """Ask for a model's folder."""
        self._take_model(QFileDialog.getExistingDirectory(self._window, tr("Open model folder")))

    @Slot()
    def save(self) -> None:
        """Save to where the scenario came from; ask where it came from nowhere."""
        if self.path is None:
            self.save_as()
        else:
            self._window.say(files.save_scenario(self._state.scenario, self.path))

    @Slot()
    def save_as(self) -> None:
        """Ask where to, and save."""
        start = str(self.path or "scenario.json")
        path, _ = QFileDialog.getSaveFileName(self._window, tr("Save scenario"), start, "Scenarios (*.json)")
        if path:
            self.path = Path(path)
            self.save()
            self._remember(self.path)

    @Slot()
    def keep(self) -> None:
        """Put the plan on screen into the history."""
        plan = self._state.plan
        if plan is None or not self._state.current:
            self._window.say(self._state.trouble)
            return
        work = partial(_keep, plan.footprint)
        self._window.context.operations.start(Operation("keep", work, self._kept, self._not_kept, lasting=True))

    @Slot(object)
    def _kept(self, trouble: str) -> None:
        self._window.say(trouble or tr("The plan is in the history"))
        self._state.run_kept.emit()

    @Slot(object)
    def _not_kept(self, error: Exception) -> None:
        if not isinstance(error, HistoryError):
            raise error
        self._window.say(str(error))

    def _ask(self, title: str, filters: str, folder: str = "") -> None:
        path, _ = QFileDialog.getOpenFileName(self._window, title, folder, filters)
        if path:
            self.open_file(Path(path))

    def _take_model(self, path: str) -> None:
        if path:
            self._state.edit("model", ModelPath(path), tr("open {}").format(Path(path).name))
            self._remember(Path(path))

    def _remember(self, path: Path) -> None:
        kept = [name for name in self._settings.get(RECENT_FILES) if name != str(path.absolute())]
        self._settings.set(RECENT_FILES, [str(path.absolute()), *kept][:KEPT])
        self._fill_recent()

    def _forget(self, path: Path) -> None:
        kept = [name for name in self._settings.get(RECENT_FILES) if name != str(path.absolute())]
        self._settings.set(RECENT_FILES, kept)
        self._fill_recent()

    def _fill_recent(self) -> None:
        self.recent.clear()
        names = self._settings.get(RECENT_FILES)
        self.recent.setEnabled(bool(names))
        for name in names:
            action = self.recent.addAction(Path(name).name.replace("&", "&&"))
            action.setData(name)
            action.setToolTip(name)
            action.setStatusTip(name)
            action.triggered.connect(self._open_recent, Qt.ConnectionType.QueuedConnection)  # opening fills this menu anew

    def _fill_examples(self) -> None:
        for example in EXAMPLES:
            action = self.examples.addAction(tr(example.title))
            action.setData(example.name)
            action.setToolTip(tr(example.tip))
            action.setStatusTip(tr(example.tip))
            action.triggered.connect(self._open_example)
        self.examples.setToolTipsVisible(True)

    @Slot()
    def _open_recent(self) -> None:
        sender = self.sender()
        if isinstance(sender, QAction):
            self.open_file(Path(str(sender.data())))

    @Slot()
    def _open_example(self) -> None:
        sender = self.sender()
        if isinstance(sender, QAction):
            self.open_example(str(sender.data()))


def _keep(footprint: Footprint) -> str:
    """What the user should know of it, or nothing. Raises HistoryError."""
    from probes.history import run_of_plan  # noqa: PLC0415  NumPy is not needed for the first paint

    history = History()
    history.add(run_of_plan(footprint))
    return history.trouble


def save_session(settings: Settings, scenario: Scenario) -> None:
    """Remember ``scenario`` for the next start."""
    settings.set(SESSION, json.dumps(to_json(scenario)))


def last_session(settings: Settings) -> Scenario | None:
    """The scenario of the last session; None at the first start, and where it can't be read any more."""
    text = settings.get(SESSION)
    try:
        return parse_scenario(json.loads(text)) if text else None
    except (ValueError, Faults):
        return None
