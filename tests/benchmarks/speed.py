"""Processor time as it would be on a machine of a stated speed, so that a bar in milliseconds means the same on every machine.

Two threads on one core halve its speed, and CI's cores are not those of a desk: a loop of fixed length is timed right before and
right after what is measured, and both are told at the speed at which that loop takes :data:`STATED_MS`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

STATED_MS = 0.40
"""The loop on a quiet core of a current server (3 GHz, Python 3.11); the window's bars are stated for such a one."""
_ADDITIONS = 10_000


def stated_ms(work: Callable[[], object]) -> float:
    """Milliseconds of this thread's processor time that ``work`` takes at the stated speed."""
    before, begun = _loop_ms(), time.thread_time()
    work()
    spent_ms = 1000 * (time.thread_time() - begun)
    return spent_ms * 2 * STATED_MS / (before + _loop_ms())


def _loop_ms() -> float:
    begun, total = time.thread_time(), 0
    for number in range(_ADDITIONS):
        total += number
    return 1000 * (time.thread_time() - begun)
