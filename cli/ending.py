"""How a verb waits for what it started."""

from __future__ import annotations

from typing import Protocol, TypeVar

Ended_co = TypeVar("Ended_co", covariant=True)


class Running(Protocol[Ended_co]):
    """What is under way and can be stopped: a probe's session, a watch."""

    def wait(self, timeout_s: float | None = None) -> Ended_co | None:
        """How it ended, None if it has not after ``timeout_s``."""

    def stop(self) -> None:
        """Ask it to end; how it ended still comes."""


def end_of(running: Running[Ended_co]) -> Ended_co:
    """How it ended. Ctrl-C stops it and is an end too, with all that was said until then."""
    while True:
        try:
            ended = running.wait(0.2)
        except KeyboardInterrupt:
            running.stop()
            continue
        if ended is not None:
            return ended
