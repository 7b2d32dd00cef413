"""Measuring on another machine through the user's own ``ssh``: its configuration, keys, agent and jump hosts.

Nothing is installed there and nothing is written there: the worker travels over standard input
(:mod:`probes.worker.landing`). No password is asked for. The host's name is in the command and in messages alone: not in
the order, nor in the scenario or anything that a link is made of.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass, replace

from probes.outcome import Outcome
from probes.worker.landing import START
from probes.worker.parcel import parcel_line

CONFIG_VARIABLE = "HIGHWATER_SSH_CONFIG"
"""Environment variable: a file for ``ssh -F`` in place of the user's own."""
HEARTBEAT_S = 5.0
"""The worker is written to so often; it ends after thirty seconds without."""
_CONNECT_TIMEOUT_S = 20
_ALIVE_INTERVAL_S = 5
_ALIVE_COUNT = 3
_SSH_FAILED = 255
"""ssh's own exit status, also when a signal ended the program there."""
_NO_SUCH_PROGRAM = (126, 127)
_KILLED = 137
_PLACE = re.compile(r"ssh:(?P<host>[^\s:-][^\s:]*)(?::(?P<device>cpu|mps|(?:cuda|xpu):\d+))?")
_LOST = ("closed by remote host", "connection reset", "broken pipe", "not responding", "disconnect", "timed out", "connection to")
_REMEDIES = {
    "host key verification failed": "Connect once by hand, `ssh {host}`, to look at its key and accept it.",
    "permission denied": "Highwater asks for no password: set up a key or an agent so that `ssh {host} true` works.",
    "could not resolve": "Name a host that `ssh` knows: look at ~/.ssh/config.",
}


@dataclass(frozen=True, slots=True)
class Remote:
    """A host that ``ssh`` knows, and the Python with torch and transformers there."""

    host: str
    python: str = "python3"

    def command(self) -> list[str]:
        """What starts the worker there. An own connection is closed with the run, so none is left as a shared master."""
        config = os.environ.get(CONFIG_VARIABLE)
        options = {
            "BatchMode": "yes", "ControlMaster": "no", "RemoteCommand": "none", "ClearAllForwardings": "yes",
            "LogLevel": "INFO", "ConnectTimeout": _CONNECT_TIMEOUT_S,
            "ServerAliveInterval": _ALIVE_INTERVAL_S, "ServerAliveCountMax": _ALIVE_COUNT,
        }  # fmt: skip
        told = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        program = f'{shlex.quote(self.python)} -c "{START}"'
        return ["ssh", *(("-F", config) if config else ()), "-T", "-x", *told, "--", self.host, program]

    def preamble(self) -> bytes:
        """What goes before the order."""
        return parcel_line()

    def judge(self, outcome: Outcome, *, heard: bool) -> Outcome:
        """The outcome in words for a run elsewhere. ``heard``: the worker had said something."""
        if outcome.kind not in ("crashed", "killed"):
            return outcome
        if not heard:
            return replace(outcome, kind="could_not_start", message=self._why_not(outcome))
        if outcome.signal is None and outcome.exit_status == _SSH_FAILED and not _says(outcome.stderr_tail, *_LOST):
            crashed = "Fatal Python error" in outcome.stderr_tail
            return outcome if crashed else replace(outcome, kind="killed", signal=9, exit_status=None)
        if outcome.signal is None and outcome.exit_status == _KILLED:
            return replace(outcome, kind="killed", signal=9, exit_status=None)
        return replace(outcome, kind="disconnected") if outcome.signal or outcome.exit_status == _SSH_FAILED else outcome

    def _why_not(self, outcome: Outcome) -> str:
        if outcome.exit_status in _NO_SUCH_PROGRAM:
            return f"{self.python} could not be started on {self.host}. Name the Python that has torch there with --python."
        said = [line.strip() for line in outcome.stderr_tail.splitlines() if line.strip()]
        reason = said[-1] if said else f"ssh ended with exit status {outcome.exit_status}"
        remedy = next((words for mark, words in _REMEDIES.items() if _says(outcome.stderr_tail, mark)), "")
        remedy = remedy or "`ssh {host} true` shows more."
        return f"{self.host} could not be reached or did not run Python: {reason}. {remedy.format(host=self.host)}"


def place_of(device: str, python: str = "python3") -> tuple[Remote | None, str]:
    """Where ``device`` is: ``ssh:HOST``, ``ssh:HOST:cuda:N`` and ``ssh:HOST:cpu`` are elsewhere; ``cuda:0`` unless said.

    Raises ValueError for what names no host.
    """
    if not device.startswith("ssh:"):
        return None, device
    match = _PLACE.fullmatch(device)
    if match is None:
        message = f"device: must be ssh:HOST, ssh:HOST:cuda:N or ssh:HOST:cpu, got {device!r}"
        raise ValueError(message)
    return Remote(match["host"], python), match["device"] or "cuda:0"


def _says(text: str, *marks: str) -> bool:
    return any(mark in text.lower() for mark in marks)
