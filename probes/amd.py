"""What AMD's driver says about its GPUs, through ``libamd_smi.so`` (ROCm's AMD SMI). The same readings as NVML's.

The library is asked by its C names and not through its Python package, which comes with some installations of ROCm only.
Prototypes, structures and numbers are those of ``amdsmi.h``; where a structure has changed between versions, only what stands
at a place that both have is read, and the version tells which it is. Without the library torch's own figures remain.
"""

from __future__ import annotations

import ctypes
import logging
import os
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from probes.readings import DriverState, GpuProcess, GpuReading, MemoryReading, NaN

logger = logging.getLogger(__name__)

SUCCESS: Final = 0
NO_PERMISSION: Final = 10
OUT_OF_RESOURCES: Final = 15
BUSY: Final = 30
NOT_FOUND: Final = 31
DRIVER_NOT_LOADED: Final = 34
LIBRARY_NOT_FOUND: Final = -1
"""Not AMD's: the library is not on this machine."""
SYMBOL_NOT_FOUND: Final = -2
"""Not AMD's: this version of the library lacks the function."""

PROCESSES_INTERVAL_S: Final = 1.0
"""Between two lists of processes, which the driver makes slowly."""
_INIT_AMD_GPUS: Final = 1 << 1
_AMD_GPU: Final = 1
_VRAM: Final = 0
_EDGE, _HOTSPOT, _CURRENT = 0, 1, 0
_ABSENT_32: Final = 0xFFFF_FFFF
_LONG_STRINGS_SINCE: Final = 25
"""From this version on names have 256 characters in place of 32, and power is told as one 64-bit number more."""
_MOST_PROCESSES: Final = 1024
_GONE: Final = frozenset({NOT_FOUND, BUSY})

_WORDS: Final[dict[int, tuple[str, str]]] = {
    LIBRARY_NOT_FOUND: ("There is no AMD driver library here.", "Install ROCm's AMD SMI (amd-smi-lib)."),
    SYMBOL_NOT_FOUND: ("AMD's driver library is too old.", "Update ROCm's AMD SMI."),
    DRIVER_NOT_LOADED: ("AMD's driver is installed but not loaded.", "Run `sudo modprobe amdgpu` or reboot."),
    NO_PERMISSION: ("This user may not read the GPU.", "Give the user access to /dev/kfd and /dev/dri, often the group render."),
    NOT_FOUND: ("The GPU does not answer any more.", "Look at `dmesg` for amdgpu; reset or power-cycle it."),
    BUSY: ("The GPU is being reset.", "Wait for its end, then start again."),
}


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things stand in the structures of one version."""

    process_bytes: int
    pid_at: int
    memory_at: int
    vram_at: int
    power_at: int


# name, pid, mem, engine_usage (64), memory_usage (gtt, cpu, vram, 40 reserved), container name, 16 or 48 more.
_SHORT: Final = _Layout(224, 32, 40, 128, 0)
_LONG: Final = _Layout(704, 256, 264, 352, 8)


@dataclass(slots=True)
class _Device:
    """A handle and what does not change about its GPU."""

    index: int
    handle: ctypes.c_void_p
    name: str = ""
    uuid: str = ""
    pci_bus_id: str = ""
    trouble: str = ""
    processes: tuple[GpuProcess, ...] = ()
    listed_at: float = -PROCESSES_INTERVAL_S


@dataclass(slots=True)
class AmdSmi:
    """AMD's GPUs of this machine. Loads the library at the first question; safe to share between threads."""

    state: DriverState = field(default_factory=DriverState)
    driver_version: str = ""
    _devices: list[_Device] | None = None
    _library: Any = None
    _layout: _Layout = _LONG
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def open(self) -> DriverState:
        """Load the library and list the GPUs, unless that is done; the state says how it went."""
        with self._lock:
            if self._devices is None:
                self._devices, self._library = [], _load()
                absent = self._library is None
                self.state = state_of(LIBRARY_NOT_FOUND if absent else self._ask("amdsmi_init", ctypes.c_uint64(_INIT_AMD_GPUS)))
                if self.state.available:
                    self._layout = self._layout_of_version()
                    self._list_devices(self._devices)
            return self.state

    def close(self) -> None:
        """Let go of the library; the next question loads it again."""
        with self._lock:
            if self._devices is not None and self.state.available:
                self._ask("amdsmi_shut_down")
            self._devices, self.state = None, DriverState()

    def readings(self) -> tuple[GpuReading, ...]:
        """Everything about every GPU; the processes as they were at most a second ago."""
        with self._lock:
            self.open()
            return tuple(self._reading(device) for device in self._devices or ())

    def memory(self) -> tuple[GpuReading, ...]:
        """Memory of every GPU alone."""
        with self._lock:
            self.open()
            return tuple(_identity(device, self._memory(device)) for device in self._devices or ())

    def _ask(self, name: str, *arguments: Any) -> int:
        """The status of a call; one that this version lacks is a status too."""
        function = getattr(self._library, name, None)
        return SYMBOL_NOT_FOUND if function is None else int(function(*arguments)) & _ABSENT_32

    def _of(self, device: _Device, name: str, *arguments: Any) -> bool:
        """Ask about one GPU; whether it answered. One that is gone is asked no more, the others are."""
        if device.trouble:
            return False
        code = self._ask(name, device.handle, *arguments)
        if code in _GONE:
            device.trouble = str(state_of(code))
            logger.warning("GPU %d: %s", device.index, device.trouble)
        return code == SUCCESS

    def _layout_of_version(self) -> _Layout:
        """Versions up to 24 begin with the year, later ones with their number."""
        told = (ctypes.c_uint32 * 8)()
        known = self._ask("amdsmi_get_lib_version", told) == SUCCESS
        return _SHORT if known and told[0] < _LONG_STRINGS_SINCE else _LONG

    def _list_devices(self, found: list[_Device]) -> None:
        for handle in self._handles():
            kind = ctypes.c_int(_AMD_GPU)
            self._ask("amdsmi_get_processor_type", handle, ctypes.byref(kind))
            if kind.value == _AMD_GPU:
                found.append(_Device(len(found), handle))
        for device in found:
            device.name = self._text(device, "amdsmi_get_gpu_asic_info") or f"AMD GPU {device.index}"
            device.uuid, device.pci_bus_id = self._uuid(device), self._pci_bus_id(device)
            self.driver_version = self.driver_version or self._text(device, "amdsmi_get_gpu_driver_info")

    def _handles(self) -> Iterator[ctypes.c_void_p]:
        """The processors of every socket."""
        for socket in self._listed("amdsmi_get_socket_handles"):
            yield from self._listed("amdsmi_get_processor_handles", socket)

    def _listed(self, name: str, *before: Any) -> list[ctypes.c_void_p]:
        count = ctypes.c_uint32()
        if self._ask(name, *before, ctypes.byref(count), None) != SUCCESS or not count.value:
            return []
        handles = (ctypes.c_void_p * count.value)()
        told = self._ask(name, *before, ctypes.byref(count), handles) == SUCCESS
        return [ctypes.c_void_p(handle) for handle in handles[: count.value]] if told else []

    def _text(self, device: _Device, name: str) -> str:
        """The text that a structure begins with."""
        held = ctypes.create_string_buffer(4096)
        return held.value.decode("utf-8", "replace").strip() if self._of(device, name, held) else ""

    def _uuid(self, device: _Device) -> str:
        held = ctypes.create_string_buffer(64)
        length = ctypes.c_uint(len(held))
        told = self._of(device, "amdsmi_get_gpu_device_uuid", ctypes.byref(length), held)
        return held.value.decode("utf-8", "replace") if told else ""

    def _pci_bus_id(self, device: _Device) -> str:
        """``domain:bus:device.function`` as NVML writes it, of BDFID = domain << 32 | bus << 8 | device << 3 | function."""
        number = ctypes.c_uint64()
        if not self._of(device, "amdsmi_get_gpu_bdf_id", ctypes.byref(number)):
            return ""
        bdf = number.value
        return f"{bdf >> 32:08X}:{bdf >> 8 & 0xFF:02X}:{bdf >> 3 & 0x1F:02X}.{bdf & 7}"

    def _reading(self, device: _Device) -> GpuReading:
        plain = _identity(device, self._memory(device))
        return replace(
            plain, utilization_percent=self._utilization(device), power_watts=self._power(device),
            temperature_celsius=self._temperature(device), processes=self._processes(device), trouble=device.trouble,
        )  # fmt: skip

    def _memory(self, device: _Device) -> MemoryReading:
        total, used = ctypes.c_uint64(), ctypes.c_uint64()
        if not self._of(device, "amdsmi_get_gpu_memory_total", _VRAM, ctypes.byref(total)) or not total.value:
            return MemoryReading()
        told = self._of(device, "amdsmi_get_gpu_memory_usage", _VRAM, ctypes.byref(used)) and used.value <= total.value
        return MemoryReading(total.value, used.value if told else None, total.value - used.value if told else None, None, "amdsmi")

    def _utilization(self, device: _Device) -> float:
        activity = (ctypes.c_uint32 * 64)()
        told = self._of(device, "amdsmi_get_gpu_activity", activity) and activity[0] <= 100
        return float(activity[0]) if told else NaN

    def _power(self, device: _Device) -> float:
        """The current power, or the average where a card tells that alone."""
        held = ctypes.create_string_buffer(1024)
        if not self._of(device, "amdsmi_get_power_info", held):
            return NaN
        told = struct.unpack_from("2I", held, self._layout.power_at)
        return next((float(watts) for watts in told if watts not in (0, _ABSENT_32, 0xFFFF)), NaN)

    def _temperature(self, device: _Device) -> float:
        celsius = ctypes.c_int64()
        for sensor in (_EDGE, _HOTSPOT):
            if self._of(device, "amdsmi_get_temp_metric", sensor, _CURRENT, ctypes.byref(celsius)):
                return float(celsius.value)
        return NaN

    def _processes(self, device: _Device) -> tuple[GpuProcess, ...]:
        if time.monotonic() - device.listed_at >= PROCESSES_INTERVAL_S:
            device.processes, device.listed_at = tuple(self._list_processes(device)), time.monotonic()
        return device.processes

    def _list_processes(self, device: _Device) -> Iterator[GpuProcess]:
        layout, count = self._layout, ctypes.c_uint32(_MOST_PROCESSES)
        held = ctypes.create_string_buffer(layout.process_bytes * _MOST_PROCESSES)
        if device.trouble:
            return
        code = self._ask("amdsmi_get_gpu_process_list", device.handle, ctypes.byref(count), held)
        if code not in {SUCCESS, OUT_OF_RESOURCES}:
            return
        for start in range(0, layout.process_bytes * min(count.value, _MOST_PROCESSES), layout.process_bytes):
            (pid,) = struct.unpack_from("I", held, start + layout.pid_at)
            (memory,) = struct.unpack_from("Q", held, start + layout.memory_at)
            (vram,) = struct.unpack_from("Q", held, start + layout.vram_at)
            if pid:
                yield GpuProcess(pid, vram or memory or None)


def state_of(code: int) -> DriverState:
    """The state for an AMD SMI status."""
    if code == SUCCESS:
        return DriverState()
    words, remedy = _WORDS.get(code, (f"AMD's driver library failed with status {code}.", "Run `amd-smi list` to see more."))
    return DriverState(code, words, remedy)


def _identity(device: _Device, memory: MemoryReading) -> GpuReading:
    return GpuReading(device.index, device.uuid, device.name, memory, trouble=device.trouble, pci_bus_id=device.pci_bus_id)


def _load() -> Any:
    """The library: where the loader finds it, or where ROCm puts it."""
    rocm = Path(os.environ.get("ROCM_PATH", "/opt/rocm"))
    for name in ("libamd_smi.so", str(rocm / "lib" / "libamd_smi.so")):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
