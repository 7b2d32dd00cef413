"""A thread that takes a reading at a steady pace."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

logger = logging.getLogger(__name__)

PROBE_INTERVAL_S = 0.05
"""Between two readings while a probe runs."""
IDLE_INTERVAL_S = 0.5
"""Between two readings when nothing of ours runs; also for what is slow to read (processes, power)."""

_LAST_READING_S = 5.0


class Sampler:
    """Calls ``read`` every ``interval_s`` seconds on its own thread, on a grid that does not drift.

    A reading that takes longer than the interval makes the next ones be skipped and counted in ``missed``, never
    caught up in a burst. One that raises is logged the first time, and sampling goes on.
    """

    def __init__(self, read: Callable[[], object], interval_s: float, name: str = "sampler") -> None:
        self.interval_s = interval_s
        self.missed = 0
        self._read = read
        self._failed = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Take the first reading now."""
        self._thread.start()

    def stop(self) -> None:
        """End after the reading under way, which is waited for a few seconds: a dying driver may never answer."""
        self._stopped.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(_LAST_READING_S)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopped.wait(max(0.0, due - time.monotonic())):
            self._read_once()
            due += self.interval_s
            late = int(max(0.0, time.monotonic() - due) / self.interval_s)
            self.missed += late
            due += late * self.interval_s

    def _read_once(self) -> None:
        try:
            self._read()
        except Exception:
            if not self._failed:
                logger.exception("a reading failed; sampling goes on")
            self._failed = True
