"""Watching what is not ours: a process that runs already, or a command that is launched for it.

Its memory and its children's, each GPU's, and what its log says of memory are told as events on one clock and recorded:

``environment``  the first event, as of a probe's session
``watch``      ``pid``, ``command``, ``launched`` (whether it is ended with the watch)
``sample``     :meth:`probes.meters.ProbeMeters.read`, and once a second ``pss``
``log``        ``line``: one line of its output, at most so many
``component``  :meth:`probes.log_lines.Finding.to_json`
``note``       ``message``
``outcome``    :class:`Ending`: the last event

Only what was launched is ever ended; a process that was attached to is left as it is.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Literal

import psutil

from probes.background import Background
from probes.drivers import Driver, Drivers
from probes.environment import environment
from probes.log_lines import LogReader, plain
from probes.meters import ProbeMeters
from probes.outcome import signal_name
from probes.processes import ProcessGroup
from probes.recording import Event
from probes.sampler import PROBE_INTERVAL_S, Sampler
from probes.wire import bounded_lines

logger = logging.getLogger(__name__)

LOG_LINES = 20_000
"""Lines of output that are recorded; those that say something of memory always are."""
_LINE_BYTES = 2**16
_POLL_S = 0.1
_GRACE_S = 3.0
_PSS_S = 1.0
_PSS_SHARE = 100
"""The kernel walks every page of a process for it: of hundreds of gigabytes less often, so that it stays at a percent."""
_DRAIN_S = 5.0

EndKind = Literal["completed", "failed", "killed", "stopped", "timed_out", "could_not_start"]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a watch ended. ``exit_status`` is the watched command's, None where it is not told."""

    kind: EndKind
    text: str
    after_s: float = 0.0
    exit_status: int | None = None

    @property
    def exit_code(self) -> int:
        """The exit status of the verb."""
        return {"completed": 0, "stopped": 130, "timed_out": 0}.get(self.kind, 3)

    def to_json(self) -> dict[str, object]:
        """JSON-ready data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Launch:
    """A command to start: its words, as they are given to the system."""

    command: Sequence[str]


@dataclass(frozen=True, slots=True)
class Attach:
    """A process that runs already; ``log``: a file that its output goes to, which is read along from its end."""

    pid: int
    log: Path | None = None


class Watch(Background[Ending]):
    """One watch. Closed, it ends what it launched."""

    def __init__(
        self,
        target: Launch | Attach,
        on_event: Callable[[Event], object] | None = None,
        *,
        scenario: Mapping[str, object] | None = None,
        prediction: Mapping[str, object] | None = None,
        time_s: float | None = None,
        recording_path: Path | None = None,
        nvml: Driver | None = None,
        on_output: Callable[[bytes], object] | None = None,
    ) -> None:
        """``scenario`` and ``prediction`` go into the recording. ``on_output`` gets what a launched command prints, as it is."""
        super().__init__("watch", on_event)
        self.ending: Ending | None = None
        self.log = LogReader()
        self._target = target
        self._on_output = on_output
        self._header = {"scenario": scenario, "prediction": prediction}
        self._time_s = time_s
        self._recording_path = recording_path
        self._nvml = nvml or Drivers()
        self._meters: ProbeMeters | None = None
        self._group: ProcessGroup | None = None
        self._pss_due = 0.0
        self._lines = 0

    def _run(self) -> None:
        try:
            self._open_recording()
            ending = self._launched(self._target) if isinstance(self._target, Launch) else self._attached(self._target)
        except Exception as error:
            logger.exception("the watch failed")
            ending = Ending("failed", f"Highwater failed at watching: {error!r}", self._now())
            if self._group is not None:
                self._group.sweep()
                self._group.close()
        self.ending = ending
        self._finish(ending)

    def _open_recording(self) -> None:
        told = environment(self._nvml, self._nvml.readings())
        order = {"mode": "watch", **_target_json(self._target)}
        self._events.record({**self._header, "order": order, "environment": told}, self._recording_path)
        self._events.emit({"event": "environment", "t": self._now(), **told})

    # A command of ours.

    def _launched(self, target: Launch) -> Ending:
        before = self._nvml.readings()
        try:
            group = ProcessGroup(target.command, {**os.environ, "PYTHONUNBUFFERED": "1"})
        except (OSError, ValueError) as error:
            return Ending("could_not_start", f"{target.command[0]} could not be started: {error}", self._now())
        self._group = group
        if group.process.stdin is not None:
            group.process.stdin.close()
        self._begin(ProbeMeters(group.pid, self._nvml, before), group.pid, target.command, launched=True)
        readers = [self._reader(stream) for stream in (group.process.stdout, group.process.stderr) if stream is not None]
        with Sampler(self._sample, PROBE_INTERVAL_S, "watch-sampler"):
            reason = self._until(lambda: group.status() is not None)
            if reason:
                self._end(group)
        left = group.sweep()
        for reader in readers:
            reader.join(_DRAIN_S)
        group.close()
        if left and not reason:
            self._events.note(f"{left} processes that the command had left running were ended with it.")
        return self._launched_ending(reason, group.status() or 0)

    def _end(self, group: ProcessGroup) -> None:
        for step in (group.interrupt, group.terminate, group.kill):
            step()
            deadline = time.monotonic() + _GRACE_S
            while group.status() is None and time.monotonic() < deadline:
                time.sleep(_POLL_S / 2)
            if group.status() is not None:
                return

    def _launched_ending(self, reason: EndKind | None, status: int) -> Ending:
        after_s = self._now()
        if reason is not None:
            limit = f" at the time limit of {self._time_s:g} s" if reason == "timed_out" else ""
            return Ending(reason, f"The command was ended{limit}, {after_s:.1f} s after its start.", after_s, status)
        if status < 0:
            text = f"The command was killed by {signal_name(-status)}, {after_s:.1f} s after its start."
            return Ending("killed", text, after_s, status)
        if status:
            text = f"The command ended with exit status {status}, {after_s:.1f} s after its start."
            return Ending("failed", text, after_s, status)
        return Ending("completed", f"The command ended after {after_s:.1f} s.", after_s, 0)

    def _reader(self, stream: IO[bytes]) -> threading.Thread:
        thread = threading.Thread(target=self._read_output, args=(stream,), name="watch-output", daemon=True)
        thread.start()
        return thread

    def _read_output(self, stream: IO[bytes]) -> None:
        def read(size: int) -> bytes:
            try:
                data = os.read(stream.fileno(), size)
            except (OSError, ValueError):
                return b""
            self._pass_on(data)
            return data

        for line in bounded_lines(read, _LINE_BYTES):
            self._take_line(line.data)

    def _pass_on(self, data: bytes) -> None:
        """To whoever listens; one that fails gets no more, and the command is read on: its pipe must not fill up."""
        if self._on_output is None:
            return
        try:
            self._on_output(data)
        except (OSError, ValueError):
            self._on_output = None

    # A process of somebody else.

    def _attached(self, target: Attach) -> Ending:
        try:
            process = psutil.Process(target.pid)
            command = _command(process)
        except psutil.Error:
            return Ending("could_not_start", f"There is no process {target.pid} here.", self._now())
        self._begin(ProbeMeters(target.pid, self._nvml, self._nvml.readings()), target.pid, command, launched=False)
        self._events.note("What the GPUs held when the watch began is not in delta; process is what the driver lists for it.")
        follower = threading.Thread(target=self._follow, args=(target.log,), name="watch-log", daemon=True)
        follower.start()
        with Sampler(self._sample, PROBE_INTERVAL_S, "watch-sampler"):
            reason = self._until(lambda: not _runs(process))
        self._stop_asked.set()
        follower.join(_DRAIN_S)
        after_s = self._now()
        if reason is None:
            return Ending("completed", f"Process {target.pid} ended {after_s:.1f} s after the watch began.", after_s)
        return Ending(reason, f"The watch ended after {after_s:.1f} s; process {target.pid} goes on.", after_s)

    def _follow(self, log: Path | None) -> None:
        """Read what is appended to a file. What stands in it already is read too: the sizes are said at the start."""
        if log is None:
            return
        try:
            with log.open("rb") as file:

                def read(size: int) -> bytes:
                    while not (data := file.read(size)) and not self._stop_asked.wait(_POLL_S):
                        pass
                    return data

                for line in bounded_lines(read, _LINE_BYTES):
                    self._take_line(line.data)
        except OSError as error:
            self._events.note(f"The log {log} can't be read: {error.strerror or error}")

    # Both.

    def _begin(self, meters: ProbeMeters, pid: int, command: Sequence[str], *, launched: bool) -> None:
        self._meters = meters
        self._events.emit({"event": "watch", "t": self._now(), "pid": pid, "command": list(command), "launched": launched})

    def _until(self, ended: Callable[[], bool]) -> EndKind | None:
        """Wait; why the watch ends although what it watches goes on, None if it does not."""
        while not ended():
            if self._time_s is not None and self._now() > self._time_s:
                return "timed_out"
            if self._stop_asked.wait(_POLL_S):
                return None if ended() else "stopped"
        return None

    def _sample(self) -> None:
        meters = self._meters
        if meters is None:
            return
        values = meters.read()
        if time.monotonic() >= self._pss_due:
            begun = time.monotonic()
            values["pss"] = meters.tree.pss_bytes()
            took_s = time.monotonic() - begun
            self._pss_due = begun + max(_PSS_S, _PSS_SHARE * took_s)
        self._events.emit({"event": "sample", "t": self._now(), **values})
        for trouble in meters.new_troubles():
            self._events.note(trouble)

    def _take_line(self, data: bytes) -> None:
        line = plain(data.decode("utf-8", "replace"))
        findings = self.log.read(line)
        self._lines += 1
        if line.strip() and (self._lines <= LOG_LINES or findings):
            self._events.emit({"event": "log", "t": self._now(), "line": line})
        if self._lines == LOG_LINES:
            self._events.note(f"From here on only lines that say something of memory are recorded: {LOG_LINES:,} have come.")
        for finding in findings:
            self._events.emit({"event": "component", "t": self._now(), **finding.to_json()})


def _target_json(target: Launch | Attach) -> dict[str, object]:
    if isinstance(target, Launch):
        return {"command": list(target.command)}
    return {"pid": target.pid, "log": None if target.log is None else str(target.log)}


def _command(process: psutil.Process) -> list[str]:
    try:
        return [str(word) for word in process.cmdline()] or [process.name()]
    except psutil.AccessDenied:
        return [process.name()]


def _runs(process: psutil.Process) -> bool:
    """Whether it is still that process, and not what was left of it."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
