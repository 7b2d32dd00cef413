"""The line under the plot: what is going on, how it ended, and where it was recorded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PySide6.QtCore import QSize, Qt, Signal, Slot
from PySide6.QtWidgets import QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from gui.elided import ElidedLabel
from gui.icons import icon
from gui.theme import set_role, theme
from gui.translate import tr

_LOOKS = {"completed": ("fits", "fits"), "out_of_memory": ("does_not_fit", "over"), "stopped": ("unknown", "muted")}
_TROUBLE = ("tight", "tight")


class StatusLine(QWidget):
    """Says it in words, with an icon; errors stay until the next run."""

    open_asked = Signal()
    watch_asked = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._look = ("probe", "muted")
        self._icon = QLabel()
        self._text = QLabel(wordWrap=True, textInteractionFlags=Qt.TextInteractionFlag.TextSelectableByMouse)
        self._notes = QLabel(wordWrap=True, visible=False)
        self._path = ElidedLabel(visible=False)
        self._open = QPushButton(tr("Open recording …"), toolTip=tr("Replay a run into the plot (Ctrl+Shift+O)"))
        self._watch = QPushButton(
            tr("Watch …"), toolTip=tr("Plot a process or a command that is not Highwater's against the plan (Ctrl+Shift+W)")
        )
        self._lay_out()
        self._watch.clicked.connect(self.watch_asked)
        self._open.clicked.connect(self.open_asked)
        theme().changed.connect(self._restyle)
        self._restyle()
        self.say(
            tr(
                "Measure runs the plan in a child process; Rehearse plays it on fake tensors, as any card would. "
                "Both are drawn beside the prediction."
            )
        )

    @property
    def text(self) -> str:
        """What is said."""
        return self._text.text()

    @property
    def notes(self) -> str:
        """What else the user should know."""
        return self._notes.text()

    def say(self, text: str, look: tuple[str, str] = ("probe", "muted")) -> None:
        """Say what is going on."""
        if text != self._text.text():
            self._text.setText(text)
        if look != self._look:
            self._look = look
            self._restyle()

    def complain(self, text: str) -> None:
        """Say what could not be done."""
        self.say(text, _TROUBLE)

    def show_outcome(self, outcome: Mapping[str, Any], where: str) -> None:
        """Say how a run ended."""
        look = _LOOKS.get(str(outcome.get("kind")), _TROUBLE)
        self.say(f"{where} {outcome.get('text')}".strip(), look)

    def show_notes(self, notes: list[str]) -> None:
        """Show what a run remarked, each thing once."""
        text = "\n".join(dict.fromkeys(notes))
        if text != self._notes.text():
            self._notes.setText(text)
            self._notes.setVisible(bool(text))

    def show_path(self, path: Path | None) -> None:
        """Show which file the run is recorded in; where it lies, the tool tip tells."""
        self._path.setText("" if path is None else path.name)
        self._path.setToolTip("" if path is None else str(path))
        self._path.setVisible(path is not None)

    def _lay_out(self) -> None:
        set_role(self._notes, "warning")
        set_role(self._path, "small")
        words = QVBoxLayout()
        words.setSpacing(2)
        for label in (self._text, self._notes, self._path):
            words.addWidget(label)
        row = QHBoxLayout(self)
        row.setContentsMargins(2, 0, 0, 0)
        row.setSpacing(8)
        row.addWidget(self._icon, 0, Qt.AlignmentFlag.AlignTop)
        row.addLayout(words, 1)
        row.addWidget(self._watch, 0, Qt.AlignmentFlag.AlignTop)
        row.addWidget(self._open, 0, Qt.AlignmentFlag.AlignTop)

    @Slot()
    def _restyle(self) -> None:
        name, colour = self._look
        self._icon.setPixmap(icon(name, colour).pixmap(QSize(16, 16)))
        self._open.setIcon(icon("recording", "muted"))
