"""A process beside a run that ends all of it when whoever started it is gone, however that came about.

A program that is killed outright (SIGKILL) runs nothing more, so what it started must be ended by another: this one. It reads
a stream that is open only as long as the starter lives, and when that ends it kills the run: the leader's group, its
descendants, and every process that carries the run's mark in its environment, wherever it has gone.

The text of this file is the program (``python -c``): standard library alone, and little of that, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import subprocess

MARK = "HIGHWATER_PROBE"
"""Environment variable that every descendant of a run inherits: those that left its group are found by it."""
_LOOK_S = 0.5
_KILL_FOR_S = 10.0
_ENDED = ("Z", "X")


class Listed(NamedTuple):
    """One running process of the table."""

    parent: int
    group: int
    marked: bool


def start(mark: str, stdin: int, leader: int = 0, silence_s: float = 0.0) -> subprocess.Popen[bytes] | None:
    """Start one for the run with this mark; None where that is not possible.

    ``stdin`` is what it reads (a descriptor, or ``subprocess.PIPE``): the leader's process id on a line, unless ``leader`` is
    given, which then must be its parent and whose end is an end too. After ``silence_s`` without a byte (0: never) the run is
    killed as well.
    """
    import subprocess

    from .parcel import source_of

    words = [sys.executable, "-I", "-S", "-c", source_of(__name__), mark, str(leader), str(silence_s)]
    try:
        return subprocess.Popen(
            words, stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=os.name == "posix",
            env={name: value for name, value in os.environ.items() if name != MARK},
        )  # fmt: skip
    except (OSError, ValueError, ImportError):
        return None


def main(mark: str, leader: int, silence_s: float) -> None:
    """Wait, then kill."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    told = _listen(leader, silence_s)
    end(mark, leader or told)


def _listen(parent: int, silence_s: float) -> int:
    """Read to the end of what is to be read; the number that stood there, else 0."""
    held, heard_at = b"", time.monotonic()
    while not parent or os.getppid() == parent:
        if _can_read(_LOOK_S if parent or silence_s else None):
            data = os.read(0, 2**16)
            if not data:
                break
            held, heard_at = held or data.strip(), time.monotonic()
        elif silence_s and time.monotonic() - heard_at > silence_s:
            break
    return int(held) if held.isdigit() else 0


def _can_read(timeout_s: float | None) -> bool:
    """Wait for something to read. Windows cannot wait for a pipe: reading it does."""
    if sys.platform == "win32":
        return True
    import select

    return bool(select.select([0], [], [], timeout_s)[0])


def end(mark: str, leader: int) -> None:
    """Kill the run, until nothing of it is left or what is left can't be killed."""
    if sys.platform == "win32":
        if leader:
            os.system(f"taskkill /F /T /PID {leader}")  # a number
        return
    deadline = time.monotonic() + _KILL_FOR_S
    while (left := family(mark, leader)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def family(mark: str, leader: int) -> set[int]:
    """Those that run of a leader's group, its descendants, and the marked; never this process."""
    table = from_proc(mark) if sys.platform == "linux" else from_ps()
    found = {pid for pid, process in table.items() if process.marked or (leader and leader in (pid, process.group))}
    while more := {pid for pid, process in table.items() if process.parent in found} - found:
        found |= more
    return found - {os.getpid()}


def from_proc(mark: str) -> dict[int, Listed]:
    """The processes of Linux (proc(5)); of another user's it is not told what they carry."""
    table = {}
    wanted = f"{MARK}={mark}".encode()
    for name in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208  names alone
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The second field is the name in parentheses, which may hold anything.
            state, parent, group = _read(f"/proc/{name}/stat").rpartition(b")")[2].split()[:3]
            if state.decode() not in _ENDED:
                table[int(name)] = Listed(int(parent), int(group), _carries(name, wanted))
    return table


def _carries(name: str, wanted: bytes) -> bool:
    try:
        return wanted in _read(f"/proc/{name}/environ").split(b"\0")
    except OSError:
        return False


def _read(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123  not a file with a life of its own
        return file.read()


def from_ps() -> dict[int, Listed]:
    """The processes where there is no ``/proc`` (macOS); what they carry is not told."""
    import subprocess

    table = {}
    with contextlib.suppress(OSError):
        told = subprocess.run(
            ["ps", "-A", "-o", "pid=", "-o", "ppid=", "-o", "pgid=", "-o", "stat="],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False,
        )  # fmt: skip
        for words in map(bytes.split, told.stdout.splitlines()):
            if len(words) == 4 and words[3][:1].decode() not in _ENDED:
                table[int(words[0])] = Listed(int(words[1]), int(words[2]), marked=False)
    return table


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
