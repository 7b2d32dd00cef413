"""Waiting and bars of seconds that hold on a busy machine: another program delays one try, a wait delays them all."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
TRIES = 8
PATIENCE_S = 120.0
"""For what comes without fail: it ends the waiting, however slow the machine is."""


def eventually(condition: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    """The first answer of ``condition`` that holds; its last one where patience ends before."""
    deadline = time.monotonic() + patience_s
    while not (answer := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return answer


def quickest_s(work: Callable[[], object], bar_s: float) -> float:
    """Seconds of the quickest of a few tries; the first below the bar is enough."""
    taken: list[float] = []
    while len(taken) < TRIES and (not taken or min(taken) >= bar_s):
        begun = time.monotonic()
        work()
        taken.append(time.monotonic() - begun)
    return min(taken)
