"""The Commands tab: the plan's launch line and files, each to copy or to save."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import Qt, Slot
from PySide6.QtGui import QShowEvent
from PySide6.QtWidgets import QLabel, QScrollArea, QVBoxLayout, QWidget

from gui.commands.card import CommandCard
from gui.theme import set_role
from gui.translate import tr
from planner.commands import commands_of

if TYPE_CHECKING:
    from gui.context import Context


class CommandsTab(QWidget):
    """What runs the plan."""

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._state = context.state
        self.cards: list[CommandCard] = []
        self.stale = QLabel(wordWrap=True)
        set_role(self.stale, "warning")
        inside = QWidget()
        self._column = QVBoxLayout(inside)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._column.setSpacing(10)
        self._column.addStretch(1)
        area = QScrollArea()
        area.setWidgetResizable(True)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        area.setWidget(inside)
        area.setAccessibleName(tr("Commands and files"))
        column = QVBoxLayout(self)
        column.setContentsMargins(12, 12, 12, 12)
        column.addWidget(self.stale)
        column.addWidget(area, 1)
        self._state.plan_changed.connect(self._show_plan)
        self._state.faults_changed.connect(self._show_plan)
        self._state.busy_changed.connect(self._show_plan)

    def showEvent(self, event: QShowEvent) -> None:
        """Catch up with the plan."""
        super().showEvent(event)
        self._show_plan()

    @Slot()
    def _show_plan(self) -> None:
        if not self.isVisible():
            return
        self.stale.setText(self._state.trouble)
        self.stale.setVisible(bool(self._state.trouble))
        if self._state.plan is None:
            return
        commands = commands_of(self._state.settled, self._state.plan.architecture, self._state.plan.gpu)
        while len(self.cards) < len(commands):
            self.cards.append(CommandCard(self))
            self._column.insertWidget(len(self.cards) - 1, self.cards[-1])
        for card, command in zip(self.cards, commands, strict=False):
            card.show_command(command)
        for number, card in enumerate(self.cards):
            card.setVisible(number < len(commands))
