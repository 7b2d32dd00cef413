"""Several ranks: the worker under ``torchrun``, one stream from each, merged into this process's wire.

Every rank connects to a socket of this process, gets the package and the order over it and sends its events back. Rank 0's go
on as they are; another's are wrapped: ``{"event": "rank", "rank": 1, "of": {…}}``. Once all have ended there is one ``result``:
rank 0's with ``ranks``, the results of all; or what the first rank that failed said, or that it ended without a word.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from .errors import WorkerError, missing_package
from .parcel import parcel_line
from .wire import Wire

SOCKET = "HIGHWATER_RANKS"
"""Environment variable: the path of the socket a rank connects to."""
PROGRAM = (
    "import os,socket,sys\n"
    f"link=socket.socket(socket.AF_UNIX);link.connect(os.environ['{SOCKET}'])\n"
    "os.dup2(link.fileno(),0);os.dup2(link.fileno(),1);exec(sys.stdin.buffer.readline())"
)
"""What a rank runs: it reads the package and the order from the socket, and its events go there."""
SILENCE_S = 120.0
"""A rank that has spoken and then says nothing for so long has stopped: its sampler speaks twenty times a second."""
_OTHERS_GRACE_S = 3.0
_ECHO_S = 1.0
"""Ranks that lose one of them fail in their next collective; what they say of it may be read before that one's end is."""
_HEARTBEAT_S = 5.0
_LEFT_S = 10.0


def launch(order: dict[str, Any], ranks: int, wire: Wire) -> None:
    """Run the order on ``ranks`` processes and send one result. Raises :class:`WorkerError`."""
    if not hasattr(socket, "AF_UNIX") or os.name != "posix":
        raise WorkerError("unsupported", "several ranks need Linux or macOS", "ranks")
    if find_spec("torch") is None:
        raise missing_package("torch")
    Ranks(order, ranks, wire).run()


class Ranks:
    """The ranks of one run. Each runs ``program`` and counts as stopped after ``silence_s``."""

    def __init__(self, order: dict[str, Any], ranks: int, wire: Wire, program: str = PROGRAM, silence_s: float = SILENCE_S) -> None:
        self._line = parcel_line() + json.dumps(order, separators=(",", ":")).encode() + b"\n"
        self._ranks, self._wire = ranks, wire
        self._program, self._silence_s = program, silence_s
        self._results: dict[int, dict[str, Any]] = {}
        self._failures: list[dict[str, Any]] = []
        self._heard_at: dict[int, float] = {}
        self._pids: dict[int, int | None] = {}
        self._lost: list[int] = []
        self._stopped: set[int] = set()
        self._failed_at, self._lost_at = 0.0, 0.0
        self._over = threading.Event()
        self._log = AgentLog()

    def run(self) -> None:
        """Start them, listen to them, and say how it ended."""
        with _listening(self._ranks) as (listener, path):
            command = [
                sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self._ranks),
                "--no-python", sys.executable, "-c", self._program,
            ]  # fmt: skip
            torchrun = subprocess.Popen(
                command, env={**os.environ, SOCKET: path}, stdin=subprocess.DEVNULL, stdout=2, stderr=subprocess.PIPE
            )
            assert torchrun.stderr is not None
            reader = self._log.read(torchrun.stderr)
            threading.Thread(target=self._accept, args=(listener,), name="ranks", daemon=True).start()
            try:
                self._wait(torchrun)
            finally:
                self._over.set()
                _end(torchrun)
                self._kill(*list(self._pids))
            reader.join(_OTHERS_GRACE_S)
        self._conclude(torchrun.returncode)

    def _wait(self, torchrun: subprocess.Popen[bytes]) -> None:
        """Until all have spoken; when one failed the others wait for it in vain and are given a moment only."""
        while len(self._results) < self._ranks and torchrun.poll() is None:
            time.sleep(0.05)
            now = time.monotonic()
            for rank, heard_at in tuple(self._heard_at.items()):
                if rank not in (*self._results, *self._lost) and now - heard_at > self._silence_s:
                    self._stopped.add(rank)
                    self._lose(rank)
                    self._kill(rank)
            failed_at = self._failed_at or self._lost_at
            if failed_at and now - failed_at > _OTHERS_GRACE_S:
                return

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            for _ in range(self._ranks):
                link, _address = listener.accept()
                threading.Thread(target=self._listen, args=(link,), name="rank", daemon=True).start()
                threading.Thread(target=self._feed, args=(link,), name="rank-input", daemon=True).start()

    def _feed(self, link: socket.socket) -> None:
        with contextlib.suppress(OSError):
            link.sendall(self._line)
            while not self._over.wait(_HEARTBEAT_S):
                link.sendall(b"\n")

    def _listen(self, link: socket.socket) -> None:
        rank: int | None = None
        with contextlib.suppress(OSError), link, link.makefile("rb") as lines:
            for line in lines:
                told = _told(line)
                if told is not None:
                    rank = self._take(*told)
                    self._pids.setdefault(rank, peer_of(link))
        self._pids.pop(-1 if rank is None else rank, None)
        if rank is not None and rank not in self._results and not self._over.is_set():
            self._lose(rank)

    def _take(self, rank: int, event: dict[str, Any]) -> int:
        self._heard_at[rank] = time.monotonic()
        if event["event"] in ("result", "error"):
            self._take_last(rank, event)
        elif rank:
            self._wire.send("rank", t=event.get("t"), rank=rank, of=event)
        else:
            self._wire.send(**event)
        return rank

    def _take_last(self, rank: int, told: dict[str, Any]) -> None:
        told["rank"] = rank
        if told["event"] == "error" or told.get("outcome") != "completed":
            self._failed_at = self._failed_at or time.monotonic()
            self._failures.append(told)
        self._results[rank] = told

    def _lose(self, rank: int) -> None:
        """A rank's stream has ended or stopped before its last word."""
        if rank not in self._lost:
            self._lost.append(rank)
            self._lost_at = self._lost_at or time.monotonic()

    def _kill(self, *ranks: int) -> None:
        """End ranks that hold their link still; a stopped process heeds nothing else."""
        for pid in [self._pids.get(rank) for rank in ranks]:
            if pid is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)

    def _conclude(self, status: int | None) -> None:
        told = self._cause(status)
        if told["event"] == "error":
            raise WorkerError(told["kind"], f"rank {told['rank']}: {told['message']}", told.get("field"), rank=told["rank"])
        ranks = [self._results[rank] for rank in sorted(self._results)]
        self._wire.close(**{**told, "ranks": [{"rank": each["rank"], "phases": each.get("phases", [])} for each in ranks]})

    def _cause(self, status: int | None) -> dict[str, Any]:
        """What is told: rank 0's result, or what went wrong first. Raises :class:`WorkerError` for a rank that was lost."""
        # A rank that ran out of memory leaves the others with a broken collective: what they say is its echo.
        memory = next((each for each in self._failures if each["event"] == "result"), None)
        if memory is not None:
            return memory
        lost = next((rank for rank in self._lost if self._log.exits.get(rank) != -signal.SIGTERM), None)
        if lost is not None and (not self._failures or self._lost_at < self._failed_at + _ECHO_S):
            raise self._ended_silently(lost)
        if self._failures:
            return self._failures[0]
        if len(self._results) < self._ranks:
            if self._log.exits:
                raise self._ended_silently(self._log.root)
            raise WorkerError("internal", f"torchrun ended with status {status} before every rank had answered")
        return self._results[0]

    def _ended_silently(self, rank: int) -> WorkerError:
        status = self._log.exits.get(rank)
        number = -status if status is not None and status < 0 and rank not in self._stopped else None
        if rank in self._stopped:
            words = f"ended because it said nothing for {self._silence_s:g} s"
        elif number:
            words = f"signal {number} ended it"
        else:
            words = "it ended without a word" + ("" if status is None else f", exit status {status}")
        return WorkerError("rank_ended", f"rank {rank}: {words}", rank=rank, signal=number)


class AgentLog:
    """What torchrun says, passed on to standard error but for the machine's name; ``exits`` has the status of ranks that failed.

    Its summary tells of each a line ``rank : 1 (local_rank: 1)`` and after it ``exitcode : -9 (pid: …)``
    (torch/distributed/elastic/multiprocessing/errors, _FAILURE_FORMAT_TEMPLATE), the root cause last.
    """

    def __init__(self) -> None:
        self.exits: dict[int, int] = {}
        self._rank: int | None = None

    @property
    def root(self) -> int:
        """The rank that failed first."""
        return list(self.exits)[-1]

    def read(self, stream: IO[bytes]) -> threading.Thread:
        """Follow a stream to its end, on a thread."""
        thread = threading.Thread(target=self._read, args=(stream,), name="torchrun-log", daemon=True)
        thread.start()
        return thread

    def take(self, line: str) -> bool:
        """Learn from a line; whether it may be passed on."""
        found = re.match(r"\s*(host|rank|exitcode)\s*: (-?\w+)", line)
        if found is None:
            return True
        if found[1] == "rank" and found[2].isdecimal():
            self._rank = int(found[2])
        elif found[1] == "exitcode" and self._rank is not None:
            self.exits.setdefault(self._rank, int(found[2]))
        return found[1] != "host"

    def _read(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError), stream:
            for line in stream:
                if self.take(line.decode("utf-8", "replace")):
                    os.write(2, line)


@contextlib.contextmanager
def _listening(ranks: int) -> Iterator[tuple[socket.socket, str]]:
    """A socket in a folder of its own, which only this user can enter, and its path."""
    with tempfile.TemporaryDirectory(prefix="highwater-") as folder, socket.socket(socket.AF_UNIX) as listener:
        path = str(Path(folder) / "ranks")
        listener.bind(path)
        listener.listen(ranks)
        yield listener, path


def _told(line: bytes) -> tuple[int, dict[str, Any]] | None:
    """Rank and event of a line; None for what is no event."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(event, Mapping) and event.get("event") == "rank" and isinstance(event.get("rank"), int):
        rank, event = event["rank"], event.get("of")
    else:
        rank = 0
    return (rank, dict(event)) if isinstance(event, Mapping) and isinstance(event.get("event"), str) else None


def peer_of(link: socket.socket) -> int | None:
    """The process id at the other end (unix(7), SO_PEERCRED; macOS, LOCAL_PEERPID); None where it is not told."""
    try:
        if sys.platform == "darwin":
            return struct.unpack("i", link.getsockopt(0, 2, 4))[0]
        return struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    except (OSError, AttributeError, struct.error):
        return None


def _end(torchrun: subprocess.Popen[bytes]) -> None:
    """Leave no agent behind; ranks end with their socket and their agent."""
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is not None:
            torchrun.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            torchrun.wait(_LEFT_S if number is not None else _OTHERS_GRACE_S)
            return
