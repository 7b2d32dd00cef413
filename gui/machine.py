"""The GPUs of this machine as the window sees them: read off the window's thread, twice a second."""

from __future__ import annotations

from dataclasses import dataclass, replace

import psutil
from PySide6.QtCore import QObject, Qt, Signal, Slot

from gui.units import format_bytes
from planner.units import MIB
from probes.drivers import Drivers
from probes.readings import DriverState, GpuReading
from probes.sampler import IDLE_INTERVAL_S, Sampler
from resources.gpus import UnknownGpu, gpu

_FLICKER = 64 * MIB


@dataclass(frozen=True, slots=True)
class Now:
    """What is free of a GPU at the moment, and the process that holds most of it; ``holder`` empty: none, or not told.

    ``index``: which GPU, where there are several of its kind; ``idle``: of those that the plan leaves alone the one that has most
    free, and how many bytes.
    """

    free_bytes: int
    holder: str = ""
    held_bytes: int = 0
    index: int | None = None
    idle: tuple[int, int] | None = None


class Machine(QObject):
    """``changed`` when it becomes known which GPUs are here; ``read`` with every reading."""

    changed = Signal()
    read = Signal(object)
    free_changed = Signal()
    """What is free has changed by more than a moment's flicker."""
    _sampled = Signal(object, object, object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._nvml = Drivers()
        self._sampler = Sampler(self._sample, IDLE_INTERVAL_S, "gpu-strip")
        self._state: DriverState | None = None
        self._names: tuple[str, ...] = ()
        self._readings: tuple[GpuReading, ...] = ()
        self._free: tuple[int, ...] = ()
        self._holders: dict[int, str] = {}
        self._sampled.connect(self._take, Qt.ConnectionType.QueuedConnection)

    @property
    def state(self) -> DriverState | None:
        """What the driver says; None before it was asked."""
        return self._state

    @property
    def readings(self) -> tuple[GpuReading, ...]:
        """The latest reading of every GPU."""
        return self._readings

    @property
    def names(self) -> tuple[str, ...]:
        """The catalog names of the GPUs here; those the catalog lacks under the driver's name."""
        return self._names

    def has(self, name: str) -> bool:
        """Whether a GPU of this catalog name is here."""
        return name in self._names

    def readings_of(self, name: str) -> tuple[GpuReading, ...]:
        """The readings of the GPUs of this catalog name, in the order of the driver."""
        return tuple(reading for reading, known in zip(self._readings, self._names, strict=False) if known == name)

    def start(self) -> None:
        """Begin to read."""
        self._sampler.start()

    def stop(self) -> None:
        """End the thread and let go of the driver."""
        self._sampler.stop()
        self._nvml.close()

    def now_of(self, name: str, count: int = 1) -> Now | None:
        """What is free of the fullest of the first ``count`` GPUs of this catalog name, which a plan takes; None without any."""
        known = [reading for reading in self.readings_of(name) if reading.memory.free_bytes is not None]
        if not known:
            return None
        fullest = min(known[:count], key=_free)
        largest = max(fullest.processes, key=lambda process: process.used_bytes or 0, default=None)
        held = (largest.used_bytes or 0) if largest else 0
        now = Now(_free(fullest), self._holders.get(largest.pid, "") if largest else "", held)
        idle = max(known[count:], key=_free, default=None)
        return now if len(known) == 1 else replace(now, index=fullest.index, idle=(idle.index, _free(idle)) if idle else None)

    def holders(self) -> list[str]:
        """Every process that holds memory of a GPU, as ``4711 python · 21.00 GiB``."""
        held = {process.pid: process.used_bytes for reading in self._readings for process in reading.processes}
        return [f"{pid} {self._holders.get(pid, '')} · {format_bytes(size or 0)}" for pid, size in held.items()]

    def _sample(self) -> None:
        readings = self._nvml.readings()
        pids = {process.pid for reading in readings for process in reading.processes}
        self._sampled.emit(self._nvml.state, readings, {pid: _name_of(pid) for pid in pids})

    @Slot(object, object, object)
    def _take(self, state: DriverState, readings: tuple[GpuReading, ...], holders: dict[int, str]) -> None:
        self._readings, self._holders = readings, holders
        names = tuple(_catalog_name(reading) for reading in readings)
        if state != self._state or names != self._names:
            self._state, self._names = state, names
            self.changed.emit()
        self.read.emit(readings)
        free = tuple((reading.memory.free_bytes or 0) // _FLICKER for reading in readings)
        if free != self._free:
            self._free = free
            self.free_changed.emit()


def _free(reading: GpuReading) -> int:
    return reading.memory.free_bytes or 0


def _name_of(pid: int) -> str:
    """The process as a person would look for it."""
    try:
        return f"{psutil.Process(pid).name()} ({pid})"
    except psutil.Error:
        return f"process {pid}"


def _catalog_name(reading: GpuReading) -> str:
    try:
        return gpu(reading.name, reading.memory.total_bytes).name
    except UnknownGpu:
        return reading.name
