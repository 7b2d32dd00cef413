"""The event stream: one JSON object a line on a descriptor that nothing else can write to."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any, Protocol

_RANK = int(os.environ.get("RANK", "0")) if "HIGHWATER_RANKS" in os.environ else 0


def claim_stdout() -> int:
    """Take standard output away from everybody: returns its descriptor; ``print`` goes to standard error from now on."""
    sys.stdout.flush()
    descriptor = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return descriptor


class Sender(Protocol):
    """Takes events."""

    def send(self, event: str, **fields: Any) -> None:
        """Take one event."""


class Wire:
    """Writes events from any thread. A reader that has gone away ends the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._closed = False

    def send(self, event: str, **fields: Any) -> None:
        """Write one event with its time (monotonic seconds). After :meth:`close` events are dropped."""
        line = _line(event, fields)
        with self._lock:
            if not self._closed:
                self._write(line)

    def close(self, event: str, **fields: Any) -> None:
        """Write the last event; no other thread's can come after it."""
        line = _line(event, fields)
        with self._lock:
            if not self._closed:
                self._write(line)
                self._closed = True

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            os._exit(130)


class HeldWire:
    """Keeps what is said of storages and phases until it is released; all else is sent at once."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._held: list[tuple[str, str]] = []

    def send(self, event: str, **fields: Any) -> None:
        """Keep or send one event."""
        if event in ("storage", "phase"):
            self._held.append((event, json.dumps(fields, separators=(",", ":"), ensure_ascii=False)))
        else:
            self._wire.send(event, **fields)

    def release(self) -> None:
        """Send all that was kept."""
        for event, fields in self._held:
            self._wire.send(event, **json.loads(fields))
        self._held.clear()


def _line(event: str, fields: dict[str, Any]) -> bytes:
    told = {"event": event, "t": time.monotonic(), **fields}
    if _RANK:
        told = {"event": "rank", "t": told["t"], "rank": _RANK, "of": told}
    text = json.dumps(told, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "replace") + b"\n"
