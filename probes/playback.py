"""A recording told again as if it were live, at any speed."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from probes.recording import Event, Recorded


class Playback:
    """Tells the events of a recording to ``on_event``, each at its time. ``speed`` 2 is twice as quick, infinity at once.

    ``run`` blocks until the end; ``stop``, ``pause`` and ``resume`` are for other threads, and ``speed`` may be set meanwhile.
    Raises ValueError for a speed that is not above 0.
    """

    def __init__(self, recorded: Recorded, on_event: Callable[[Event], object], speed: float = 1.0) -> None:
        self._events = recorded.events
        self._on_event = on_event
        self._changed = threading.Condition()
        self._stopped = self._paused = False
        self._speed = _sane(speed)
        self._position_s, self._since = 0.0, time.monotonic()

    @property
    def duration_s(self) -> float:
        """From the first to the last event as it was."""
        return max((_time(event) for event in self._events), default=0.0)

    @property
    def speed(self) -> float:
        """How many recorded seconds pass in one."""
        return self._speed

    @speed.setter
    def speed(self, speed: float) -> None:
        speed = _sane(speed)
        with self._changed:
            self._anchor()
            self._speed = speed
            self._changed.notify_all()

    def run(self) -> bool:
        """Tell every event; whether the end was reached, which it is not when it is stopped."""
        with self._changed:
            self._since = time.monotonic()
        for event in self._events:
            if not self._wait_until(_time(event)):
                return False
            self._on_event(event)
        return True

    def stop(self) -> None:
        """End after the event under way."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def pause(self) -> None:
        """Hold the clock."""
        with self._changed:
            self._anchor()
            self._paused = True

    def resume(self) -> None:
        """Let the clock go on."""
        with self._changed:
            self._anchor()
            self._paused = False
            self._changed.notify_all()

    def _anchor(self) -> None:
        """Count from here on, because the pace changes."""
        self._position_s, self._since = self._now(), time.monotonic()

    def _now(self) -> float:
        """The recorded second that is told by now."""
        if self._paused or math.isinf(self._speed):
            return self._position_s
        return self._position_s + (time.monotonic() - self._since) * self._speed

    def _wait_until(self, t: float) -> bool:
        with self._changed:
            while not self._stopped:
                left_s = math.inf if self._paused else 0.0 if math.isinf(self._speed) else (t - self._now()) / self._speed
                if left_s <= 0:
                    self._position_s = max(self._position_s, t) if math.isinf(self._speed) else self._position_s
                    return True
                self._changed.wait(None if math.isinf(left_s) else min(left_s, threading.TIMEOUT_MAX))
        return False


def _sane(speed: float) -> float:
    if not speed > 0:
        message = f"speed: must be above 0, got {speed:g}"
        raise ValueError(message)
    return speed


def _time(event: Event) -> float:
    t = event.get("t")
    return float(t) if isinstance(t, int | float) and math.isfinite(t) else 0.0
