"""What every editor of the form does alike: undo belongs to the scenario, and the wheel to the form."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QEvent, QKeyCombination, QObject, Qt, Slot
from PySide6.QtGui import QKeyEvent, QKeySequence, QWheelEvent
from PySide6.QtWidgets import QAbstractSpinBox, QApplication, QLineEdit, QWidget

_UNDO_KEYS = (QKeySequence.StandardKey.Undo, QKeySequence.StandardKey.Redo)
_REHEARSE = QKeyCombination(Qt.KeyboardModifier.ControlModifier, Qt.Key.Key_E)
"""On X11 also a text field's own key for the end of the line, which End is too."""
BY_KEY_OR_CLICK = Qt.FocusPolicy.StrongFocus
"""Qt gives boxes of choices and numbers the focus when the wheel turns over them, and with it the wheel."""


class LeaveUndo(QObject):
    """Keeps the text field of ``form`` that has the focus from taking the window's keys for itself: undo belongs to the scenario.

    It listens to that one field alone: a listener at every field would be called for all that happens to all of them.
    """

    def __init__(self, form: QWidget) -> None:
        super().__init__(form)
        self._form = form
        QApplication.instance().focusChanged.connect(self._follow)

    @Slot(QWidget, QWidget)
    def _follow(self, before: QWidget | None, now: QWidget | None) -> None:
        if before is not None:
            before.removeEventFilter(self)
        if isinstance(now, QLineEdit | QAbstractSpinBox) and self._form.isAncestorOf(now):
            now.installEventFilter(self)

    def eventFilter(self, _watched: QObject, event: QEvent) -> bool:
        """Hand undo, redo and rehearse on to the window's actions."""
        if event.type() not in (QEvent.Type.ShortcutOverride, QEvent.Type.KeyPress):
            return False
        if isinstance(event, QKeyEvent) and (event.keyCombination() == _REHEARSE or any(map(event.matches, _UNDO_KEYS))):
            event.ignore()
            return True
        return False


def wheel_if_focused(widget: QWidget, event: QWheelEvent, otherwise: Callable[[QWheelEvent], None]) -> None:
    """Scroll the form, not the value of ``widget``, unless it has the focus."""
    if widget.hasFocus():
        otherwise(event)
    else:
        event.ignore()
