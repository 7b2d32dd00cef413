"""What stands at the right of the tabs: examples, pin, help."""

from __future__ import annotations

from collections.abc import Mapping

from PySide6.QtCore import Qt, Slot
from PySide6.QtGui import QAction, QCursor
from PySide6.QtWidgets import QHBoxLayout, QMenu, QToolButton, QWidget

from gui.actions import Act
from gui.icons import icon
from gui.theme import set_role, theme
from gui.translate import tr


class Corner(QWidget):
    """Three small buttons."""

    def __init__(self, actions: Mapping[Act, QAction], examples: QMenu) -> None:
        super().__init__()
        self._buttons = {
            "examples": self._button(tr("Examples"), tr("Scenarios that people ask for first")),
            "pin": self._button(tr("Pin"), tr("Keep this plan beside others in the Compare tab (Ctrl+D)")),
            "help": self._button(tr("Help"), tr("What this tab shows and does (F1)")),
        }
        self._buttons["examples"].setMenu(examples)
        self._buttons["examples"].setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        examples.aboutToHide.connect(self._let_go, Qt.ConnectionType.QueuedConnection)
        self._buttons["pin"].clicked.connect(actions[Act.PIN].trigger)
        self._buttons["help"].clicked.connect(actions[Act.HELP].trigger)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 12, 0)
        row.setSpacing(2)
        for button in self._buttons.values():
            row.addWidget(button)
        theme().changed.connect(self._restyle)
        self._restyle()

    def _button(self, text: str, tip: str) -> QToolButton:
        button = QToolButton(text=text, toolTip=tip)
        button.setAccessibleName(text)
        button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        button.setFocusPolicy(Qt.FocusPolicy.TabFocus)  # a click leaves the keyboard where it was
        set_role(button, "link")
        return button

    @Slot()
    def _let_go(self) -> None:
        """The mouse left the button while the menu had it, which nobody told the button."""
        button = self._buttons["examples"]
        under = button.rect().contains(button.mapFromGlobal(QCursor.pos()))
        button.setAttribute(Qt.WidgetAttribute.WA_UnderMouse, under)
        button.update()

    @Slot()
    def _restyle(self) -> None:
        for name, button in self._buttons.items():
            button.setIcon(icon(name, "muted"))
