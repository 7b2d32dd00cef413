"""Meters of the machine's own memory: what a process and its children hold."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

WALK_INTERVAL_S = 0.5
"""Between two searches for new children: each reads the whole process table."""


class ProcessTree:
    """A process and all its descendants, also those that outlived their parent once seen."""

    def __init__(self, pid: int) -> None:
        self._members: dict[int, psutil.Process] = {}
        self._walked_at = -WALK_INTERVAL_S
        with _unless_gone():
            self._members[pid] = psutil.Process(pid)

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes seen so far."""
        return tuple(self._members)

    def walk(self) -> None:
        """Look for new descendants."""
        for member in tuple(self._members.values()):
            with _unless_gone():
                self._members.update({child.pid: child for child in member.children(recursive=True)})
        self._walked_at = time.monotonic()

    def rss_bytes(self) -> int | None:
        """Resident memory of the tree, shared pages counted in each process; None once all have ended."""
        if time.monotonic() - self._walked_at >= WALK_INTERVAL_S:
            self.walk()
        sizes = [size for member in self._members.values() if (size := _rss_bytes(member))]
        return sum(sizes) if sizes else None


def kernel_oom_kills() -> int | None:
    """How many processes the kernel's out-of-memory killer has ended since boot; None where that is not told."""
    try:
        with open("/proc/vmstat", encoding="ascii") as lines:  # noqa: PTH123  not a file with a life of its own
            return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
    except (OSError, ValueError):
        return None


def _rss_bytes(process: psutil.Process) -> int:
    with _unless_gone():
        return int(process.memory_info().rss)
    return 0


@contextmanager
def _unless_gone() -> Iterator[None]:
    """Processes end, or are not ours to look at, between two looks."""
    try:
        yield
    except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
        return
