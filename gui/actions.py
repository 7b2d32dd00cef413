"""The window's actions: an enumeration names them, one factory makes them, one table puts them into menus."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from PySide6.QtCore import QObject
from PySide6.QtGui import QAction, QKeySequence

from gui.translate import tr


class Act(Enum):
    """Everything a menu or a shortcut can do."""

    OPEN_SCENARIO = auto()
    OPEN_LINK = auto()
    SAVE_SCENARIO = auto()
    SAVE_SCENARIO_AS = auto()
    OPEN_MODEL_FILE = auto()
    OPEN_MODEL_FOLDER = auto()
    OPEN_RECORDING = auto()
    EXPORT_REPORT = auto()
    EXPORT_CHART = auto()
    EXPORT_TABLE = auto()
    QUIT = auto()
    COPY_LINK = auto()
    COPY_MARKDOWN = auto()
    COPY_ANSWER = auto()
    COPY_CHART = auto()
    COPY_TABLE = auto()
    PIN = auto()
    KEEP = auto()
    FOCUS_MODEL = auto()
    PALETTE = auto()
    THEME_SYSTEM = auto()
    THEME_LIGHT = auto()
    THEME_DARK = auto()
    UNITS_GIB = auto()
    UNITS_GB = auto()
    UNITS_MIB = auto()
    ZOOM_IN = auto()
    ZOOM_OUT = auto()
    ZOOM_RESET = auto()
    NEXT_PANE = auto()
    MEASURE = auto()
    REHEARSE = auto()
    STOP = auto()
    WATCH = auto()
    CALIBRATE = auto()
    HELP = auto()
    SHORTCUTS = auto()
    ABOUT = auto()


@dataclass(frozen=True, slots=True)
class _Spec:
    text: str
    keys: QKeySequence.StandardKey | str | None = None
    tip: str = ""
    icon: str = ""
    value: str = ""
    """What a checkable action of a group stands for."""


_KEY = QKeySequence.StandardKey
_SPECS: dict[Act, _Spec] = {
    Act.OPEN_SCENARIO: _Spec("&Open scenario …", _KEY.Open, "A scenario, a recording or a model's file", "folder"),
    Act.OPEN_LINK: _Spec("Open link from clip&board", "Ctrl+Shift+V", "A link that Copy link made"),
    Act.SAVE_SCENARIO: _Spec("&Save scenario", _KEY.Save, "", "save"),
    Act.SAVE_SCENARIO_AS: _Spec("Save scenario &as …", "Ctrl+Shift+S"),
    Act.OPEN_MODEL_FILE: _Spec("Open &model file …", "Ctrl+M", "A config.json, .gguf or .safetensors"),
    Act.OPEN_MODEL_FOLDER: _Spec("Open model &folder …", "Ctrl+Shift+M", "A folder with a config.json"),
    Act.OPEN_RECORDING: _Spec("Open &recording …", "Ctrl+Shift+O", "Replay a run into the plot", "recording"),
    Act.EXPORT_REPORT: _Spec("&Report …", "Ctrl+Shift+R", "The plan as Markdown or HTML, with its chart"),
    Act.EXPORT_CHART: _Spec("&Chart …", "Ctrl+Shift+G", "The chart in front as PNG or SVG"),
    Act.EXPORT_TABLE: _Spec("&Table …", "Ctrl+Shift+T", "The table in front as CSV"),
    Act.QUIT: _Spec("&Quit", "Ctrl+Q"),
    Act.COPY_LINK: _Spec("Copy &link", "Ctrl+L", "The plan as one line of text that opens anywhere; no path, no token"),
    Act.COPY_MARKDOWN: _Spec("Copy as &Markdown", "Ctrl+Alt+C", "The plan as a report to paste"),
    Act.COPY_ANSWER: _Spec("&Copy answer as JSON", "Ctrl+Shift+C", "What predict --json prints"),
    Act.COPY_CHART: _Spec("Copy c&hart", "", "The chart in front as a picture"),
    Act.COPY_TABLE: _Spec("Copy &table", "", "The table in front, as Markdown"),
    Act.PIN: _Spec("&Pin to compare", "Ctrl+D", "Keep this plan beside others in the Compare tab", "pin"),
    Act.KEEP: _Spec("Keep in the h&istory", "Ctrl+Shift+D", "List this plan in the History tab, to open or compare it later"),
    Act.FOCUS_MODEL: _Spec("&Find a model", _KEY.Find),
    Act.PALETTE: _Spec("Command &palette …", "Ctrl+K", "Find any command, field or example by its name"),
    Act.THEME_SYSTEM: _Spec("&System", value="system"),
    Act.THEME_LIGHT: _Spec("&Light", value="light"),
    Act.THEME_DARK: _Spec("&Dark", value="dark"),
    Act.UNITS_GIB: _Spec("&GiB (2³⁰ bytes)", value="GiB"),
    Act.UNITS_GB: _Spec("G&B (10⁹ bytes)", value="GB"),
    Act.UNITS_MIB: _Spec("&MiB (2²⁰ bytes)", value="MiB"),
    Act.ZOOM_IN: _Spec("Zoom &in", _KEY.ZoomIn, "Larger texts, and room for them"),
    Act.ZOOM_OUT: _Spec("Zoom &out", _KEY.ZoomOut, "Smaller texts"),
    Act.ZOOM_RESET: _Spec("&Normal size", "Ctrl+0", "Texts as they were made"),
    Act.NEXT_PANE: _Spec("Next pa&ne", "F6", "From the form to the tab, to the why panel, and around"),
    Act.MEASURE: _Spec("&Measure", "Ctrl+R", "Run the load in a child process and draw its memory", "measure"),
    Act.REHEARSE: _Spec("&Rehearse", "Ctrl+E", "Run the model on fake tensors and open its peaks; needs no GPU", "rehearse"),
    Act.STOP: _Spec("&Stop", "Ctrl+.", "End the run; what was recorded stays", "stop"),
    Act.WATCH: _Spec("&Watch a process or a command …", "Ctrl+Shift+W", "Plot what is not Highwater's against the plan"),
    Act.CALIBRATE: _Spec("&Calibrate …", "", "Let predictions use what this machine adds outside the tensors"),
    Act.HELP: _Spec("&Help on this tab", _KEY.HelpContents, "What the tab in front shows and does"),
    Act.SHORTCUTS: _Spec("&Keyboard shortcuts"),
    Act.ABOUT: _Spec("&About Highwater"),
}
THEMES = (Act.THEME_SYSTEM, Act.THEME_LIGHT, Act.THEME_DARK)
UNITS = (Act.UNITS_GIB, Act.UNITS_GB, Act.UNITS_MIB)


def make_action(act: Act, parent: QObject) -> QAction:
    """The action for ``act``, with its shortcut and tip."""
    spec = _SPECS[act]
    action = QAction(tr(spec.text), parent)
    action.setObjectName(act.name)
    action.setCheckable(bool(spec.value))
    action.setData(spec.value)
    if spec.keys:
        action.setShortcut(QKeySequence(spec.keys))
    if spec.tip:
        action.setToolTip(tr(spec.tip))
        action.setStatusTip(tr(spec.tip))
    return action


def icon_of(act: Act) -> str:
    """The name of the action's icon, empty for none."""
    return _SPECS[act].icon
