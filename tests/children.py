"""Child processes that no test leaves behind."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ending(child: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """The child, killed if it still runs when the block ends, by a failure too."""
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
            child.communicate()
