"""The device under the load: what it is, what it holds, and how much of it may be used."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from .errors import OutOfMemory, WorkerError
from .tracker import StorageTracker


@dataclass(frozen=True)
class Reading:
    """The three meters and the device's memory, bytes."""

    allocated: int
    reserved: int
    device: int
    free: int
    total: int


class Meter(Protocol):
    """Reads memory now, and its highest value since the phase began."""

    def read(self) -> Reading:
        """The memory now. Cheap, from any thread."""

    def begin_phase(self) -> None:
        """Forget the peaks."""

    def peak(self) -> tuple[int, int]:
        """Highest (allocated, reserved) since the phase began."""

    def device_peak(self) -> int:
        """Highest device figure since the phase began as far as a counter says it, 0 where only samples do."""

    def components(self) -> dict[str, int] | None:
        """Bytes of each component at the allocated peak, None when not known."""


class CpuMeter:
    """Live storages from the tracker; the device is the growth of this process's resident memory."""

    def __init__(self, tracker: StorageTracker) -> None:
        self._tracker = tracker
        self._baseline_bytes = resident_bytes()
        self._counts_peak = False

    def read(self) -> Reading:
        """The memory now."""
        allocated = self._tracker.allocated
        free, total = machine_memory()
        return Reading(allocated, allocated, max(0, resident_bytes() - self._baseline_bytes), free, total)

    def begin_phase(self) -> None:
        """Forget the peaks."""
        self._tracker.begin_phase()
        self._counts_peak = _restart_resident_peak()

    def peak(self) -> tuple[int, int]:
        """Highest (allocated, reserved) since the phase began."""
        return self._tracker.peak, self._tracker.peak

    def device_peak(self) -> int:
        """Highest device figure a counter tells, else 0."""
        return max(0, _resident_peak_bytes() - self._baseline_bytes) if self._counts_peak else 0

    def components(self) -> dict[str, int] | None:
        """Bytes by component at the peak, where known."""
        return self._tracker.peak_components()


class TraceMeter(CpuMeter):
    """A rehearsal's: no memory is taken, so the device reads as the storages do."""

    def read(self) -> Reading:
        """The memory now."""
        allocated = self._tracker.allocated
        return Reading(allocated, allocated, allocated, 0, 0)

    def begin_phase(self) -> None:
        """Forget the peaks."""
        self._tracker.begin_phase()

    def device_peak(self) -> int:
        """Highest device figure a counter tells, else 0."""
        return self._tracker.peak


class CudaMeter:
    """torch's own counters. ``device`` is what the card lost since before the context was made, where that is known."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        free, total = torch.cuda.mem_get_info(device)
        self._others_bytes = max(0, total - free - torch.cuda.memory_reserved(device))

    def read(self) -> Reading:
        """The memory now."""
        free, total = torch.cuda.mem_get_info(self._device)
        used_bytes = max(0, total - free - self._others_bytes)
        reserved = torch.cuda.memory_reserved(self._device)
        return Reading(torch.cuda.memory_allocated(self._device), reserved, max(used_bytes, reserved), free, total)

    def begin_phase(self) -> None:
        """Forget the peaks."""
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> tuple[int, int]:
        """Highest (allocated, reserved) since the phase began."""
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device), torch.cuda.max_memory_reserved(self._device)

    def raised(self) -> int:
        """The highest allocated since the phase began; the allocator's own books, so nothing is waited for."""
        return int(torch.cuda.max_memory_allocated(self._device))

    def device_peak(self) -> int:
        """Highest device figure a counter tells, else 0."""
        return torch.cuda.max_memory_reserved(self._device)

    def components(self) -> dict[str, int] | None:
        """Bytes by component at the peak, where known."""
        return None


def describe(device: str) -> dict[str, Any]:
    """The ``device`` object of the hello event. Raises :class:`WorkerError` (no_device) when it is not there."""
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return {"type": "cpu", "name": cpu_name(), "index": None, "total_bytes": machine_memory()[1], "capability": None}
    if kind != "cuda":
        from . import vendors

        return vendors.describe(device)
    if not torch.cuda.is_available():
        raise WorkerError("no_device", 'no CUDA device can be used by this torch; measure on "cpu" or rehearse', "device")
    if int(index or 0) >= torch.cuda.device_count():
        raise WorkerError("no_device", f"{device}: this machine has {torch.cuda.device_count()} CUDA devices", "device")
    properties = torch.cuda.get_device_properties(int(index or 0))
    return {
        "type": "cuda",
        "name": properties.name,
        "index": int(index or 0),
        "total_bytes": properties.total_memory,
        "capability": [properties.major, properties.minor],
        "uuid": _text_or_none(getattr(properties, "uuid", None)),
        "pci_bus_id": _pci_bus_id(properties),
    }


def _text_or_none(value: object) -> str | None:
    return None if value is None else str(value)


def _pci_bus_id(properties: Any) -> str | None:
    """``domain:bus:device.0`` as NVML writes it; None before torch 2.7, which does not tell."""
    parts = [getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    known = [part for part in parts if isinstance(part, int)]
    return "{:08X}:{:02X}:{:02X}.0".format(*known) if len(known) == len(parts) else None


def segments(snapshot: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The allocator's segments without addresses and stacks: ``total``, ``allocated``, ``kind`` and ``blocks`` [[size, state]]."""
    return [
        {
            "total": segment["total_size"], "allocated": segment["allocated_size"], "kind": segment["segment_type"],
            "blocks": [[block["size"], block["state"]] for block in segment["blocks"]],
        }
        for segment in snapshot
    ]  # fmt: skip


def open_cuda(device: str, budget_bytes: int | None) -> torch.device:
    """Select the card and hold the process to its budget. Raises :class:`OutOfMemory` if less than that is free."""
    selected = torch.device(device if ":" in device else "cuda:0")
    torch.cuda.set_device(selected)
    free, total = torch.cuda.mem_get_info(selected)
    if budget_bytes is not None:
        if budget_bytes > free:
            raise OutOfMemory(f"the budget of {budget_bytes} bytes is more than is free", budget_bytes, free)
        torch.cuda.set_per_process_memory_fraction(min(1.0, budget_bytes / total), selected)
    return selected


def check_machine_memory(needed_bytes: int) -> None:
    """Raise :class:`OutOfMemory` when the machine has less memory available than the load is sure to take."""
    free, total = machine_memory()
    if total and needed_bytes > free:
        raise OutOfMemory(
            f"the load takes at least {needed_bytes} bytes and this machine has {free} bytes available", needed_bytes, free
        )


def check_free(free_bytes: int, needed_bytes: int) -> None:
    """Raise :class:`OutOfMemory` before a card is filled with what it cannot hold: others may be at work on it."""
    if needed_bytes > free_bytes:
        raise OutOfMemory(
            f"the weights take {needed_bytes} bytes and {free_bytes} bytes of the card are free", needed_bytes, free_bytes
        )


def as_out_of_memory(error: BaseException) -> OutOfMemory | None:
    """The error as :class:`OutOfMemory` if that is what it says, whatever its type."""
    if isinstance(error, OutOfMemory):
        return error
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
        return OutOfMemory(text, _size_in(text, "Tried to allocate "), free)
    told = ("can't allocate memory", "not enough memory", "MPS backend out of memory")
    if isinstance(error, MemoryError) or any(words in text for words in told):
        return OutOfMemory(text or "the machine has no memory left", _plain_bytes_in(text), machine_memory()[0] or None)
    return None


def resident_bytes() -> int:
    """This process's resident memory."""
    if sys.platform.startswith("linux"):
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    try:
        import psutil
    except ImportError:
        return _peak_resident_bytes()
    return int(psutil.Process().memory_info().rss)


def _restart_resident_peak() -> bool:
    """Start the kernel's high-water mark of resident memory anew (proc(5), clear_refs). False where it can't be."""
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    except OSError:
        return False
    return True


def _resident_peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def _peak_resident_bytes() -> int:
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def machine_memory() -> tuple[int, int]:
    """The machine's (available, total) memory; zeros where it cannot be told."""
    if sys.platform.startswith("linux"):
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
        return fields.get("MemAvailable", 0), fields.get("MemTotal", 0)
    try:
        import psutil
    except ImportError:
        return 0, 0
    memory = psutil.virtual_memory()
    return int(memory.available), int(memory.total)


def cpu_name() -> str:
    """The processor's name."""
    if sys.platform.startswith("linux"):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    import platform

    return platform.processor() or platform.machine() or "CPU"


_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def _size_in(text: str, before: str) -> int | None:
    words = text.partition(before)[2].split()
    if len(words) < 2 or words[1].rstrip(".") not in _UNITS:
        return None
    return int(float(words[0]) * _UNITS[words[1].rstrip(".")])


def _plain_bytes_in(text: str) -> int | None:
    words = text.partition("allocate ")[2].split() if "tried to allocate" in text else []
    return int(words[0]) if words and words[0].isdigit() else None
