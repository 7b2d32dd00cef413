"""One command or file: its title, what it was written for, the text, and buttons that copy and save it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import Slot
from PySide6.QtGui import QFontDatabase, QFontMetrics, QGuiApplication, QResizeEvent
from PySide6.QtWidgets import (
    QFileDialog,
    QFrame,
    QHBoxLayout,
    QLabel,
    QMessageBox,
    QPlainTextEdit,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from gui.elided import ElidedLabel
from gui.theme import NORMAL, set_role
from gui.translate import tr

if TYPE_CHECKING:
    from planner.commands import Command

_MOST_LINES, _SPARE = 24, 4


class CommandCard(QFrame):
    """Shows a command."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._command: Command | None = None
        self.title, self.version, self.notes = QLabel(), ElidedLabel(), QLabel()
        self.text = QPlainTextEdit()
        self.copy, self.save = QPushButton(tr("Copy")), QPushButton(tr("Save …"))
        self._lay_out()
        self.copy.clicked.connect(self._copy)
        self.save.clicked.connect(self._save)

    def _lay_out(self) -> None:
        set_role(self, "card")
        set_role(self.title, "title")
        set_role(self.version, "muted")
        set_role(self.notes, "muted")
        self.notes.setWordWrap(True)
        fixed = QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont)
        fixed.setPixelSize(NORMAL)
        self.text.setFont(fixed)
        self.text.setReadOnly(True)
        self.text.setTabChangesFocus(True)
        self.text.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        head = QHBoxLayout()
        head.addWidget(self.title)
        head.addWidget(self.version, 1)
        head.addWidget(self.copy)
        head.addWidget(self.save)
        column = QVBoxLayout(self)
        column.setContentsMargins(12, 10, 12, 12)
        column.setSpacing(6)
        column.addLayout(head)
        column.addWidget(self.notes)
        column.addWidget(self.text)

    def show_command(self, command: Command) -> None:
        """Show this one; nothing is touched when it is shown already."""
        if command == self._command:
            return
        self._command = command
        self.title.setText(command.title)
        version = f"{command.engine} {command.version}"
        written = tr("written for {}").format(version)
        ways = (f"{written} · {command.file}", f"{version} · {command.file}", version) if command.file else (written, version)
        self.version.setText(*ways)
        self.notes.setText("\n".join(f"• {note}" for note in command.notes))
        self.notes.setVisible(bool(command.notes))
        self.text.setPlainText(command.text.rstrip("\n"))
        self.text.setAccessibleName(command.title)
        self.copy.setAccessibleName(tr("Copy {title}").format(title=command.title))
        self.save.setAccessibleName(tr("Save {title}").format(title=command.title))
        self._fit()

    def resizeEvent(self, event: QResizeEvent) -> None:
        """A bar to scroll sideways takes room of its own."""
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        metrics = QFontMetrics(self.text.font())
        lines = self.text.toPlainText().split("\n")
        frame = 2 * int(self.text.document().documentMargin()) + 2 * self.text.frameWidth()
        wide = max(metrics.horizontalAdvance(line) for line in lines) + frame > self.text.width()
        bar = self.text.horizontalScrollBar().sizeHint().height() if wide else 0
        self.text.setFixedHeight(min(len(lines), _MOST_LINES) * metrics.lineSpacing() + frame + bar + _SPARE)

    @Slot()
    def _copy(self) -> None:
        if self._command is not None:
            QGuiApplication.clipboard().setText(self._command.text)

    @Slot()
    def _save(self) -> None:
        if self._command is None:
            return
        suggested = self._command.file or f"{self._command.engine}.sh"
        chosen, _ = QFileDialog.getSaveFileName(self, tr("Save {title}").format(title=self._command.title), suggested)
        if not chosen:
            return
        try:
            Path(chosen).write_text(self._command.text, encoding="utf-8")
        except OSError as error:
            QMessageBox.warning(self, tr("Not saved"), f"{chosen}: {error.strerror or error}")
