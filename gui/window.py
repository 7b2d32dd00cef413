"""The main window: the form at the left, tabs in the centre, the why panel at the right, the GPU strip below."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QEvent, Qt, Slot
from PySide6.QtGui import QAction, QActionGroup, QCloseEvent, QDragEnterEvent, QDropEvent, QKeySequence, QResizeEvent, QShowEvent
from PySide6.QtWidgets import QApplication, QDialog, QMainWindow, QSplitter, QVBoxLayout, QWidget

from gui.actions import THEMES, UNITS, Act, icon_of, make_action
from gui.context import Context
from gui.corner import Corner
from gui.documents import Documents
from gui.form.panel import WIDTH as FORM_WIDTH
from gui.form.panel import FormPanel
from gui.guide import Guide
from gui.icons import icon, window_icon
from gui.menus import fill_menus
from gui.settings import ADVANCED, GEOMETRY, TAB, THEME, ZOOM_PERCENT
from gui.settings import UNITS as UNITS_SETTING
from gui.sharing import Sharing
from gui.strip import GpuStrip
from gui.tabs import TABS
from gui.theme import px, set_role, theme
from gui.translate import tr
from gui.units import units
from gui.views import Views
from gui.why import NARROW as WHY_NARROW
from gui.why import WIDTH as WHY_WIDTH
from gui.why import WhyPanel
from planner.scenario import ModelPath

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gui.calibrate.window import CalibrateWindow
    from planner.report.content import Levels
    from resources.plan import Plan

DEFAULT_SIZE = (1400, 900)
MINIMUM_SIZE = (1000, 680)
_STATUS_MS = 8_000
_NARROW_BELOW = 1230
_ROOMY_FROM, _WIDER = (0.85, 1.8), 1.3
_ZOOM_STEP, _ZOOM_RANGE = 10, (80, 160)


class MainWindow(QMainWindow):
    """Holds the parts together; every value lives in the context's state."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self._context = context
        for part in (context.operations, context.machine, context.state, context.pins):
            part.setParent(self)
        units().choose(context.settings.get(UNITS_SETTING))
        self._lay_out()
        self.form = FormPanel(context.state, advanced=context.settings.get(ADVANCED), parent=self._splitter)
        self.tabs = Views(self._splitter, documentMode=True)
        self.why = WhyPanel(context.state, self._splitter)
        self.strip = GpuStrip(context.machine, self.centralWidget())
        self.documents, self.sharing, self.guide = Documents(self), Sharing(self), Guide(self)
        self._was_roomy: int | None = None
        """At the last sharing out; None before the first, and once widths were chosen by hand."""
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

    @property
    def tab_name(self) -> str:
        """The tab in front."""
        return TABS[self.tabs.currentIndex()].name

    def current_tab(self) -> QWidget:
        """The widget of the tab in front."""
        return self._ensure(self.tab_name)

    def show_tab(self, name: str) -> QWidget:
        """Bring a tab to the front, building it the first time; returns its widget."""
        self.tabs.setCurrentIndex([tab.name for tab in TABS].index(name))
        return self._ensure(name)

    def open_file(self, path: Path) -> None:
        """Open a scenario, a recording or a model, whichever the file is."""
        self.documents.open_file(path)

    @Slot(object)
    def say(self, text: str) -> None:
        """Tell something that needs no answer."""
        self.statusBar().showMessage(text, _STATUS_MS)

    def measured_of(self, plan: Plan) -> Levels | None:
        """What was measured of exactly this plan, when its run is on screen."""
        probe: Any = self._built.get("probe")
        measurement = probe.measurement if probe is not None else None
        if measurement is None or not measurement.phases or measurement.scenario != plan.footprint.scenario:
            return None
        return {step.name: dict(step.meters) for step in measurement.phases}

    def _lay_out(self) -> None:
        """The frame comes first: Qt styles whatever is moved into another widget anew, with all that is in it."""
        centre = QWidget()
        self.setCentralWidget(centre)
        self._splitter = QSplitter(Qt.Orientation.Horizontal, centre, childrenCollapsible=False, handleWidth=1)
        self._column = QVBoxLayout(centre)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._column.setSpacing(0)
        self._column.addWidget(self._splitter, 1)

    def _build(self) -> None:
        self.setWindowTitle("Highwater")
        self.setWindowIcon(window_icon())
        self.setMinimumSize(*MINIMUM_SIZE)
        self.setAcceptDrops(True)
        self.tabs.setAccessibleName(tr("Views of the plan"))
        self.tabs.tabBar().setDrawBase(False)
        self.tabs.tabBar().setAccessibleName(tr("Views of the plan"))
        for tab in TABS:
            page = QWidget(self.tabs, autoFillBackground=True)
            page.setLayout(QVBoxLayout())
            page.layout().setContentsMargins(0, 0, 0, 0)
            self.tabs.setTabToolTip(self.tabs.addTab(page, tr(tab.title)), tr(tab.tip))
        self._corner = Corner(self._actions, self.documents.examples)
        self.menuBar().setCornerWidget(self._corner)
        for index, stretch in enumerate((0, 1, 0)):
            self._splitter.setStretchFactor(index, stretch)
        self._column.addWidget(self.strip)
        self.statusBar().hide()  # a line that came and went would move all above it: the strip tells what it holds

    def _build_menus(self) -> None:
        stack = self._context.state.undo_stack
        self._history = (stack.createUndoAction(self, tr("&Undo")), stack.createRedoAction(self, tr("&Redo")))
        for action, keys in zip(self._history, (QKeySequence.StandardKey.Undo, QKeySequence.StandardKey.Redo), strict=True):
            action.setShortcuts(keys)
        parts = {
            "recent": self.documents.recent, "examples": self.documents.examples, "tabs": self._tab_actions(),
            "undo": self._history[:1], "redo": self._history[1:],
        }  # fmt: skip
        self.listed = fill_menus(self.menuBar(), self._actions, parts)

    def _tab_actions(self) -> list[QAction]:
        made = []
        for index, tab in enumerate(TABS):
            action = QAction(tr(tab.title), self)
            action.setShortcut(QKeySequence(f"Ctrl+{index + 1}"))
            action.setData(tab.name)
            action.triggered.connect(self._go_to_tab)
            made.append(action)
        return made

    def _connect(self) -> None:
        slots = {
            Act.QUIT: self.close, Act.PIN: self._pin, Act.MEASURE: self._measure, Act.REHEARSE: self._rehearse,
            Act.STOP: self._stop, Act.WATCH: self._watch, Act.CALIBRATE: self.calibrate,
            Act.FOCUS_MODEL: self._focus_model, Act.NEXT_PANE: self._next_pane,
            Act.ZOOM_IN: self._zoom_in, Act.ZOOM_OUT: self._zoom_out, Act.ZOOM_RESET: self._zoom_reset,
        }  # fmt: skip
        for act, slot in {**slots, **self.documents.slots, **self.sharing.slots, **self.guide.slots}.items():
            self._actions[act].triggered.connect(slot)
        for members, slot in ((THEMES, self._choose_theme), (UNITS, self._choose_units)):
            group = QActionGroup(self)
            for act in members:
                group.addAction(self._actions[act])
            group.triggered.connect(slot)
        self._splitter.splitterMoved.connect(self._dragged)
        self.documents.recording_opened.connect(self.replay)
        self.form.open_model_asked.connect(self.documents.ask_model_file)
        self.tabs.currentChanged.connect(self._tab_changed)
        self.statusBar().messageChanged.connect(self._status_changed)
        self._context.state.plan_changed.connect(self._retitle)
        theme().changed.connect(self._restyle)

    def _restore(self) -> None:
        settings = self._context.settings
        for members, chosen in ((THEMES, settings.get(THEME)), (UNITS, units().name)):
            for act in members:
                self._actions[act].setChecked(self._actions[act].data() == chosen)
        self.resize(*DEFAULT_SIZE)
        geometry = settings.get(GEOMETRY)
        if geometry:
            self.restoreGeometry(geometry)
        names = [tab.name for tab in TABS]
        wanted = settings.get(TAB)
        self.show_tab(wanted if wanted in names else names[0])
        self._restyle()
        self._retitle()
        if settings.trouble:
            self.say(settings.trouble)

    def _ensure(self, name: str) -> QWidget:
        if name not in self._built:
            index = [tab.name for tab in TABS].index(name)
            self._built[name] = TABS[index].make(self._context)
            self.tabs.widget(index).layout().addWidget(self._built[name])
        return self._built[name]

    def event(self, event: QEvent) -> bool:
        """Before it is painted, everything is laid out: Qt goes outwards a level at a time, and paints in between."""
        if event.type() == QEvent.Type.UpdateRequest:
            QApplication.sendPostedEvents(None, QEvent.Type.LayoutRequest.value)
        return super().event(event)

    def showEvent(self, event: QShowEvent) -> None:
        """Share the width out once it is known: a narrow window takes from the why panel first."""
        if not event.spontaneous():
            self._was_roomy = self._roomy
            self._share_out()
            self.tabs.tabBar().setFocus()
        super().showEvent(event)

    @property
    def _roomy(self) -> int:
        """0: the why panel is as narrow as it can be; 1: it has its usual width; 2: form and why panel can be wider."""
        return sum(self.width() >= px(DEFAULT_SIZE[0]) * share for share in _ROOMY_FROM)

    @Slot()
    def _dragged(self) -> None:
        """Widths that someone chose stay."""
        self._was_roomy = None

    def _share_out(self) -> None:
        wider = _WIDER if self._roomy > 1 else 1.0
        form, why = round(px(FORM_WIDTH) * wider), round(px(WHY_WIDTH) * wider) if self._roomy else WHY_NARROW
        self._splitter.setSizes([form, self.width() - form - why, why])

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Where there is little room, the tabs' names are written small, and the why panel gives of its width."""
        super().resizeEvent(event)
        if self._was_roomy not in (None, self._roomy):
            self._was_roomy = self._roomy
            self._share_out()
        role = "narrow" if self.width() < px(_NARROW_BELOW) else ""
        if self.tabs.tabBar().property("role") != role:
            set_role(self.tabs.tabBar(), role)
            QApplication.sendEvent(self.tabs.tabBar(), QEvent(QEvent.Type.StyleChange))  # else the tabs keep their widths

    def closeEvent(self, event: QCloseEvent) -> None:
        """Remember the layout and the scenario, and end what runs."""
        settings = self._context.settings
        settings.set(GEOMETRY, self.saveGeometry().data())
        settings.set(TAB, self.tab_name)
        settings.set(ADVANCED, self.form.advanced)
        self.documents.remember_session()
        self.statusBar().clearMessage()
        self.hide()  # what has to end may take a moment
        for widget in (*self._built.values(), *self.findChildren(QDialog)):
            widget.close()
        self._context.machine.stop()
        self._context.state.close()
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
        self._context.state.leave_details()

    @Slot()
    def _go_to_tab(self) -> None:
        sender = self.sender()
        if isinstance(sender, QAction):
            self.show_tab(str(sender.data()))

    @Slot(str)
    def _status_changed(self, text: str) -> None:
        self.strip.say(text)

    @Slot()
    def _retitle(self) -> None:
        model = self._context.state.scenario.model
        name = model if isinstance(model, str) else Path(model.path).name if isinstance(model, ModelPath) else "config"
        self.setWindowTitle(f"{name} – Highwater")

    @Slot(QAction)
    def _choose_theme(self, action: QAction) -> None:
        self._context.settings.set(THEME, str(action.data()))
        theme().choose(str(action.data()))

    @Slot(QAction)
    def _choose_units(self, action: QAction) -> None:
        self._context.settings.set(UNITS_SETTING, str(action.data()))
        units().choose(str(action.data()))

    @Slot()
    def _zoom_in(self) -> None:
        self._zoom(self._context.settings.get(ZOOM_PERCENT) + _ZOOM_STEP)

    @Slot()
    def _zoom_out(self) -> None:
        self._zoom(self._context.settings.get(ZOOM_PERCENT) - _ZOOM_STEP)

    @Slot()
    def _zoom_reset(self) -> None:
        self._zoom(100)

    def _zoom(self, percent: int) -> None:
        percent = min(max(percent, _ZOOM_RANGE[0]), _ZOOM_RANGE[1])
        self._context.settings.set(ZOOM_PERCENT, percent)
        theme().zoom(percent)
        self._share_out()
        self.say(tr("Texts at {} %").format(percent))

    @Slot()
    def _restyle(self) -> None:
        for act, action in self._actions.items():
            if icon_of(act):
                action.setIcon(icon(icon_of(act), "muted"))
        for action, name in zip(self._history, ("undo", "redo"), strict=True):
            action.setIcon(icon(name, "muted"))

    @Slot()
    def _pin(self) -> None:
        self.say(self._context.pins.pin(self._context.state.plan))

    @Slot(object)
    def replay(self, path: Path) -> None:
        """Play a recording into the Probe tab."""
        self.show_tab("probe").replay(path)  # type: ignore[attr-defined]

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
    def _watch(self) -> None:
        self.show_tab("probe").ask_watch()  # type: ignore[attr-defined]

    @Slot()
    def calibrate(self, paths: Sequence[Path] = ()) -> CalibrateWindow:
        """Open the Calibrate window; with recordings, on what they say."""
        from gui.calibrate.window import CalibrateWindow  # noqa: PLC0415  not needed for the first paint

        found = self.findChild(CalibrateWindow)
        if found is None:
            found = CalibrateWindow(self._context, self)
            found.changed.connect(self._context.state.predict_anew)
        found.show()
        found.raise_()
        if paths:
            found.fit_on(paths)
        return found

    @Slot()
    def _focus_model(self) -> None:
        self.form.fields["model"].focus_editor()

    @Slot()
    def _next_pane(self) -> None:
        panes = (self.form, self.tabs, self.why)
        now = next((index for index, pane in enumerate(panes) if pane.isAncestorOf(self.focusWidget() or self)), -1)
        if panes[(now + 1) % len(panes)] is self.form:
            self._focus_model()
        elif panes[(now + 1) % len(panes)] is self.tabs:
            self.tabs.tabBar().setFocus(Qt.FocusReason.ShortcutFocusReason)
        else:
            self.why.focus()
