"""Background work: one type of operation, whose result comes back to bound slots in the window's own thread.

An operation must not touch a widget. Starting a new one under the same key makes the running one stale: its result
is dropped when it arrives.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from PySide6.QtCore import QObject, QRunnable, Qt, QThreadPool, Signal, Slot

logger = logging.getLogger(__name__)
_CLOSE_TIMEOUT_MS = 5_000


@dataclass(frozen=True, slots=True)
class Operation:
    """Work to do away from the window, and the bound slots that take its result or its exception."""

    key: str
    work: Callable[[], object]
    succeeded: Callable[[object], None]
    failed: Callable[[Exception], None]


class Operations(QObject):
    """Runs operations on a small pool of threads."""

    _ended = Signal(object, int, object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._pool = QThreadPool(self)
        self._pool.setMaxThreadCount(4)
        self._generation: Counter[str] = Counter()
        self._running: Counter[str] = Counter()
        self._ended.connect(self._deliver, Qt.ConnectionType.QueuedConnection)

    def start(self, operation: Operation) -> None:
        """Run ``operation``; an earlier one of the same key no longer counts."""
        self._generation[operation.key] += 1
        self._running[operation.key] += 1
        self._pool.start(_Run(operation, self._generation[operation.key], self._ended.emit))

    def cancel(self, key: str) -> None:
        """Drop the result of whatever runs under ``key``."""
        self._generation[key] += 1

    def running(self, key: str) -> bool:
        """Whether work under ``key`` is still on a thread."""
        return self._running[key] > 0

    @property
    def idle(self) -> bool:
        """Whether nothing is on a thread."""
        return not +self._running

    def close(self) -> None:
        """Wait for the threads; no result is delivered any more."""
        for key in list(self._generation):
            self.cancel(key)
        if not self._pool.waitForDone(_CLOSE_TIMEOUT_MS):
            logger.warning("background work was still running at the end: %s", +self._running)

    @Slot(object, int, object)
    def _deliver(self, operation: Operation, generation: int, result: object) -> None:
        self._running[operation.key] -= 1
        if generation != self._generation[operation.key]:
            return
        if isinstance(result, Exception):
            operation.failed(result)
        else:
            operation.succeeded(result)


class _Run(QRunnable):
    def __init__(self, operation: Operation, generation: int, ended: Callable[[Operation, int, object], None]) -> None:
        super().__init__()
        self._operation, self._generation, self._ended = operation, generation, ended

    def run(self) -> None:
        try:
            result: object = self._operation.work()
        except Exception as error:  # noqa: BLE001  every failure goes back to the one who asked
            result = error
        with contextlib.suppress(RuntimeError):  # the window is gone, and with it the one who asked
            self._ended(self._operation, self._generation, result)
