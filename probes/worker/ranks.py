"""Several ranks: the worker under ``torchrun``, one stream from each, merged into this process's wire.

Every rank connects to a socket of this process, gets the package and the order over it and sends its events back. Rank 0's go
on as they are; another's are wrapped: ``{"event": "rank", "rank": 1, "of": {…}}``. Once all have ended there is one ``result``:
rank 0's with ``ranks``, the results of all; or what the first rank that failed said.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from .errors import WorkerError
from .parcel import parcel_line
from .wire import Wire

SOCKET = "HIGHWATER_RANKS"
"""Environment variable: the path of the socket a rank connects to."""
_START = (
    "import os,socket,sys\n"
    f"link=socket.socket(socket.AF_UNIX);link.connect(os.environ['{SOCKET}'])\n"
    "os.dup2(link.fileno(),0);os.dup2(link.fileno(),1);exec(sys.stdin.buffer.readline())"
)
_OTHERS_GRACE_S = 3.0
_HEARTBEAT_S = 5.0
_LEFT_S = 10.0


def launch(order: dict[str, Any], ranks: int, wire: Wire) -> None:
    """Run the order on ``ranks`` processes and send one result. Raises :class:`WorkerError`."""
    if not hasattr(socket, "AF_UNIX") or os.name != "posix":
        raise WorkerError("unsupported", "several ranks need Linux or macOS", "ranks")
    with tempfile.TemporaryDirectory(prefix="highwater-") as folder:
        path = str(Path(folder) / "ranks")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(ranks)
            Ranks(order, ranks, wire).run(listener, path)


class Ranks:
    """The ranks of one run."""

    def __init__(self, order: dict[str, Any], ranks: int, wire: Wire) -> None:
        self._line = parcel_line() + json.dumps(order, separators=(",", ":")).encode() + b"\n"
        self._ranks = ranks
        self._wire = wire
        self._results: dict[int, dict[str, Any]] = {}
        self._failures: list[dict[str, Any]] = []
        self._failed_at = 0.0
        self._over = threading.Event()

    def run(self, listener: socket.socket, path: str) -> None:
        """Start them, listen to them, and say how it ended."""
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self._ranks),
            "--no-python", sys.executable, "-c", _START,
        ]  # fmt: skip
        environment = {**os.environ, SOCKET: path}
        torchrun = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=2)
        threading.Thread(target=self._accept, args=(listener,), name="ranks", daemon=True).start()
        try:
            self._wait(torchrun)
        finally:
            self._over.set()
            _end(torchrun)
        self._conclude(torchrun.returncode)

    def _wait(self, torchrun: subprocess.Popen[bytes]) -> None:
        """Until all have spoken; when one failed the others wait for it in vain and are given a moment only."""
        while len(self._results) < self._ranks and torchrun.poll() is None:
            time.sleep(0.05)
            if self._failures and time.monotonic() - self._failed_at > _OTHERS_GRACE_S:
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
        with contextlib.suppress(OSError), link.makefile("rb") as lines:
            for line in lines:
                with contextlib.suppress(ValueError):
                    self._take(json.loads(line))

    def _take(self, event: dict[str, Any]) -> None:
        rank = event["rank"] if event["event"] == "rank" else 0
        told = event["of"] if event["event"] == "rank" else event
        if told["event"] in ("result", "error"):
            self._take_last(rank, told)
        else:
            self._wire.send(**event)

    def _take_last(self, rank: int, told: dict[str, Any]) -> None:
        told["rank"] = rank
        if told["event"] == "error" or told.get("outcome") != "completed":
            self._failed_at = self._failed_at or time.monotonic()
            self._failures.append(told)
        self._results[rank] = told

    def _conclude(self, status: int | None) -> None:
        if self._failures:
            # A rank that ran out of memory leaves the others with a broken collective: what they say is its echo.
            told = next((each for each in self._failures if each["event"] == "result"), self._failures[0])
            if told["event"] == "error":
                raise WorkerError(told["kind"], f"rank {told['rank']}: {told['message']}", told.get("field"))
        elif len(self._results) < self._ranks:
            raise WorkerError("internal", f"torchrun ended with status {status} before every rank had answered")
        else:
            told = self._results[0]
        ranks = [self._results[rank] for rank in sorted(self._results)]
        self._wire.close(**{**told, "ranks": [{"rank": each["rank"], "phases": each.get("phases", [])} for each in ranks]})


def _end(torchrun: subprocess.Popen[bytes]) -> None:
    """Leave no agent behind; ranks end with their socket and their agent."""
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is not None:
            torchrun.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            torchrun.wait(_LEFT_S if number is not None else _OTHERS_GRACE_S)
            return
