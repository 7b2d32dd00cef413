"""Exit statuses, and how a failure is said."""

from __future__ import annotations

import sys

DONE = 0
DOES_NOT_FIT = 1
BAD_INPUT = 2
NOT_DONE_HERE = 3
INTERRUPTED = 130
OF_VERDICT = {"fits": DONE, "tight": DONE, "does_not_fit": DOES_NOT_FIT, "unknown": NOT_DONE_HERE}


def fail(status: int, *messages: str) -> int:
    """Say each message on a line of standard error; returns ``status``."""
    for message in messages:
        sys.stderr.write(f"highwater: {message}\n")
    return status
