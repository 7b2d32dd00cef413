"""Background work: one type of operation, whose result comes back to bound slots in the window's own thread.

An operation must not touch a widget. Starting a new one under the same key makes the earlier one stale: its result is dropped when
it arrives, and if its turn has not come yet it is not worked on at all.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue

from PySide6.QtCore import QObject, Qt, Signal, Slot

logger = logging.getLogger(__name__)
_THREADS = 8
"""Most of them wait: for the Hub, a disk, a database that another program has locked."""
_WRITES_END_S, _READS_END_S = 20.0, 0.3


@dataclass(frozen=True, slots=True)
class Operation:
    """Work to do away from the window, and the bound slots that take its result or its exception.

    ``lasting`` work writes what outlives the window, so that closing waits for it; any other is left behind.
    """

    key: str
    work: Callable[[], object]
    succeeded: Callable[[object], None]
    failed: Callable[[Exception], None]
    lasting: bool = False


class Operations(QObject):
    """Runs operations on a few threads, which the end of the program does not wait for: a server may never answer."""

    _ended = Signal(object, int, object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._threads: list[threading.Thread] = []
        self._waiting: SimpleQueue[tuple[Operation, int] | None] = SimpleQueue()
        self._generation: Counter[str] = Counter()
        self._running: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._unfinished: Counter[bool] = Counter()
        self._closed = False
        self._ended.connect(self._deliver, Qt.ConnectionType.QueuedConnection)

    def start(self, operation: Operation) -> None:
        """Run ``operation``; an earlier one of the same key no longer counts."""
        if self._closed:
            return
        self._generation[operation.key] += 1
        self._running[operation.key] += 1
        with self._changed:
            self._unfinished[operation.lasting] += 1
        if self._running.total() > len(self._threads) < _THREADS:
            self._threads.append(threading.Thread(target=self._serve, name="operations", daemon=True))
            self._threads[-1].start()
        self._waiting.put((operation, self._generation[operation.key]))

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
        """Deliver nothing more; wait for what is being written, and only a moment for the rest."""
        with self._changed:
            self._closed = True
            if not self._changed.wait_for(lambda: not self._unfinished[True], _WRITES_END_S):
                logger.warning("what was being written is not finished: %s", +self._running)
            self._changed.wait_for(lambda: not self._unfinished[False], _READS_END_S)
        for _ in self._threads:
            self._waiting.put(None)

    def _serve(self) -> None:
        while (job := self._waiting.get()) is not None:
            operation, generation = job
            wanted = operation.lasting or (generation == self._generation[operation.key] and not self._closed)
            result = _result_of(operation) if wanted else None
            with self._changed:
                self._unfinished[operation.lasting] -= 1
                self._changed.notify_all()
                if not self._closed:
                    self._ended.emit(operation, generation, result)

    @Slot(object, int, object)
    def _deliver(self, operation: Operation, generation: int, result: object) -> None:
        self._running[operation.key] -= 1
        if self._closed or generation != self._generation[operation.key]:
            return
        if isinstance(result, Exception):
            operation.failed(result)
        else:
            operation.succeeded(result)


def _result_of(operation: Operation) -> object:
    try:
        return operation.work()
    except Exception as error:  # noqa: BLE001  every failure goes back to the one who asked
        return error
