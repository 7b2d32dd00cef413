"""Bars of seconds that hold on a busy machine: another program delays one try, a wait delays them all."""

from __future__ import annotations

import time
from collections.abc import Callable

TRIES = 4


def quickest_s(work: Callable[[], object], bar_s: float) -> float:
    """Seconds of the quickest of a few tries; the first below the bar is enough."""
    taken: list[float] = []
    while len(taken) < TRIES and (not taken or min(taken) >= bar_s):
        begun = time.monotonic()
        work()
        taken.append(time.monotonic() - begun)
    return min(taken)
