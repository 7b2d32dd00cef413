"""The tabs of the window, which stay as they are while what they show is laid out anew."""

from __future__ import annotations

from PySide6.QtCore import QEvent, QSize
from PySide6.QtWidgets import QTabWidget


class Views(QTabWidget):
    """Qt lays its bar and its page out and paints all of both whenever anything in the page has moved."""

    _needed: tuple[QSize, ...] = ()

    def event(self, event: QEvent) -> bool:
        """Only a bar or a page that needs another room is laid out."""
        if event.type() == QEvent.Type.LayoutRequest:
            needed = (self.tabBar().sizeHint(), self.tabBar().minimumSizeHint(), self.minimumSizeHint())
            if needed == self._needed:
                return True
            self._needed = needed
        return super().event(event)
