"""Child processes that no test leaves behind."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil


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
