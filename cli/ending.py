"""How a verb waits for what it started."""

from __future__ import annotations

from probes.background import Background, Ended


def end_of(running: Background[Ended]) -> Ended:
    """How it ended. Ctrl-C stops it and is an end too, with all that was said until then."""
    while True:
        try:
            ended = running.wait(0.2)
        except KeyboardInterrupt:
            running.stop()
            continue
        if ended is not None:
            return ended
