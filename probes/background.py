"""What runs on a thread of its own and tells its events: neither its owner nor the program leaves it behind."""

from __future__ import annotations

import abc
import atexit
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from probes.events import Events
from probes.recording import Event, RecordingState


class End(Protocol):
    """How it ended."""

    def to_json(self) -> dict[str, object]:
        """The fields of the event ``outcome``."""


Ended = TypeVar("Ended", bound=End)


class Background(abc.ABC, Generic[Ended]):
    """``start`` returns at once; ``wait`` or the last event, ``outcome``, tell the end.

    Used as a context manager, or when the program exits, it is closed.
    """

    def __init__(self, name: str, on_event: Callable[[Event], object] | None) -> None:
        """``name`` is the thread's."""
        self._origin = time.monotonic()
        self._events = Events(on_event, self._now)
        self._stop_asked, self._ended = threading.Event(), threading.Event()
        self._end_told: Ended | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin, on threads of its own."""
        self._origin = time.monotonic()
        _LIVE.add(self)
        self._thread.start()

    def stop(self) -> None:
        """Ask it to end; returns at once. After its end this does nothing."""
        self._stop_asked.set()

    def wait(self, timeout_s: float | None = None) -> Ended | None:
        """How it ended, or None if it has not after ``timeout_s``."""
        self._ended.wait(timeout_s)
        return self._end_told if self._ended.is_set() else None

    def close(self) -> None:
        """End it and wait until nothing of it is left. Not to be called from ``on_event``; ``stop`` may be."""
        self.stop()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    @property
    def recording(self) -> RecordingState:
        """Where it is recorded and whether that works."""
        return self._events.recording

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @abc.abstractmethod
    def _run(self) -> None:
        """The work; its last call is :meth:`_finish`, whatever happens."""

    def _finish(self, end: Ended) -> None:
        self._end_told = end
        self._events.emit({"event": "outcome", "t": self._now(), **end.to_json()})
        self._events.close()
        _LIVE.discard(self)
        self._ended.set()

    def _now(self) -> float:
        return round(time.monotonic() - self._origin, 6)


_LIVE: weakref.WeakSet[Background[Any]] = weakref.WeakSet()


@atexit.register
def close_all() -> None:
    """End all that still runs, and what it started."""
    for one in tuple(_LIVE):
        one.close()
