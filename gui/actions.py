"""The window's actions: an enumeration names them, one factory makes them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from PySide6.QtCore import QObject
from PySide6.QtGui import QAction, QKeySequence


class Act(Enum):
    """Everything a menu or a shortcut can do."""

    OPEN_SCENARIO = auto()
    SAVE_SCENARIO = auto()
    OPEN_MODEL_FILE = auto()
    OPEN_MODEL_FOLDER = auto()
    OPEN_RECORDING = auto()
    QUIT = auto()
    COPY_ANSWER = auto()
    THEME_SYSTEM = auto()
    THEME_LIGHT = auto()
    THEME_DARK = auto()
    MEASURE = auto()
    REHEARSE = auto()
    STOP = auto()
    FOCUS_MODEL = auto()
    ABOUT = auto()


@dataclass(frozen=True, slots=True)
class _Spec:
    text: str
    keys: QKeySequence.StandardKey | str | None = None
    tip: str = ""
    checkable: bool = False


_SPECS: dict[Act, _Spec] = {
    Act.OPEN_SCENARIO: _Spec("&Open scenario …", QKeySequence.StandardKey.Open),
    Act.SAVE_SCENARIO: _Spec("&Save scenario as …", QKeySequence.StandardKey.Save),
    Act.OPEN_MODEL_FILE: _Spec("Open &model file …", "Ctrl+M", "A config.json, .gguf or .safetensors"),
    Act.OPEN_MODEL_FOLDER: _Spec("Open model &folder …", "Ctrl+Shift+M", "A folder with a config.json"),
    Act.OPEN_RECORDING: _Spec("Open &recording …", "Ctrl+Shift+O", "Replay a run into the plot"),
    Act.QUIT: _Spec("&Quit", QKeySequence.StandardKey.Quit),
    Act.COPY_ANSWER: _Spec("&Copy answer as JSON", "Ctrl+Shift+C", "What predict --json prints"),
    Act.THEME_SYSTEM: _Spec("&System", checkable=True),
    Act.THEME_LIGHT: _Spec("&Light", checkable=True),
    Act.THEME_DARK: _Spec("&Dark", checkable=True),
    Act.MEASURE: _Spec("&Measure", "Ctrl+R", "Run the load in a child process and draw its memory"),
    Act.REHEARSE: _Spec("&Rehearse", "Ctrl+E", "Run the model on fake tensors and open its peaks; needs no GPU"),
    Act.STOP: _Spec("&Stop", "Ctrl+.", "End the run; what was recorded stays"),
    Act.FOCUS_MODEL: _Spec("&Find a model", QKeySequence.StandardKey.Find),
    Act.ABOUT: _Spec("&About Highwater"),
}


def make_action(act: Act, parent: QObject) -> QAction:
    """The action for ``act``, with its shortcut and tip."""
    spec = _SPECS[act]
    action = QAction(spec.text, parent)
    action.setObjectName(act.name)
    action.setCheckable(spec.checkable)
    if spec.keys is not None:
        action.setShortcut(QKeySequence(spec.keys))
    if spec.tip:
        action.setToolTip(spec.tip)
        action.setStatusTip(spec.tip)
    return action
