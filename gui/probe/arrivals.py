"""What other threads say, brought into the window's own: in order, many at a time, and no faster than it can be shown."""

from __future__ import annotations

import threading
from collections import deque

from PySide6.QtCore import QObject, Qt, QTimer, Signal, Slot

_EVERY_MS = 30
"""Between two deliveries of what comes slowly: about a frame of the plot."""
_AT_ONCE = 200
"""So many are taken in before the window's own events have their turn again."""
_WAITING = 2_000


class Arrivals(QObject):
    """``came`` brings a list of what was put in. Whoever puts in more than can be taken waits: a flood must not fill memory."""

    came = Signal(object)
    _begun = Signal()

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._timer = QTimer(self, singleShot=True)
        self._timer.timeout.connect(self._deliver)
        self._begun.connect(self._await_more, Qt.ConnectionType.QueuedConnection)

    def put(self, item: object) -> None:
        """Bring ``item``, from any thread but the window's."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._queue) < _WAITING)
            if self._closed:
                return
            self._queue.append(item)
            if len(self._queue) == 1:
                self._begun.emit()

    def close(self) -> None:
        """Deliver nothing more, and let nobody wait."""
        self._timer.stop()
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()

    @Slot()
    def _await_more(self) -> None:
        if not self._closed and not self._timer.isActive():
            self._timer.start(_EVERY_MS)

    @Slot()
    def _deliver(self) -> None:
        """By a timer, also what is left: events that are posted would go before a repaint or a key."""
        with self._changed:
            items = [self._queue.popleft() for _ in range(min(_AT_ONCE, len(self._queue)))]
            left = bool(self._queue)
            self._changed.notify_all()
        if left:
            self._timer.start(0)
        if items:
            self.came.emit(items)
