"""Whom to watch: a process that runs, or a command to launch."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from PySide6.QtCore import Signal, Slot
from PySide6.QtWidgets import QDialog, QGridLayout, QLabel, QLineEdit, QPushButton, QVBoxLayout, QWidget

from gui.form.editors import SearchField
from gui.theme import set_role
from gui.translate import tr
from probes.watch import Attach, Launch

_WIDTH = 620
_INTRO = (
    "Its memory is plotted against the plan in the form, and what its log says of memory is told beside it. A process that runs "
    "already is left as it is when the watch ends; a command that is launched here is ended with it."
)


class WatchDialog(QDialog):
    """``chosen`` with whom."""

    chosen = Signal(object)

    def __init__(self, processes: Sequence[str], command: str, parent: QWidget | None = None) -> None:
        """``processes``: those that hold memory of a GPU, each beginning with its number. ``command``: what runs the plan."""
        super().__init__(parent)
        self._processes = tuple(processes)
        self.process = SearchField(self._found)
        self.log = QLineEdit(placeholderText=tr("its log file, if it writes one"))
        self.command = QLineEdit(command)
        self.attach, self.launch = QPushButton(tr("Attach")), QPushButton(tr("Launch"))
        self.fault = QLabel(wordWrap=True, visible=False)
        self._lay_out()
        self.attach.clicked.connect(self._attach)
        self.launch.clicked.connect(self._launch)
        self.command.returnPressed.connect(self._launch)

    def _found(self, text: str) -> list[str]:
        return [process for process in self._processes if text.lower() in process.lower()]

    def _lay_out(self) -> None:
        self.setWindowTitle(tr("Watch"))
        self.setFixedWidth(_WIDTH)
        self.process.setPlaceholderText(tr("process number"))
        for button in (self.attach, self.launch):
            button.setAutoDefault(False)
        rows = (
            (tr("A process that runs"), self.process, None), (tr("Log"), self.log, self.attach),
            (tr("A command to launch"), self.command, self.launch),
        )  # fmt: skip
        grid = QGridLayout()
        grid.setColumnStretch(1, 1)
        for number, (text, field, button) in enumerate(rows):
            label = QLabel(text)
            label.setBuddy(field)
            field.setAccessibleName(text)
            grid.addWidget(label, number, 0)
            grid.addWidget(field, number, 1)
            if button is not None:
                grid.addWidget(button, number, 2)
        intro = QLabel(tr(_INTRO), wordWrap=True)
        set_role(intro, "muted")
        set_role(self.fault, "fault")
        column = QVBoxLayout(self)
        column.setContentsMargins(16, 14, 16, 14)
        column.setSpacing(12)
        column.addWidget(intro)
        column.addLayout(grid)
        column.addWidget(self.fault)

    @Slot()
    def _attach(self) -> None:
        number, log = str(self.process.value()).split(" ")[0], self.log.text().strip()
        if not number.isdigit():
            self._complain(tr("The number of a process is needed, such as 4711."))
        elif log and not Path(log).is_file():
            self._complain(tr("{} is not a file.").format(log))
        else:
            self._choose(Attach(int(number), Path(log) if log else None))

    @Slot()
    def _launch(self) -> None:
        try:
            words = shlex.split(self.command.text())
        except ValueError as error:
            self._complain(tr("The command can't be read: {}").format(error))
            return
        if words:
            self._choose(Launch(words))
        else:
            self._complain(tr("A command is needed, such as vllm serve MODEL."))

    def _choose(self, target: Attach | Launch) -> None:
        self.accept()
        self.chosen.emit(target)

    def _complain(self, text: str) -> None:
        self.fault.setText(text)
        self.fault.setVisible(True)


def one_line(command: str) -> str:
    """A shell command that is continued over several lines, as one."""
    return re.sub(r"\s*\\\n\s*", " ", command).strip()
