"""The head of one compared plan: its name, its verdict, and what can be done with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import QSize, Qt, Signal, Slot
from PySide6.QtGui import QIcon, QResizeEvent
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QPushButton, QSizePolicy, QVBoxLayout, QWidget

from gui.compare.difference import peak_of
from gui.elided import ElidedEdit, ElidedLabel
from gui.footprint.verdict import ROLES
from gui.icons import icon
from gui.theme import px, set_role, theme
from gui.translate import tr
from gui.units import format_bytes
from gui.words import word
from planner.words import VERDICTS

if TYPE_CHECKING:
    from resources.plan import Plan

_ICON = QSize(16, 16)
_NARROW_BELOW, _MARGIN, _NARROW_MARGIN = 150, 12, 8


class PlanCard(QFrame):
    """``renamed`` with the new name; ``opened`` and ``removed`` on their buttons. The plan in the form has neither."""

    renamed = Signal(str)
    opened = Signal()
    removed = Signal()

    def __init__(self, *, pinned: bool, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._verdict = "unknown"
        self.name = ElidedEdit(readOnly=not pinned)
        self._narrow = False
        self._icon, self._words = QLabel(), ElidedLabel()
        self._model = ElidedLabel()
        self.open = QPushButton(tr("Open"), toolTip=tr("Put this plan into the form; Ctrl+Z takes it back"), visible=pinned)
        self.remove = QPushButton(tr("Remove"), toolTip=tr("Compare it no longer"), visible=pinned)
        self._lay_out()
        self.name.editingFinished.connect(self._rename)
        self.open.clicked.connect(self.opened)
        self.remove.clicked.connect(self.removed)
        theme().changed.connect(self._restyle)

    def show_plan(self, name: str, plan: Plan) -> None:
        """Show ``plan`` under ``name``."""
        if not self.name.hasFocus() or self.name.isReadOnly():
            self.name.setText(name)
            self.name.setCursorPosition(0)
        footprint, peak = plan.footprint, peak_of(plan.footprint)
        self._verdict = footprint.verdict
        size = format_bytes(peak.device) if peak else tr("not sized")
        self._words.setText(f"{word(VERDICTS, footprint.verdict).label} · {size}", size, size.split()[0])
        card = plan.cards
        self._model.setText(f"{plan.source.label.rsplit('/', 1)[-1]} · {card}", card)
        self.name.setAccessibleName(tr("Name of the plan {}").format(name))
        self.open.setAccessibleName(tr("Open {}").format(name))
        self.remove.setAccessibleName(tr("Remove {}").format(name))
        self._restyle()

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Many cards in a narrow window: a sign instead of a word, and narrower margins."""
        super().resizeEvent(event)
        narrow = self.width() < px(_NARROW_BELOW)
        if narrow != self._narrow:
            self._narrow = narrow
            self._restyle()

    @property
    def text(self) -> str:
        """The verdict in words."""
        return self._words.text()

    def _lay_out(self) -> None:
        set_role(self, "card")
        set_role(self.name, "plain")
        set_role(self._model, "small")
        verdict, buttons = QHBoxLayout(), QHBoxLayout()
        verdict.addWidget(self._icon)
        verdict.addWidget(self._words, 1)
        buttons.setSpacing(4)
        for button in (self.open, self.remove):
            set_role(button, "compact")
            buttons.addWidget(button)
        buttons.addStretch(1)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        column = QVBoxLayout(self)
        column.setContentsMargins(_MARGIN, 8, _MARGIN, 8)
        column.setSpacing(4)
        column.addWidget(self.name)
        column.addLayout(verdict)
        column.addWidget(self._model)
        column.addLayout(buttons)
        column.addStretch(1)
        self.name.setFocusPolicy(Qt.FocusPolicy.NoFocus if self.name.isReadOnly() else Qt.FocusPolicy.StrongFocus)

    @Slot()
    def _rename(self) -> None:
        if not self.name.isReadOnly():
            self.renamed.emit(self.name.text())

    @Slot()
    def _restyle(self) -> None:
        self._icon.setPixmap(icon(self._verdict, ROLES[self._verdict]).pixmap(_ICON))
        self.remove.setText("" if self._narrow else tr("Remove"))
        self.remove.setIcon(icon("close") if self._narrow else QIcon())
        side = _NARROW_MARGIN if self._narrow else _MARGIN
        self.layout().setContentsMargins(side, 8, side, 8)
