"""A probe from outside: starts the worker, listens, samples beside it, records, and ends it whatever happens.

Events
======
``on_event`` gets every event as a dictionary with ``event`` and ``t`` (seconds since the session began), from one of the
session's threads and one at a time. They are the worker's (:mod:`probes.worker`) with ``t`` put on this clock, and

``environment``  the first event: system, memory, driver, GPUs (:mod:`probes.environment`); of a run elsewhere only that it is
             one, until the worker has said the rest
``sample``   the meters beside the worker: :meth:`probes.meters.ProbeMeters.read`; a worker elsewhere sends its own
``note``     ``message``: something the user should know, such as a full disk or garbage on the wire
``reconnect``  ``attempt``: a lost connection is made anew, and the run there begins anew; what had arrived stays recorded
``outcome``  the last event: :meth:`probes.outcome.Outcome.to_json`
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from probes.background import Background
from probes.drivers import Driver, Drivers
from probes.environment import environment
from probes.liveness import Liveness
from probes.meters import ProbeMeters, kernel_oom_kills
from probes.outcome import Facts, Hung, Kind, Outcome, judge
from probes.preflight import why_not
from probes.processes import ProcessGroup, project_environment
from probes.readings import GpuReading
from probes.recording import Event
from probes.remote import HEARTBEAT_S, Remote
from probes.sampler import PROBE_INTERVAL_S, Sampler
from probes.wire import LINE_LIMIT_BYTES, Line, bounded_lines, decode_event, shown

logger = logging.getLogger(__name__)

PROJECT = str(Path(__file__).resolve().parents[1])
_STDERR_KEPT_BYTES = 16 * 2**10
_BAD_LINES_SHOWN = 3
_POLL_S = 0.1
RECONNECT_AFTER_S = 2.0
"""A lost connection is made anew so long after, and so much longer each time."""
_HURRIED_GRACE_S = 0.3
_DRAIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Limits:
    """When a probe is ended: ``time_s`` after its start, ``silence_s`` without a line; None is never.

    A measurement on a GPU is ended too after ``stall_s`` in which it answers, and nothing is begun or finished. ``grace_s``
    passes between the steps of ending it: interrupt, terminate, kill. ``line_bytes`` bounds one line. A lost
    connection is made anew ``reconnects`` times at most.
    """

    time_s: float | None = None
    silence_s: float | None = 120.0
    stall_s: float | None = 600.0
    grace_s: float = 2.0
    line_bytes: int = LINE_LIMIT_BYTES
    reconnects: int = 2


def worker_command() -> list[str]:
    """The command that starts the worker on this machine. ``-P`` keeps the user's folder from shadowing modules."""
    return [sys.executable, "-P", "-m", "probes.worker"]


class ProbeSession(Background[Outcome]):
    """One run of a worker. Closed, it ends the worker and every process that it started."""

    def __init__(
        self,
        order: Mapping[str, object],
        on_event: Callable[[Event], object] | None = None,
        *,
        prediction: Mapping[str, object] | None = None,
        limits: Limits | None = None,
        recording_path: Path | None = None,
        command: Sequence[str] | None = None,
        nvml: Driver | None = None,
        remote: Remote | None = None,
    ) -> None:
        """``prediction`` (a footprint) goes into the recording's header; ``command`` replaces :func:`worker_command`.

        ``remote`` runs the worker on another machine, whose meters it reads itself.
        """
        super().__init__("probe-session", on_event)
        self.order = {**order, "meters": True} if remote else dict(order)
        self.outcome: Outcome | None = None
        self._prediction = prediction
        self._limits = limits or Limits()
        self._recording_path = recording_path
        self._command = command or (remote.command() if remote else None)
        self._remote = remote
        self._heard = False
        self._over = threading.Event()
        self._nvml = nvml or Drivers()
        self._group: ProcessGroup | None = None
        self._meters: ProbeMeters | None = None
        self._hurry = threading.Event()
        self._woken = threading.Event()
        self._child_offset_s: float | None = None
        self._liveness = self._new_liveness()
        self._hung: Hung | None = None
        self._phase = ""
        self._verdict: Event | None = None
        self._verdict_at = math.inf
        self._stderr = b""
        self._bad_lines = 0

    def start(self) -> None:
        """Begin, on threads of its own."""
        self._liveness = self._new_liveness()
        super().start()

    def stop(self) -> None:
        """Ask it to end; returns at once. After its end this does nothing."""
        super().stop()
        self._woken.set()

    def close(self) -> None:
        """End it quickly and wait until nothing of it is left. Not to be called from ``on_event``; ``stop`` may be."""
        self._hurry.set()
        super().close()

    @property
    def pid(self) -> int | None:
        """The worker's process id, once it has started."""
        return self._group.pid if self._group else None

    # The session's thread: from the start to the outcome.

    def _run(self) -> None:
        kills_before = kernel_oom_kills()
        try:
            outcome = self._conduct(kills_before)
        except Exception as error:
            logger.exception("the session failed")
            outcome = Outcome("failed", self._now(), self._phase, f"Highwater failed at running the probe: {error!r}")
            if self._group is not None:
                self._group.sweep()
                self._group.close()
        self._finish(outcome)

    def _conduct(self, kills_before: int | None) -> Outcome:
        before = () if self._remote else self._nvml.readings()
        self._open_recording(before)
        command = self._command or worker_command()
        reason = "" if self._command else why_not()
        if reason:
            return Outcome("could_not_start", self._now(), message=reason)
        outcome = self._attempt(command, before, kills_before)
        for number in range(1, self._limits.reconnects + 1):
            if outcome.kind != "disconnected":
                break
            if not self._begin_anew(number, outcome):
                return replace(outcome, kind="stopped", after_s=self._now())
            again = self._attempt(command, before, kills_before)
            outcome = replace(outcome, after_s=self._now()) if again.kind == "could_not_start" else again
        return outcome

    def _begin_anew(self, number: int, outcome: Outcome) -> bool:
        """Wait a moment for the host and forget how the run stood; whether it is still wanted."""
        words = f"{outcome.sentence} Connecting again ({number} of {self._limits.reconnects}); the run begins anew."
        self._events.note(words)
        if self._stop_asked.wait(RECONNECT_AFTER_S * number):
            return False
        self._events.emit({"event": "reconnect", "t": self._now(), "attempt": number})
        self._heard, self._verdict, self._verdict_at = False, None, math.inf
        self._child_offset_s, self._phase, self._stderr = None, "", b""
        self._liveness = self._new_liveness()
        self._over = threading.Event()
        return True

    def _attempt(self, command: Sequence[str], before: Sequence[GpuReading], kills_before: int | None) -> Outcome:
        """Run the worker to its end."""
        try:
            group = ProcessGroup(command, project_environment(PROJECT))
        except (OSError, ValueError) as error:
            return Outcome("could_not_start", self._now(), message=f"{command[0]} could not be started: {error}")
        self._group, self._meters = group, ProbeMeters(group.pid, self._nvml, before)
        readers = self._listen(group)
        sampling = contextlib.nullcontext() if self._remote else Sampler(self._sample, PROBE_INTERVAL_S, "probe-sampler")
        with sampling:
            forced = self._watch(group)
        self._over.set()
        group.sweep()
        for reader in readers:
            reader.join(_DRAIN_S)
        group.close()
        hung_s = self._limits.stall_s if self._hung == "stalled" else self._limits.silence_s
        limit_s = {"timed_out": self._limits.time_s, "hung": hung_s}.get(forced or "")
        outcome = judge(self._verdict, forced, self._facts(group.status(), kills_before), limit_s)
        return self._remote.judge(outcome, heard=self._heard) if self._remote else outcome

    def _open_recording(self, readings: Sequence[GpuReading]) -> None:
        told = {"remote": True} if self._remote else environment(self._nvml, readings)
        order = {key: value for key, value in self.order.items() if key not in ("scenario", "config")}
        header = {
            "scenario": self.order.get("scenario"),
            "config": self.order.get("config"),
            "order": order,
            "prediction": self._prediction,
            "environment": told,
        }
        self._events.record(header, self._recording_path)
        self._events.emit({"event": "environment", "t": self._now(), **told})

    def _listen(self, group: ProcessGroup) -> list[threading.Thread]:
        process = group.process
        targets = [
            (self._feed, process.stdin),
            (self._read_events, process.stdout),
            (self._read_stderr, process.stderr),
        ]
        threads = [
            threading.Thread(target=target, args=(stream,), name=f"probe{target.__name__}", daemon=True)
            for target, stream in targets
        ]
        for thread in threads:
            thread.start()
        return threads

    def _watch(self, group: ProcessGroup) -> Kind | None:
        """Wait for the end; why it had to be brought about, None if it came by itself."""
        forced: Kind | None = None
        steps = [group.interrupt, group.terminate, group.kill]
        next_step_at = -math.inf
        while group.status() is None:
            self._woken.wait(_POLL_S)
            self._woken.clear()
            forced = forced or self._reason_to_end(group.pid)
            finishing = time.monotonic() - self._verdict_at > self._grace_s
            if (forced or finishing) and steps and time.monotonic() >= next_step_at:
                steps.pop(0)()
                next_step_at = time.monotonic() + self._grace_s
        return forced

    @property
    def _grace_s(self) -> float:
        return min(_HURRIED_GRACE_S, self._limits.grace_s) if self._hurry.is_set() else self._limits.grace_s

    def _new_liveness(self) -> Liveness:
        steps = self.order.get("mode") in ("measure", "calibrate") and self.order.get("device", "cpu") != "cpu"
        return Liveness(self._limits.silence_s, self._limits.stall_s if steps else None, local=self._remote is None)

    def _reason_to_end(self, pid: int) -> Kind | None:
        now, limits = time.monotonic(), self._limits
        if self._stop_asked.is_set():
            return "stopped"
        if limits.time_s is not None and now - self._origin > limits.time_s:
            return "timed_out"
        self._hung = self._liveness.given_up(pid)
        if self._hung is None and (news := self._liveness.news(pid, self._phase)):
            self._events.note(news)
        return "hung" if self._hung else None

    def _facts(self, status: int | None, kills_before: int | None) -> Facts:
        return Facts(
            after_s=self._now(),
            phase=self._phase,
            exit_status=status,
            oom_kills=0 if self._remote else (kernel_oom_kills() or 0) - (kills_before or 0),
            stderr_tail=self._stderr.decode("utf-8", "replace"),
            rehearsed=self.order.get("mode") == "rehearse",
            hung=self._hung,
        )

    def _finish(self, outcome: Outcome) -> None:
        self.outcome = outcome
        if self._bad_lines > _BAD_LINES_SHOWN:
            self._events.note(f"The probe sent {self._bad_lines} lines in all that are not events.")
        super()._finish(outcome)

    # The three streams, each on a thread.

    def _feed(self, stream: IO[bytes]) -> None:
        """Give the order. A worker that died already is noticed elsewhere."""
        with contextlib.suppress(OSError, ValueError):
            stream.write(self._remote.preamble() if self._remote else b"")
            stream.write(json.dumps(self.order, separators=(",", ":")).encode() + b"\n")
            stream.flush()
            while self._remote and not self._over.wait(HEARTBEAT_S):
                stream.write(b"\n")
                stream.flush()
            stream.close()

    def _read_stderr(self, stream: IO[bytes]) -> None:
        for chunk in iter(lambda: _read_some(stream, 2**16), b""):
            self._stderr = (self._stderr + chunk)[-_STDERR_KEPT_BYTES:]

    def _read_events(self, stream: IO[bytes]) -> None:
        for line in bounded_lines(lambda size: self._hear(stream, size), self._limits.line_bytes):
            event = None if line.fault else decode_event(line.data)
            if event is not None:
                self._take(event)
            elif line.fault or line.data.strip():
                self._note_bad_line(line)
        self._woken.set()

    def _hear(self, stream: IO[bytes], size: int) -> bytes:
        chunk = _read_some(stream, size)
        self._liveness.hear()
        return chunk

    def _take(self, event: Event) -> None:
        event["t"] = self._on_our_clock(event.get("t"))
        self._heard = True
        self._liveness.take(event)
        if event["event"] == "phase" and event.get("state") == "begin":
            self._phase = str(event.get("name", ""))
        if event["event"] in ("result", "error"):
            self._hear_verdict(event)
        self._events.emit(event)

    def _hear_verdict(self, event: Event) -> None:
        """Keep the last word; a result stays one whatever follows it."""
        if self._verdict is None or self._verdict["event"] != "result":
            self._verdict, self._verdict_at = event, time.monotonic()

    def _on_our_clock(self, told: object) -> float:
        """Seconds since the session began. Monotonic clocks are system-wide, so a worker here needs no shift.

        A first time that lies outside the session is another machine's clock; it is taken to be now.
        """
        now = time.monotonic()
        if not isinstance(told, int | float) or isinstance(told, bool) or not -1e15 < told < 1e15:
            return self._now()
        if self._child_offset_s is None:
            self._child_offset_s = 0.0 if self._origin <= told <= now else now - told
        return round(min(max(0.0, told + self._child_offset_s - self._origin), now - self._origin), 6)

    def _note_bad_line(self, line: Line) -> None:
        """Tell the first few; the rest are counted."""
        self._bad_lines += 1
        if self._bad_lines <= _BAD_LINES_SHOWN:
            self._events.note(f"The probe sent {line.fault or 'what is not an event'}: {shown(line.data)}")

    # The sampler's thread.

    def _sample(self) -> None:
        meters = self._meters
        if meters is None:
            return
        self._events.emit({"event": "sample", "t": self._now(), **meters.read()})
        for trouble in meters.new_troubles():
            self._events.note(trouble)


def _read_some(stream: IO[bytes], size: int) -> bytes:
    """What has arrived, at most ``size``; b"" at the end and when the pipe is gone."""
    try:
        return os.read(stream.fileno(), size)
    except (OSError, ValueError):
        return b""
