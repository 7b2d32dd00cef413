"""What a driver says of its GPUs, whoever made them: readings in which what is not told is N/A, and states in place of errors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import psutil

from probes.worker.outside import INTEGRATED_NAMES

NaN: Final = math.nan


@dataclass(frozen=True, slots=True)
class DriverState:
    """Whether the driver answers, and if not, why and what helps. ``code`` is its vendor's error number, 0 when all is well."""

    code: int = 0
    words: str = ""
    remedy: str = ""

    @property
    def available(self) -> bool:
        """Whether readings can be had."""
        return self.code == 0

    def __str__(self) -> str:
        return f"{self.words} {self.remedy}".strip()


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """Memory of one GPU; None is N/A.

    ``source`` names where it is from: ``nvml-v2`` (``used`` is what is allocated, ``reserved`` the driver's own),
    ``nvml-v1`` (``used`` holds the driver's part too), ``system`` (a GPU on the system's memory), ``hidden``
    (no permission), ``none``.
    """

    total_bytes: int | None = None
    used_bytes: int | None = None
    free_bytes: int | None = None
    reserved_bytes: int | None = None
    source: str = "none"


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that holds GPU memory; ``used_bytes`` None where the driver does not tell (Windows WDDM)."""

    pid: int
    used_bytes: int | None


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU, or one MIG instance of it, at one moment. None and NaN are N/A. ``trouble`` is empty when it is well."""

    index: int
    uuid: str
    name: str
    memory: MemoryReading = MemoryReading()
    utilization_percent: float = NaN
    power_watts: float = NaN
    temperature_celsius: float = NaN
    processes: tuple[GpuProcess, ...] = ()
    mig_index: int | None = None
    trouble: str = ""
    pci_bus_id: str = ""

    def process_bytes(self, pids: Iterable[int]) -> int | None:
        """Memory of the given processes, where the driver lists them; in containers it often does not: None."""
        wanted = set(pids)
        known = [process.used_bytes for process in self.processes if process.pid in wanted]
        return sum(size for size in known if size) or None

    def to_json(self) -> dict[str, object]:
        """JSON-ready data; N/A is null."""
        return {
            "index": self.index, "mig_index": self.mig_index, "uuid": self.uuid, "pci_bus_id": self.pci_bus_id or None,
            "name": self.name,
            "total_bytes": self.memory.total_bytes, "used_bytes": self.memory.used_bytes,
            "free_bytes": self.memory.free_bytes, "reserved_bytes": self.memory.reserved_bytes,
            "memory_source": self.memory.source,
            "utilization_percent": number_or_none(self.utilization_percent),
            "power_watts": number_or_none(self.power_watts),
            "temperature_celsius": number_or_none(self.temperature_celsius),
            "processes": [{"pid": process.pid, "used_bytes": process.used_bytes} for process in self.processes],
            "trouble": self.trouble,
        }  # fmt: skip


def number_or_none(value: float) -> float | None:
    """NaN, which JSON has no word for, as None."""
    return None if math.isnan(value) else value


def is_integrated(name: str) -> bool:
    """Whether a GPU of this NVML name works on the system's memory and has none of its own."""
    return any(part in name for part in INTEGRATED_NAMES)


def system_memory() -> MemoryReading:
    """Memory of a GPU that shares the system's: MemTotal and MemAvailable."""
    memory = psutil.virtual_memory()
    total, available = int(memory.total), int(memory.available)
    return MemoryReading(total, total - available, available, None, "system")
