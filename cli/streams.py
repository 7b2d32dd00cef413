"""Standard output as it comes: a pipe that closes, a disk that is full, an encoding that lacks a sign."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys

from rich.console import Console


def prepare() -> None:
    """From now on what standard output can't encode becomes ``?``: a code page of Windows, the locale C.

    A stream that was closed before the program began (``2>&-``) reads as empty and takes what is written; else the next file
    that is opened would be in its place.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123  for the program's life
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def flush() -> None:
    """Write what is held back, so that a failure is met here and not at the interpreter's end."""
    if sys.stdout is not None:
        sys.stdout.flush()


def abandon() -> None:
    """Let what could not be written go nowhere, so that the interpreter's end does not try again."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        number = sys.stdout.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


def print_json(value: object) -> None:
    """One JSON value, indented; escaped to ASCII where standard output is not UTF-8, so that nothing of it is lost."""
    is_utf8 = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=not is_utf8) + "\n")


class Output(Console):
    """A console that lets its caller know when the reader has gone."""

    def on_broken_pipe(self) -> None:
        """Raise it again: rich would end the program with status 1, which says that the plan does not fit."""
        raise BrokenPipeError


def console() -> Output:
    """Standard output; wide enough for a table when it is no terminal."""
    found = Output(highlight=False)
    return found if found.is_terminal else Output(highlight=False, width=120)
