"""What a parent on the same machine reads from outside, sent by the worker itself where the parent is on another one.

``environment`` says what machine this is; ``sample`` has the process's resident memory and what the driver says of each
GPU. The driver is asked through its own library, which needs no package; where that can't be loaded, through ``nvidia-smi``.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .smi import Row, Smi, program
from .wire import Wire

INTERVAL_S = 0.05
PROCESSES_EVERY = 10
"""The driver lists processes slowly: once in so many samples."""
INTEGRATED_NAMES = ("GB10", "Orin", "Xavier", "Thor", "Tegra", "nvgpu")
"""Parts of the names under which NVML lists GPUs that share the system's memory (DGX Spark, the Jetson family)."""
Sizes = tuple[int | None, int | None, int | None]
NOT_TOLD: Sizes = (None, None, None)
_TEXT_BYTES = 96
_MOST_PROCESSES = 256


class _MemoryV2(ctypes.Structure):
    """``nvmlMemory_v2_t`` of nvml.h."""

    _fields_ = (
        ("version", ctypes.c_uint), ("total", ctypes.c_ulonglong), ("reserved", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong),
    )  # fmt: skip


class _Memory(ctypes.Structure):
    """``nvmlMemory_t``."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _PciInfo(ctypes.Structure):
    """``nvmlPciInfo_t``."""

    _fields_ = (
        ("legacy", ctypes.c_char * 16), ("domain", ctypes.c_uint), ("bus", ctypes.c_uint), ("device", ctypes.c_uint),
        ("id", ctypes.c_uint), ("subsystem", ctypes.c_uint), ("bus_id", ctypes.c_char * 32),
    )  # fmt: skip


@dataclass(frozen=True)
class Card:
    """A GPU, or one MIG instance of it, which then stands in its place."""

    index: int
    mig_index: int | None
    handle: Any


class _Process(ctypes.Structure):
    """``nvmlProcessInfo_v2_t``, which v3 of the call fills."""

    _fields_ = (
        ("pid", ctypes.c_uint), ("used", ctypes.c_ulonglong),
        ("instance", ctypes.c_uint), ("compute_instance", ctypes.c_uint),
    )  # fmt: skip


class Driver:
    """The few questions to libnvidia-ml that a sample needs. Without a driver it has no GPUs."""

    source = "library"

    def __init__(self) -> None:
        self._library = _load()
        self._tells_apart: set[int | None] = set()
        self.cards: list[Card] = []
        count = ctypes.c_uint()
        if self._asks("nvmlInitWithFlags", 0) and self._asks("nvmlDeviceGetCount_v2", ctypes.byref(count)):
            for index in range(count.value):
                handle = ctypes.c_void_p()
                if self._asks("nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(handle)):
                    self.cards += self._instances(index, handle) or [Card(index, None, handle)]

    def _instances(self, index: int, whole: ctypes.c_void_p) -> list[Card]:
        """The instances of a GPU in MIG mode: a program sees these, and never the whole."""
        mode, pending, slots = ctypes.c_uint(), ctypes.c_uint(), ctypes.c_uint()
        if not self._asks("nvmlDeviceGetMigMode", whole, ctypes.byref(mode), ctypes.byref(pending)) or not mode.value:
            return []
        self._asks("nvmlDeviceGetMaxMigDeviceCount", whole, ctypes.byref(slots))
        found = []
        for slot in range(slots.value):
            handle = ctypes.c_void_p()
            if self._asks("nvmlDeviceGetMigDeviceHandleByIndex", whole, slot, ctypes.byref(handle)):
                found.append(Card(index, slot, handle))
        return found

    @property
    def is_loaded(self) -> bool:
        """Whether there is such a library."""
        return self._library is not None

    def version(self) -> str | None:
        """The driver's."""
        return self._text("nvmlSystemGetDriverVersion")

    def cuda_version(self) -> str | None:
        """The CUDA version the driver brings."""
        number = ctypes.c_int()
        found = self._asks("nvmlSystemGetCudaDriverVersion", ctypes.byref(number))
        return f"{number.value // 1000}.{number.value % 1000 // 10}" if found and number.value else None

    def identity(self, handle: ctypes.c_void_p) -> dict[str, str | None]:
        """UUID, place on the PCI bus, and name."""
        place = _PciInfo()
        bus = (
            place.bus_id.decode("ascii", "replace") if self._asks("nvmlDeviceGetPciInfo_v3", handle, ctypes.byref(place)) else None
        )
        uuid, name = self._text("nvmlDeviceGetUUID", handle), self._text("nvmlDeviceGetName", handle)
        return {"uuid": uuid, "pci_bus_id": bus, "name": name}

    def memory(self, handle: ctypes.c_void_p) -> Sizes:
        """Bytes (total, used, free), None what is not told; of a card on the system's memory, the system's.

        ``used`` is without the driver's own where it tells them apart; a card that has once done so is held to it.
        """
        newer = _MemoryV2(version=ctypes.sizeof(_MemoryV2) | 2 << 24)
        if self._asks("nvmlDeviceGetMemoryInfo_v2", handle, ctypes.byref(newer)) and newer.total:
            self._tells_apart.add(handle.value)
            return _checked(newer.total, newer.used, newer.free)
        older = _Memory()
        if handle.value in self._tells_apart:
            return NOT_TOLD
        if self._asks("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(older)) and older.total:
            return _checked(older.total, older.used, older.free)
        return _system_memory(self._text("nvmlDeviceGetName", handle) or "")

    def process_bytes(self, handle: ctypes.c_void_p, pid: int) -> int | None:
        """What the driver lists for a process; None where it lists none."""
        listed, count = (_Process * _MOST_PROCESSES)(), ctypes.c_uint(_MOST_PROCESSES)
        if not self._asks("nvmlDeviceGetComputeRunningProcesses_v3", handle, ctypes.byref(count), listed):
            return None
        sizes = [process.used for process in listed[: count.value] if process.pid == pid and process.used < 2**63]
        return sum(sizes) or None

    def _text(self, name: str, *before: Any) -> str | None:
        held = ctypes.create_string_buffer(_TEXT_BYTES)
        return held.value.decode("utf-8", "replace") if self._asks(name, *before, held, _TEXT_BYTES) else None

    def _asks(self, name: str, *arguments: Any) -> bool:
        function = getattr(self._library, name, None)
        return function is not None and function(*arguments) == 0


class SmiDriver:
    """The same questions to ``nvidia-smi``, whose answers are some moments old and of whole MiB."""

    source = "nvidia-smi"

    def __init__(self, smi: Smi) -> None:
        self._smi = smi
        self.cards = [Card(row.index, row.mig_index, (row.index, row.mig_index)) for row in smi.answer.rows]

    def version(self) -> str | None:
        """The driver's."""
        return self._smi.answer.driver_version or None

    def cuda_version(self) -> str | None:
        """It is not in the tables."""
        return None

    def identity(self, handle: Any) -> dict[str, str | None]:
        """UUID, place on the PCI bus, and name."""
        row = self._row(handle)
        return {"uuid": None, "pci_bus_id": None, "name": None} if row is None else {
            "uuid": row.uuid or None, "pci_bus_id": row.pci_bus_id or None, "name": row.name
        }  # fmt: skip

    def memory(self, handle: Any) -> Sizes:
        """Bytes (total, used, free), as :meth:`Driver.memory`."""
        row = self._row(handle)
        if row is None or row.total_bytes:
            return NOT_TOLD if row is None else (row.total_bytes, row.used_bytes, row.free_bytes)
        return _system_memory(row.name)

    def process_bytes(self, handle: Any, pid: int) -> int | None:
        """What is listed for a process; None where there is none."""
        row = self._row(handle)
        return None if row is None else sum(size for owner, size in row.processes if owner == pid and size) or None

    def _row(self, handle: Any) -> Row | None:
        return next((row for row in self._smi.read().rows if (row.index, row.mig_index) == handle), None)


def find_driver() -> Driver | SmiDriver:
    """The library if it loads, else the program if that knows a GPU."""
    driver, path = Driver(), program()
    if driver.is_loaded or path is None:
        return driver
    return SmiDriver(Smi(path))


def _system_memory(name: str) -> Sizes:
    """Of a card of this name that works on the system's memory, the system's."""
    if not any(part in name for part in INTEGRATED_NAMES):
        return NOT_TOLD
    from .device import machine_memory

    available, total = machine_memory()
    return total, total - available, available


def _checked(total: int, used: int, free: int) -> Sizes:
    """Without values above the total: some drivers answer a sentinel."""
    return total, used if used <= total else None, free if free <= total else None


class Outside(threading.Thread):
    """Sends one ``environment`` and then ``sample`` twenty times a second, until the process ends."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(name="outside", daemon=True)
        self._wire = wire
        self._driver = find_driver()
        self._before: dict[tuple[int, int | None], int] = {}
        wire.send("environment", **self.environment())

    def run(self) -> None:
        """The thread's loop, on a clock that does not drift."""
        due, count = time.monotonic(), 0
        while True:
            self._wire.send("sample", **self.sample(with_processes=count % PROCESSES_EVERY == 0))
            count += 1
            due = max(due + INTERVAL_S, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))

    def environment(self) -> dict[str, Any]:
        """System, memory, driver, GPUs. No name of the machine, and none of the user."""
        from .device import machine_memory

        return {
            "remote": True, "system": platform.platform(), "machine": platform.machine(), "python": platform.python_version(),
            "cpus": os.cpu_count(), "memory_bytes": machine_memory()[1], "driver": self._driver.version(),
            "cuda_driver": self._driver.cuda_version(), "read_by": self._driver.source,
            "gpus": [self._gpu(card) for card in self._driver.cards],
        }  # fmt: skip

    def sample(self, *, with_processes: bool) -> dict[str, Any]:
        """``rss`` and ``gpus``, as :meth:`probes.meters.ProbeMeters.read` has them."""
        from .device import resident_bytes

        gpus = [self._reading(card, with_processes) for card in self._driver.cards]
        return {"rss": resident_bytes(), **({"gpus": gpus} if gpus else {})}

    def _gpu(self, card: Card) -> dict[str, Any]:
        total, used, free = self._driver.memory(card.handle)
        if used is not None:
            self._before[card.index, card.mig_index] = used
        sizes: Mapping[str, Any] = {"total_bytes": total, "used_bytes": used, "free_bytes": free}
        return {"index": card.index, "mig_index": card.mig_index, **self._driver.identity(card.handle), **sizes}

    def _reading(self, card: Card, with_processes: bool) -> dict[str, Any]:
        _total, used, free = self._driver.memory(card.handle)
        before = self._before.get((card.index, card.mig_index))
        delta = None if used is None or before is None else used - before
        told = {"process": self._driver.process_bytes(card.handle, os.getpid())} if with_processes else {}
        return {"index": card.index, "mig_index": card.mig_index, "used": used, "free": free, "delta": delta, **told}


def start(order: Mapping[str, Any], wire: Wire) -> None:
    """Begin, if the order asks for it: before the run takes anything, and once torch is imported."""
    if order.get("meters") is True:
        Outside(wire).start()


def _load() -> Any:
    for name in ("libnvidia-ml.so.1", "/usr/lib/wsl/lib/libnvidia-ml.so.1", "nvml.dll"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
