"""The main window: the form at the left, tabs in the centre, the why panel at the right, the GPU strip below."""

from __future__ import annotations

import json
from pathlib import Path

from PySide6.QtCore import Qt, Slot
from PySide6.QtGui import QAction, QActionGroup, QCloseEvent, QDragEnterEvent, QDropEvent, QGuiApplication, QKeySequence, QShowEvent
from PySide6.QtWidgets import QFileDialog, QMainWindow, QMessageBox, QSplitter, QTabWidget, QVBoxLayout, QWidget

from gui import files
from gui.actions import Act, make_action
from gui.context import Context
from gui.form.panel import WIDTH as FORM_WIDTH
from gui.form.panel import FormPanel
from gui.icons import icon, window_icon
from gui.settings import ADVANCED, GEOMETRY, TAB, THEME
from gui.strip import GpuStrip
from gui.tabs import TABS
from gui.theme import theme
from gui.why import NARROW as WHY_NARROW
from gui.why import WIDTH as WHY_WIDTH
from gui.why import WhyPanel
from planner.scenario import ModelPath

DEFAULT_SIZE = (1400, 900)
MINIMUM_SIZE = (1000, 680)
_STATUS_MS = 8_000
_THEMES = {"system": Act.THEME_SYSTEM, "light": Act.THEME_LIGHT, "dark": Act.THEME_DARK}
_MODEL_FILES = "Models (config.json *.json *.gguf *.safetensors);;All files (*)"


class MainWindow(QMainWindow):
    """Holds the parts together; every value lives in the context's state."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self._context = context
        for part in (context.operations, context.machine, context.state):
            part.setParent(self)
        self.form = FormPanel(context.state, advanced=context.settings.get(ADVANCED))
        self.why = WhyPanel(context.state)
        self.strip = GpuStrip(context.machine)
        self.tabs = QTabWidget(documentMode=True)
        self._built: dict[str, QWidget] = {}
        self._actions: dict[Act, QAction] = {act: make_action(act, self) for act in Act}
        self._build()
        self._build_menus()
        self._connect()
        self._restore()

    @property
    def context(self) -> Context:
        """What the window was given."""
        return self._context

    def action(self, act: Act) -> QAction:
        """One of the window's actions."""
        return self._actions[act]

    def show_tab(self, name: str) -> QWidget:
        """Bring a tab to the front, building it the first time; returns its widget."""
        self.tabs.setCurrentIndex([tab.name for tab in TABS].index(name))
        return self._ensure(name)

    def open_file(self, path: Path) -> None:
        """Open a scenario, a recording or a model, whichever the file is; a file that is none of them is said so."""
        try:
            opened = files.read_any(path)
        except files.Unreadable as error:
            self.say(str(error))
            return
        if isinstance(opened, files.RecordingFile):
            self.show_tab("probe").replay(opened.path)  # type: ignore[attr-defined]
        elif isinstance(opened, ModelPath):
            self._context.state.edit("model", opened, f"open {path.name}")
        else:
            self._context.state.open(opened, f"open {path.name}")
            self.say(f"Opened {path}")

    def say(self, text: str) -> None:
        """Tell something that needs no answer."""
        self.statusBar().showMessage(text, _STATUS_MS)

    def _build(self) -> None:
        self.setWindowTitle("Highwater")
        self.setWindowIcon(window_icon())
        self.setMinimumSize(*MINIMUM_SIZE)
        self.setAcceptDrops(True)
        self.tabs.setAccessibleName("Views of the plan")
        self.tabs.tabBar().setDrawBase(False)
        self.tabs.tabBar().setAccessibleName("Views of the plan")
        for tab in TABS:
            page = QWidget()
            page.setLayout(QVBoxLayout())
            page.layout().setContentsMargins(0, 0, 0, 0)
            self.tabs.setTabToolTip(self.tabs.addTab(page, tab.title), tab.tip)
        self._splitter = QSplitter(Qt.Orientation.Horizontal, childrenCollapsible=False, handleWidth=1)
        for part in (self.form, self.tabs, self.why):
            self._splitter.addWidget(part)
        for index, stretch in enumerate((0, 1, 0)):
            self._splitter.setStretchFactor(index, stretch)
        centre = QWidget()
        column = QVBoxLayout(centre)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(self._splitter, 1)
        column.addWidget(self.strip)
        self.setCentralWidget(centre)
        self.statusBar().setSizeGripEnabled(False)
        self.statusBar().hide()

    def _build_menus(self) -> None:
        stack = self._context.state.undo_stack
        undo, redo = stack.createUndoAction(self, "&Undo"), stack.createRedoAction(self, "&Redo")
        undo.setShortcuts(QKeySequence.StandardKey.Undo)
        redo.setShortcuts(QKeySequence.StandardKey.Redo)
        self._history = (undo, redo)
        act = self._actions
        self._menu("&File", act[Act.OPEN_SCENARIO], act[Act.SAVE_SCENARIO], None, act[Act.OPEN_MODEL_FILE],
                   act[Act.OPEN_MODEL_FOLDER], act[Act.OPEN_RECORDING], None, act[Act.QUIT])  # fmt: skip
        self._menu("&Edit", undo, redo, None, act[Act.COPY_ANSWER], None, act[Act.FOCUS_MODEL])
        self._menu("&View", *self._tab_actions(), None, *(act[name] for name in _THEMES.values()))
        self._menu("&Probe", act[Act.MEASURE], act[Act.REHEARSE], act[Act.STOP])
        self._menu("&Help", act[Act.ABOUT])

    def _menu(self, title: str, *actions: QAction | None) -> None:
        menu = self.menuBar().addMenu(title)
        for action in actions:
            if action is None:
                menu.addSeparator()
            else:
                menu.addAction(action)

    def _tab_actions(self) -> list[QAction]:
        made = []
        for index, tab in enumerate(TABS):
            action = QAction(tab.title, self)
            action.setShortcut(QKeySequence(f"Ctrl+{index + 1}"))
            action.setData(tab.name)
            action.triggered.connect(self._go_to_tab)
            made.append(action)
        return made

    def _connect(self) -> None:
        slots = {
            Act.OPEN_SCENARIO: self._open_scenario, Act.SAVE_SCENARIO: self._save_scenario,
            Act.OPEN_MODEL_FILE: self._open_model_file, Act.OPEN_MODEL_FOLDER: self._open_model_folder,
            Act.OPEN_RECORDING: self._open_recording, Act.QUIT: self.close, Act.COPY_ANSWER: self._copy_answer,
            Act.MEASURE: self._measure, Act.REHEARSE: self._rehearse, Act.STOP: self._stop,
            Act.FOCUS_MODEL: self._focus_model, Act.ABOUT: self._about,
        }  # fmt: skip
        for act, slot in slots.items():
            self._actions[act].triggered.connect(slot)
        self._themes = QActionGroup(self)
        for name, act in _THEMES.items():
            self._actions[act].setData(name)
            self._themes.addAction(self._actions[act])
        self._themes.triggered.connect(self._choose_theme)
        self.form.open_model_asked.connect(self._open_model_file)
        self.tabs.currentChanged.connect(self._tab_changed)
        self.statusBar().messageChanged.connect(self._status_changed)
        self._context.state.plan_changed.connect(self._retitle)
        theme().changed.connect(self._restyle)

    def _restore(self) -> None:
        settings = self._context.settings
        self._actions[_THEMES.get(settings.get(THEME), Act.THEME_SYSTEM)].setChecked(True)
        self.resize(*DEFAULT_SIZE)
        geometry = settings.get(GEOMETRY)
        if geometry:
            self.restoreGeometry(geometry)
        names = [tab.name for tab in TABS]
        wanted = settings.get(TAB)
        self.show_tab(wanted if wanted in names else names[0])
        self._restyle()
        self._retitle()

    def _ensure(self, name: str) -> QWidget:
        if name not in self._built:
            index = [tab.name for tab in TABS].index(name)
            self._built[name] = TABS[index].make(self._context)
            self.tabs.widget(index).layout().addWidget(self._built[name])
        return self._built[name]

    def showEvent(self, event: QShowEvent) -> None:
        """Share the width out once it is known: a narrow window takes from the why panel first."""
        if not event.spontaneous():
            why = WHY_WIDTH if self.width() >= DEFAULT_SIZE[0] * 0.85 else WHY_NARROW
            self._splitter.setSizes([FORM_WIDTH, self.width() - FORM_WIDTH - why, why])
        super().showEvent(event)

    def closeEvent(self, event: QCloseEvent) -> None:
        """Remember the layout and end what runs."""
        settings = self._context.settings
        settings.set(GEOMETRY, self.saveGeometry().data())
        settings.set(TAB, TABS[self.tabs.currentIndex()].name)
        settings.set(ADVANCED, self.form.advanced)
        self.statusBar().clearMessage()
        for widget in self._built.values():
            widget.close()
        self._context.machine.stop()
        self._context.operations.close()
        super().closeEvent(event)

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        """Files are welcome."""
        if any(url.isLocalFile() for url in event.mimeData().urls()):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        """Open the first file that is dropped."""
        local = [url.toLocalFile() for url in event.mimeData().urls() if url.isLocalFile()]
        if local:
            event.acceptProposedAction()
            self.open_file(Path(local[0]))

    @Slot(int)
    def _tab_changed(self, index: int) -> None:
        self._ensure(TABS[index].name)

    @Slot()
    def _go_to_tab(self) -> None:
        sender = self.sender()
        if isinstance(sender, QAction):
            self.show_tab(str(sender.data()))

    @Slot(str)
    def _status_changed(self, text: str) -> None:
        self.statusBar().setVisible(bool(text))

    @Slot()
    def _retitle(self) -> None:
        model = self._context.state.scenario.model
        name = model if isinstance(model, str) else Path(model.path).name if isinstance(model, ModelPath) else "config"
        self.setWindowTitle(f"{name} – Highwater")

    @Slot(QAction)
    def _choose_theme(self, action: QAction) -> None:
        self._context.settings.set(THEME, str(action.data()))
        theme().choose(str(action.data()))

    @Slot()
    def _restyle(self) -> None:
        names = {
            Act.OPEN_SCENARIO: "folder", Act.SAVE_SCENARIO: "save", Act.OPEN_RECORDING: "recording",
            Act.MEASURE: "measure", Act.REHEARSE: "rehearse", Act.STOP: "stop",
        }  # fmt: skip
        for act, name in names.items():
            self._actions[act].setIcon(icon(name, "muted"))
        for action, name in zip(self._history, ("undo", "redo"), strict=True):
            action.setIcon(icon(name, "muted"))

    @Slot()
    def _open_scenario(self) -> None:
        self._ask_and_open("Open scenario", "Scenarios (*.json);;All files (*)")

    @Slot()
    def _open_recording(self) -> None:
        self._ask_and_open("Open recording", "Recordings (*.jsonl);;All files (*)", str(files.recordings_folder()))

    @Slot()
    def _open_model_file(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Open model", "", _MODEL_FILES)
        if path:
            self._context.state.edit("model", ModelPath(path), f"open {Path(path).name}")

    @Slot()
    def _open_model_folder(self) -> None:
        path = QFileDialog.getExistingDirectory(self, "Open model folder")
        if path:
            self._context.state.edit("model", ModelPath(path), f"open {Path(path).name}")

    def _ask_and_open(self, title: str, filters: str, folder: str = "") -> None:
        path, _ = QFileDialog.getOpenFileName(self, title, folder, filters)
        if path:
            self.open_file(Path(path))

    @Slot()
    def _save_scenario(self) -> None:
        path, _ = QFileDialog.getSaveFileName(self, "Save scenario", "scenario.json", "Scenarios (*.json)")
        if path:
            self.say(files.save_scenario(self._context.state.scenario, Path(path)))

    @Slot()
    def _copy_answer(self) -> None:
        footprint = self._context.state.footprint
        if footprint is not None:
            QGuiApplication.clipboard().setText(json.dumps(footprint.to_json(), indent=2))
            self.say("The answer is on the clipboard as JSON")

    @Slot()
    def _measure(self) -> None:
        self.show_tab("probe").measure()  # type: ignore[attr-defined]

    @Slot()
    def _rehearse(self) -> None:
        self.show_tab("probe").rehearse()  # type: ignore[attr-defined]

    @Slot()
    def _stop(self) -> None:
        if "probe" in self._built:
            self._built["probe"].stop()  # type: ignore[attr-defined]

    @Slot()
    def _focus_model(self) -> None:
        self.form.fields["model"].editor.setFocus(Qt.FocusReason.TabFocusReason)

    @Slot()
    def _about(self) -> None:
        QMessageBox.about(self, "About Highwater", ABOUT)


ABOUT = """<b>Highwater</b><p>How much GPU memory a model takes, before it takes it: predicted from its config, measured
on the real device, each number with its formula.</p><p>Apache-2.0. The typeface is Inter (SIL Open Font License 1.1).</p>"""
