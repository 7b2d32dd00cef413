"""Watches the event loop: how long it was away at a time."""

from __future__ import annotations

import time

from PySide6.QtCore import QObject, Qt, QTimer, Slot

try:
    from resource import RUSAGE_THREAD, getrusage
except ImportError:
    getrusage = None

BAR_S = 0.05


class Watchdog(QObject):
    """Ticks every two milliseconds; :attr:`longest_s` is the longest time between two ticks.

    Where the system took the processor away in between (an involuntary switch), only the time the thread itself computed counts:
    a busy machine is not the window's fault.
    """

    def __init__(self) -> None:
        super().__init__()
        self.longest_s = 0.0
        self._last = self._now()
        self._timer = QTimer(self, interval=2, timerType=Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self._tick)

    def start(self) -> None:
        self.longest_s, self._last = 0.0, self._now()
        self._timer.start()

    def stop(self) -> float:
        self._timer.stop()
        return self.longest_s

    @Slot()
    def _tick(self) -> None:
        now = self._now()
        away_s, computed_s, preempted = (new - old for new, old in zip(now, self._last, strict=True))
        self.longest_s, self._last = max(self.longest_s, computed_s if preempted else away_s), now

    def _now(self) -> tuple[float, float, int]:
        switches = getrusage(RUSAGE_THREAD).ru_nivcsw if getrusage else 0
        return time.perf_counter(), time.thread_time(), switches
