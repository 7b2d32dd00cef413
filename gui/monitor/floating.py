"""A part of the window that can stand in a window of its own, and comes back when that is closed."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal, Slot
from PySide6.QtGui import QCloseEvent, QHideEvent, QShowEvent
from PySide6.QtWidgets import QLabel, QPushButton, QVBoxLayout, QWidget

from gui.theme import set_role
from gui.translate import tr

_SIZE = (900, 520)


class Panel(QWidget):
    """What can float. ``seen`` tells whether it can be seen now."""

    seen = Signal(bool)

    def showEvent(self, event: QShowEvent) -> None:
        """It can be seen."""
        super().showEvent(event)
        self.seen.emit(True)

    def hideEvent(self, event: QHideEvent) -> None:
        """It can't."""
        self.seen.emit(False)
        super().hideEvent(event)


class Dock(QWidget):
    """Holds a panel, or the words where it is."""

    def __init__(self, panel: Panel, title: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._panel, self._title = panel, title
        self.window_of_its_own: _Frame | None = None
        self._away = QWidget(visible=False)
        self.back = QPushButton(tr("Bring it back"))
        words = QLabel(tr("{} is in a window of its own.").format(title), alignment=Qt.AlignmentFlag.AlignCenter)
        set_role(words, "muted")
        inside = QVBoxLayout(self._away)
        inside.addStretch(1)
        inside.addWidget(words)
        inside.addWidget(self.back, 0, Qt.AlignmentFlag.AlignCenter)
        inside.addStretch(2)
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._column.addWidget(panel)
        self._column.addWidget(self._away)
        self.back.clicked.connect(self.dock)

    @Slot()
    def undock(self) -> None:
        """Put the panel into a window of its own, which stays in front of no other."""
        if self.window_of_its_own is not None:
            self.window_of_its_own.raise_()
            return
        frame = _Frame(self._panel, self._title)
        frame.closed.connect(self.dock)
        self.window_of_its_own = frame
        self._away.show()
        frame.show()

    @Slot()
    def dock(self) -> None:
        """Take the panel back."""
        frame, self.window_of_its_own = self.window_of_its_own, None
        if frame is not None:
            frame.closed.disconnect(self.dock)
            self._away.hide()
            self._column.insertWidget(0, self._panel)
            self._panel.show()
            frame.close()
            frame.deleteLater()


class _Frame(QWidget):
    """The window of its own."""

    closed = Signal()

    def __init__(self, panel: QWidget, title: str) -> None:
        super().__init__()
        set_role(self, "side")
        self.setWindowTitle(f"{title} – Highwater")
        self.setAttribute(Qt.WidgetAttribute.WA_QuitOnClose, on=False)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(panel)
        self.resize(*_SIZE)

    def closeEvent(self, event: QCloseEvent) -> None:
        """The panel goes back to where it came from."""
        super().closeEvent(event)
        self.closed.emit()
