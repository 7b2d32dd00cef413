"""A scroll bar that keeps its room when there is nothing to scroll, so that what stands beside it never changes its width."""

from __future__ import annotations

from PySide6.QtGui import QPaintEvent
from PySide6.QtWidgets import QScrollBar


class QuietBar(QScrollBar):
    """Is not seen where it has nothing to scroll."""

    def paintEvent(self, event: QPaintEvent) -> None:
        """Nothing, or the bar."""
        if self.maximum() > 0:
            super().paintEvent(event)
