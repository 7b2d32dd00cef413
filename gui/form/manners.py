"""What every editor of the form does alike: undo belongs to the scenario, and the wheel to the form."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QEvent, QObject
from PySide6.QtGui import QKeyEvent, QKeySequence, QWheelEvent
from PySide6.QtWidgets import QWidget

_UNDO_KEYS = (QKeySequence.StandardKey.Undo, QKeySequence.StandardKey.Redo)


class LeaveUndo(QObject):
    """Keeps a text field from taking Ctrl+Z for itself: undo belongs to the scenario."""

    def eventFilter(self, _watched: QObject, event: QEvent) -> bool:
        """Hand undo and redo on to the window's actions."""
        if event.type() not in (QEvent.Type.ShortcutOverride, QEvent.Type.KeyPress):
            return False
        if isinstance(event, QKeyEvent) and any(event.matches(key) for key in _UNDO_KEYS):
            event.ignore()
            return True
        return False


def wheel_if_focused(widget: QWidget, event: QWheelEvent, otherwise: Callable[[QWheelEvent], None]) -> None:
    """Scroll the form, not the value of ``widget``, unless it has the focus."""
    if widget.hasFocus():
        otherwise(event)
    else:
        event.ignore()
