"""The meters beside a probe: what its processes hold of the system's memory and of each GPU's."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from probes.drivers import Driver
from probes.readings import GpuReading, number_or_none
from probes.sampler import IDLE_INTERVAL_S

WALK_INTERVAL_S = 1.0
"""Between two searches for new children: where the kernel does not tell them, each reads the whole process table."""


class ProcessTree:
    """A process and all its descendants, also those that outlived their parent once seen."""

    def __init__(self, pid: int) -> None:
        self._members: dict[int, psutil.Process] = {}
        self._walked_at = -WALK_INTERVAL_S
        with _unless_gone():
            self._members[pid] = psutil.Process(pid)

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes seen at the last walk, and since."""
        return tuple(self._members)

    def walk(self) -> None:
        """Forget who has ended, look for new descendants: one search from the root, one from each that lost its parent."""
        self._members = {pid: member for pid, member in self._members.items() if _runs(member)}
        found: set[int] = set()
        for member in tuple(self._members.values()):
            if member.pid not in found:
                with _unless_gone():
                    children = descendants(member)
                    found |= children.keys()
                    self._members.update({pid: child for pid, child in children.items() if pid not in self._members})
        self._walked_at = time.monotonic()

    def rss_bytes(self) -> int | None:
        """Resident memory of the tree, shared pages counted in each process; None once all have ended."""
        if time.monotonic() - self._walked_at >= WALK_INTERVAL_S:
            self.walk()
        sizes = [size for member in self._members.values() if (size := _rss_bytes(member))]
        return sum(sizes) if sizes else None

    def pss_bytes(self) -> int | None:
        """Memory of the tree with shared pages divided among those that share them; None where it is not told.

        The kernel walks every mapping for it: meant for once a second.
        """
        sizes = [size for member in self._members.values() if (size := _pss_bytes(member))]
        return sum(sizes) if sizes else None


class ProbeMeters:
    """Reads everything that can be seen of a worker from outside."""

    def __init__(self, pid: int, nvml: Driver, before: Sequence[GpuReading]) -> None:
        """``before`` are the GPUs before the worker started: what they use then is not its doing."""
        self._tree = ProcessTree(pid)
        self._nvml = nvml
        self._used_before = {(gpu.index, gpu.mig_index): gpu.memory.used_bytes for gpu in before}
        self._slow_at = -IDLE_INTERVAL_S
        self._troubles: dict[int, str] = {gpu.index: gpu.trouble for gpu in before}
        self._new_troubles: list[str] = []

    def read(self) -> dict[str, object]:
        """``rss``, the process tree's resident bytes, and ``gpus`` when there are any; None is N/A.

        Each GPU has ``index``, ``mig_index``, ``used``, ``free``, ``delta`` (``used`` less what was before the run), and
        twice a second ``process`` (what the driver lists for the tree), ``utilization_percent``, ``power_watts`` and
        ``temperature_celsius``. The three sizes are separate series: none stands in for another.
        """
        slow = time.monotonic() - self._slow_at >= IDLE_INTERVAL_S
        if slow:
            self._slow_at = time.monotonic()
        rss_bytes = self._tree.rss_bytes()
        readings = self._nvml.readings() if slow else self._nvml.memory()
        self._note_troubles(readings)
        gpus = [self._quick(gpu) | (self._slow(gpu) if slow else {}) for gpu in readings]
        return {"rss": rss_bytes, "gpus": gpus} if gpus else {"rss": rss_bytes}

    @property
    def tree(self) -> ProcessTree:
        """The processes that are measured."""
        return self._tree

    def new_troubles(self) -> list[str]:
        """What has gone wrong with a GPU since the last call."""
        new, self._new_troubles = self._new_troubles, []
        return new

    def _quick(self, gpu: GpuReading) -> dict[str, object]:
        used, before = gpu.memory.used_bytes, self._used_before.get((gpu.index, gpu.mig_index))
        delta = None if used is None or before is None else used - before
        free = gpu.memory.free_bytes
        return {"index": gpu.index, "mig_index": gpu.mig_index, "used": used, "free": free, "delta": delta}

    def _slow(self, gpu: GpuReading) -> dict[str, object]:
        return {
            "process": gpu.process_bytes(self._tree.pids),
            "utilization_percent": number_or_none(gpu.utilization_percent),
            "power_watts": number_or_none(gpu.power_watts),
            "temperature_celsius": number_or_none(gpu.temperature_celsius),
        }

    def _note_troubles(self, readings: Sequence[GpuReading]) -> None:
        for gpu in readings:
            if gpu.trouble and self._troubles.get(gpu.index) != gpu.trouble:
                self._troubles[gpu.index] = gpu.trouble
                self._new_troubles.append(f"GPU {gpu.index}: {gpu.trouble}")


def kernel_oom_kills() -> int | None:
    """How many processes the kernel's out-of-memory killer has ended since boot; None where that is not told."""
    try:
        with open("/proc/vmstat", encoding="ascii") as lines:  # noqa: PTH123  not a file with a life of its own
            return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
    except (OSError, ValueError):
        return None


def descendants(process: psutil.Process) -> dict[int, psutil.Process]:
    """A process's children and theirs. Raises psutil's errors.

    From ``/proc/PID/task/TID/children`` (proc(5)) where that is, whose cost does not grow with what else runs here.
    """
    told = _told_children(process.pid)
    if told is None:
        return {child.pid: child for child in process.children(recursive=True)}
    found: dict[int, psutil.Process] = {}
    while told:
        pid = told.pop()
        if pid not in found:
            with _unless_gone():
                found[pid] = psutil.Process(pid)
                told += _told_children(pid) or []
    return found


def _told_children(pid: int) -> list[int] | None:
    """The children of every thread; None where the kernel does not tell them."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208  names alone
    except OSError:
        return None
    pids: list[int] = []
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as told:  # noqa: PTH123  not a file with a life of its own
                pids += map(int, told.read().split())
        except FileNotFoundError:
            if not Path(f"/proc/self/task/{threading.get_native_id()}/children").exists():
                return None
        except (OSError, ValueError):
            continue
    return pids


def _runs(process: psutil.Process) -> bool:
    with _unless_gone():
        return bool(process.is_running())
    return False


def _rss_bytes(process: psutil.Process) -> int:
    with _unless_gone():
        return int(process.memory_info().rss)
    return 0


def _pss_bytes(process: psutil.Process) -> int | None:
    with _unless_gone():
        size = getattr(process.memory_full_info(), "pss", None)
        return None if size is None else int(size)
    return None


@contextmanager
def _unless_gone() -> Iterator[None]:
    """Processes end, or are not ours to look at, between two looks."""
    try:
        yield
    except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
        return
