"""Loads, in the background and once the window is up, the libraries that are slow to import and will be wanted soon."""

from __future__ import annotations

import logging

from PySide6.QtCore import QObject, QTimer, Slot

from gui.libraries import load_hub, load_plot
from gui.operations import Operation, Operations

logger = logging.getLogger(__name__)
_AFTER_MS = 400
"""The first paint and the first reading of the GPUs go before."""


class WarmUp(QObject):
    """Begins by itself a moment after it was made."""

    def __init__(self, operations: Operations, parent: QObject) -> None:
        super().__init__(parent)
        self._operations = operations
        self.done = False
        self._wait = QTimer(self, singleShot=True, interval=_AFTER_MS)
        self._wait.timeout.connect(self._begin)
        self._wait.start()

    @Slot()
    def _begin(self) -> None:
        self._operations.start(Operation("warm up", load_slow_libraries, self._end, self._fail))

    @Slot(object)
    def _end(self, _result: object) -> None:
        self.done = True

    @Slot(object)
    def _fail(self, error: Exception) -> None:
        """Whoever needs the library says so with its remedy."""
        logger.info("not loaded ahead of time: %s", error)
        self.done = True


def load_slow_libraries() -> None:
    """The Hub's client and the plot."""
    load_hub()
    load_plot()
