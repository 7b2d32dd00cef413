"""Child processes that no test leaves behind."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from tests.timing import eventually


def lives(pid: int) -> bool:
    """Whether a process runs, or stands still; not where nobody has asked yet how it ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def is_gone(*pids: int) -> bool:
    """Whether processes end, each in its time."""
    return eventually(lambda: not any(map(lives, pids)))


def is_stopped(pid: int) -> bool:
    """Whether a process comes to stand still."""
    return eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)


@contextmanager
def ending(child: subprocess.Popen[Any]) -> Iterator[None]:
    """Kills the child and what it started if it still runs when the block ends, by a failure too."""
    try:
        yield
    finally:
        if child.poll() is None:
            for process in (*psutil.Process(child.pid).children(recursive=True), child):
                process.kill()
            child.communicate()
