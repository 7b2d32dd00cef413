"""Every GPU of this machine over time: memory, load, and the processes that hold it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from planner.units import format_bytes
from probes.drivers import Driver, Drivers
from probes.environment import environment
from probes.readings import DriverState, GpuReading, number_or_none
from probes.recording import Event, Recording, RecordingState

Sort = Literal["memory", "pid", "name", "gpu"]
SORTS: tuple[Sort, ...] = ("memory", "pid", "name", "gpu")
_REOPEN_S = 5.0
"""Between two attempts to reach a driver that went away."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds memory of a GPU. None and empty texts are N/A: it may not be ours to look at."""

    gpu: str
    pid: int
    used_bytes: int | None
    name: str = ""
    user: str = ""
    rss_bytes: int | None = None

    def to_json(self) -> dict[str, object]:
        """JSON-ready data."""
        return {
            "gpu": self.gpu, "pid": self.pid, "used_bytes": self.used_bytes, "name": self.name, "user": self.user,
            "rss_bytes": self.rss_bytes,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All GPUs at one moment; ``t`` in seconds since the monitor began. Without a driver ``state`` says why there are none."""

    t: float
    state: DriverState
    gpus: tuple[GpuReading, ...] = ()
    holders: tuple[Holder, ...] = ()
    over: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """JSON-ready data. ``over``: the GPUs that use more than the threshold."""
        return {
            "t": self.t, "nvml": str(self.state) or None, "gpus": [gpu.to_json() for gpu in self.gpus],
            "processes": [holder.to_json() for holder in self.holders], "over": list(self.over),
        }  # fmt: skip


def gpu_label(gpu: GpuReading) -> str:
    """``0``, or ``0.1`` for the instance in slot 1 of a GPU in MIG mode."""
    return f"{gpu.index}" if gpu.mig_index is None else f"{gpu.index}.{gpu.mig_index}"


def used_share(gpu: GpuReading) -> float | None:
    """Used of total memory; None is N/A."""
    used, total = gpu.memory.used_bytes, gpu.memory.total_bytes
    return used / total if used is not None and total else None


class Monitor:
    """Reads every GPU when asked. ``threshold`` is the share of a GPU's memory beyond which it is told once as a note."""

    def __init__(
        self,
        nvml: Driver | None = None,
        *,
        threshold: float | None = None,
        sort: Sort = "memory",
        on_event: Callable[[Event], object] | None = None,
    ) -> None:
        if threshold is not None and not 0 < threshold <= 1:
            message = f"threshold: must be above 0 and at most 1, got {threshold:g}"
            raise ValueError(message)
        self._nvml = nvml or Drivers()
        self._threshold = threshold
        self._sort = sort
        self._on_event = on_event
        self._origin = time.monotonic()
        self._opened_at = self._origin
        self._known: dict[int, psutil.Process] = {}
        self._told: tuple[str, ...] = ()
        self._troubles: dict[str, str] = {}
        self._recording: Recording | None = None
        self._held: tuple[tuple[object, ...], ...] | None = None

    @property
    def recording(self) -> RecordingState:
        """Whether it is recorded, and whether that works."""
        return self._recording.state if self._recording else RecordingState(None)

    def record(self, path: Path | None = None) -> RecordingState:
        """Begin a recording, in the recordings folder unless a path is given."""
        readings = self._nvml.readings()
        told = environment(self._nvml, readings)
        header = {"order": {"mode": "monitor"}, "scenario": None, "environment": told}
        self._recording = Recording(header, path)
        self._held, self._told, self._troubles = None, (), {}
        self._emit({"event": "environment", "t": self._now(), **told})
        return self._recording.state

    def read(self) -> Snapshot:
        """One reading of everything."""
        state = self._state()
        gpus = self._nvml.readings() if state.available else ()
        holders = self._holders(gpus)
        over = tuple(gpu_label(gpu) for gpu in gpus if self._threshold and (used_share(gpu) or 0.0) >= self._threshold)
        snapshot = Snapshot(self._now(), state, gpus, holders, over)
        self._tell(snapshot)
        return snapshot

    def close(self) -> None:
        """End the recording and let go of the driver."""
        if self._recording is not None:
            self._recording.close()
        self._nvml.close()

    def _state(self) -> DriverState:
        """The driver's state; one that went away is asked anew now and then."""
        state = self._nvml.open()
        if not state.available and time.monotonic() - self._opened_at >= _REOPEN_S:
            self._opened_at = time.monotonic()
            self._nvml.close()
            state = self._nvml.open()
        return state

    def _holders(self, gpus: Sequence[GpuReading]) -> tuple[Holder, ...]:
        listed = [(gpu_label(gpu), process.pid, process.used_bytes) for gpu in gpus for process in gpu.processes]
        pids = {pid for _, pid, _ in listed}
        self._known = {pid: process for pid, process in self._known.items() if pid in pids}
        return tuple(sort_holders((self._holder(*entry) for entry in listed), self._sort))

    def _holder(self, gpu: str, pid: int, used_bytes: int | None) -> Holder:
        try:
            process = self._known.get(pid)
            if process is None or not process.is_running():
                process = self._known[pid] = psutil.Process(pid)
            with process.oneshot():
                return Holder(gpu, pid, used_bytes, process.name(), _user(process), int(process.memory_info().rss))
        except (psutil.Error, OSError):
            return Holder(gpu, pid, used_bytes)

    def _now(self) -> float:
        return round(time.monotonic() - self._origin, 6)

    def _tell(self, snapshot: Snapshot) -> None:
        self._emit({"event": "sample", "t": snapshot.t, "gpus": [_sample(gpu) for gpu in snapshot.gpus]})
        held = tuple((holder.gpu, holder.pid, holder.used_bytes) for holder in snapshot.holders)
        if held != self._held:
            self._held = held
            self._emit({"event": "processes", "t": snapshot.t, "processes": [holder.to_json() for holder in snapshot.holders]})
        for message in self._news(snapshot):
            self._emit({"event": "note", "t": snapshot.t, "message": message})

    def _news(self, snapshot: Snapshot) -> list[str]:
        """What has changed since the last reading: a threshold crossed, a GPU or the driver gone."""
        news = [f"GPU {label} uses more than {100 * (self._threshold or 0):g} % of its memory."
                for label in snapshot.over if label not in self._told]  # fmt: skip
        self._told = snapshot.over
        troubles = {f"GPU {gpu_label(gpu)}: ": gpu.trouble for gpu in snapshot.gpus} | {"": str(snapshot.state)}
        news += [f"{who}{what}" for who, what in troubles.items() if what and self._troubles.get(who) != what]
        self._troubles = troubles
        return news

    def _emit(self, event: Event) -> None:
        if self._recording is not None:
            self._recording.append(event)
        if self._on_event is not None:
            self._on_event(event)


def who_holds(nvml: Driver | None = None, limit: int = 5) -> list[str]:
    """``GPU 0: python3 (pid 77, alice) holds 12.0 GiB`` for the processes that hold most, most first; empty where none is told."""
    monitor = Monitor(nvml)
    try:
        held = [holder for holder in monitor.read().holders if holder.used_bytes]
    finally:
        monitor.close()
    return [
        f"GPU {holder.gpu}: {holder.name or 'a process'} (pid {holder.pid}{f', {holder.user}' if holder.user else ''}) holds "
        f"{format_bytes(holder.used_bytes or 0)}"
        for holder in held[:limit]
    ]


def sort_holders(holders: Iterable[Holder], sort: Sort) -> list[Holder]:
    """By memory (most first, N/A last), pid, name or GPU."""
    keys: dict[Sort, Callable[[Holder], Any]] = {
        "memory": lambda holder: (holder.used_bytes is None, -(holder.used_bytes or 0), holder.pid),
        "pid": lambda holder: (holder.pid, holder.gpu),
        "name": lambda holder: (holder.name.lower(), holder.pid),
        "gpu": lambda holder: (holder.gpu, holder.pid),
    }
    return sorted(holders, key=keys[sort])


def _sample(gpu: GpuReading) -> dict[str, object]:
    return {
        "index": gpu.index, "mig_index": gpu.mig_index, "used": gpu.memory.used_bytes, "free": gpu.memory.free_bytes,
        "utilization_percent": number_or_none(gpu.utilization_percent), "power_watts": number_or_none(gpu.power_watts),
        "temperature_celsius": number_or_none(gpu.temperature_celsius),
    }  # fmt: skip


def _user(process: psutil.Process) -> str:
    try:
        return str(process.username())
    except (psutil.Error, KeyError, OSError):
        return ""
