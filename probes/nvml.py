"""What the NVIDIA driver says about its GPUs. Every NVML call of the program goes through :meth:`Nvml.call`.

An absent library, an unloaded driver, a lost GPU or a field that a device does not have are states with words, never
exceptions: a machine without a GPU plans just as well. Error numbers and structures are those of ``nvml.h``.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import Any, Final

from probes.readings import DriverState, GpuProcess, GpuReading, MemoryReading, NaN, is_integrated, system_memory

logger = logging.getLogger(__name__)

SUCCESS: Final = 0
UNINITIALIZED: Final = 1
NOT_SUPPORTED: Final = 3
NO_PERMISSION: Final = 4
NOT_FOUND: Final = 6
DRIVER_NOT_LOADED: Final = 9
LIBRARY_NOT_FOUND: Final = 12
FUNCTION_NOT_FOUND: Final = 13
GPU_IS_LOST: Final = 15
RESET_REQUIRED: Final = 16
LIB_RM_VERSION_MISMATCH: Final = 18
UNKNOWN: Final = 999
BINDING_MISSING: Final = -1
"""Not NVML's: the Python package that speaks to it is not installed."""

_DEVICE_GONE: Final = frozenset({GPU_IS_LOST, RESET_REQUIRED})

_WORDS: Final[dict[int, tuple[str, str]]] = {
    BINDING_MISSING: ("The package nvidia-ml-py is not installed.", "pip install nvidia-ml-py"),
    UNINITIALIZED: ("The NVIDIA driver library was shut down.", "Start Highwater again."),
    NO_PERMISSION: ("This user may not read the GPU.", "Give the user access to /dev/nvidia*, often the group video."),
    DRIVER_NOT_LOADED: (
        "The NVIDIA driver is installed but not loaded.",
        "Run `sudo modprobe nvidia` or reboot; start a container with `--gpus all`.",
    ),
    LIBRARY_NOT_FOUND: (
        "There is no NVIDIA driver here.",
        "Planning works from the catalog; to measure on a GPU, install its driver.",
    ),
    GPU_IS_LOST: ("The GPU has fallen off the bus.", "Look at `dmesg` for an Xid error; reset or power-cycle it."),
    RESET_REQUIRED: ("The GPU needs a reset.", "End what runs on it, then `sudo nvidia-smi --gpu-reset -i INDEX`."),
    LIB_RM_VERSION_MISMATCH: (
        "The NVIDIA driver was updated: its library and the loaded kernel module differ.",
        "Reboot, or unload and load the nvidia kernel modules.",
    ),
}


def state_of(code: int, detail: str = "") -> DriverState:
    """The state for an NVML error number; numbers without words of their own show NVML's."""
    if code == SUCCESS:
        return DriverState()
    unknown = (f"The NVIDIA driver library failed: {detail or f'error {code}'}.", "Run `nvidia-smi` to see more.")
    words, remedy = _WORDS.get(code, unknown)
    return DriverState(code, words, remedy)


@dataclass(frozen=True, slots=True)
class _Answer:
    value: Any
    code: int


@dataclass(slots=True)
class _Device:
    """A handle and what does not change about its GPU."""

    index: int
    handle: Any
    mig_index: int | None = None
    uuid: str = ""
    name: str = ""
    pci_bus_id: str = ""
    trouble: str = ""
    memory_version: int | None = None
    """The structure that has answered before. It is kept: the two count ``used`` differently."""


@dataclass(slots=True)
class Nvml:
    """The driver's GPUs. Loads the library at the first question; safe to share between threads."""

    state: DriverState = field(default_factory=DriverState)
    driver_version: str = ""
    cuda_version: str = ""
    _devices: list[_Device] | None = None
    _pynvml: Any = None
    _unknown: set[str] = field(default_factory=set)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def open(self) -> DriverState:
        """Load the library and list the GPUs, unless that is done; the state says how it went."""
        with self._lock:
            if self._devices is None:
                self._devices = []
                self._load()
            return self.state

    def close(self) -> None:
        """Let go of the library; the next question loads it again."""
        with self._lock:
            if self._devices is not None and self.state.available:
                self.call("nvmlShutdown")
            self._devices, self.state = None, DriverState()

    def call(self, name: str, *arguments: Any, **options: Any) -> _Answer:
        """Ask ``pynvml.name``: the value with code 0, else None with NVML's error number. Never raises NVML errors.

        Functions that this driver or binding lacks are logged once.
        """
        function = getattr(self._pynvml, name, None)
        if function is None:
            return self._lacks(name)
        try:
            return _Answer(function(*arguments, **options), SUCCESS)
        except self._pynvml.NVMLError as error:
            code = int(error.value)
            return self._lacks(name) if code == FUNCTION_NOT_FOUND else _Answer(None, code)
        except (OSError, ValueError) as error:
            logger.warning("%s: %s", name, error)
            return _Answer(None, UNKNOWN)

    def readings(self) -> tuple[GpuReading, ...]:
        """Everything about every GPU. Slow on some drivers: meant for once or twice a second."""
        with self._lock:
            self.open()
            return tuple(self._reading(device) for device in self._devices or ())

    def memory(self) -> tuple[GpuReading, ...]:
        """Memory of every GPU alone, quick enough for twenty times a second."""
        with self._lock:
            self.open()
            return tuple(self._identity(device, self._memory(device)) for device in self._devices or ())

    def _lacks(self, name: str) -> _Answer:
        if name not in self._unknown:
            self._unknown.add(name)
            logger.info("%s is unknown to this NVIDIA driver; its readings are N/A", name)
        return _Answer(None, FUNCTION_NOT_FOUND)

    def _load(self) -> None:
        try:
            import pynvml  # noqa: PLC0415  loading it costs start-up time, and it may be absent
        except ImportError:
            self.state = state_of(BINDING_MISSING)
            return
        self._pynvml = pynvml
        started = self.call("nvmlInit")
        self.state = state_of(started.code, self._error_text(started.code))
        if self.state.available:
            self.driver_version = str(self.call("nvmlSystemGetDriverVersion").value or "")
            self.cuda_version = cuda_version(self.call("nvmlSystemGetCudaDriverVersion").value)
            self._devices = self._list_devices()

    def _error_text(self, code: int) -> str:
        return str(self._pynvml.NVMLError(code)) if code != SUCCESS else ""

    def _list_devices(self) -> list[_Device]:
        devices: list[_Device] = []
        for index in range(int(self.call("nvmlDeviceGetCount").value or 0)):
            answer = self.call("nvmlDeviceGetHandleByIndex", index)
            whole = _Device(index, answer.value)
            self._note_trouble(whole, answer.code)
            devices.extend(self._mig_instances(whole) or [whole])
        for device in devices:
            self._identify(device)
        return devices

    def _mig_instances(self, whole: _Device) -> list[_Device]:
        """The instances of a GPU in MIG mode; a program sees these, and never the whole."""
        mode = self._ask(whole, "nvmlDeviceGetMigMode").value
        if not mode or not mode[0]:
            return []
        slots = range(int(self._ask(whole, "nvmlDeviceGetMaxMigDeviceCount").value or 0))
        answers = [(slot, self.call("nvmlDeviceGetMigDeviceHandleByIndex", whole.handle, slot)) for slot in slots]
        return [_Device(whole.index, answer.value, slot) for slot, answer in answers if answer.code == SUCCESS]

    def _identify(self, device: _Device) -> None:
        device.uuid = str(self._ask(device, "nvmlDeviceGetUUID").value or "")
        device.name = str(self._ask(device, "nvmlDeviceGetName").value or f"GPU {device.index}")
        bus = getattr(self._ask(device, "nvmlDeviceGetPciInfo").value, "busId", "")
        device.pci_bus_id = bus.decode("ascii", "replace") if isinstance(bus, bytes) else str(bus)

    def _ask(self, device: _Device, name: str, *arguments: Any, **options: Any) -> _Answer:
        """Ask about one GPU. One that is gone is asked no more, the others are."""
        if device.trouble:
            return _Answer(None, GPU_IS_LOST)
        answer = self.call(name, device.handle, *arguments, **options)
        if answer.code == UNINITIALIZED:
            self.state = state_of(UNINITIALIZED)
        self._note_trouble(device, answer.code if answer.code in _DEVICE_GONE else SUCCESS)
        return answer

    def _note_trouble(self, device: _Device, code: int) -> None:
        if code != SUCCESS:
            device.trouble = str(state_of(code, self._error_text(code)))
            logger.warning("GPU %d: %s", device.index, device.trouble)

    def _identity(self, device: _Device, memory: MemoryReading) -> GpuReading:
        return GpuReading(
            device.index, device.uuid, device.name, memory, mig_index=device.mig_index, trouble=device.trouble,
            pci_bus_id=device.pci_bus_id,
        )  # fmt: skip

    def _reading(self, device: _Device) -> GpuReading:
        memory = self._memory(device)
        utilization = self._ask(device, "nvmlDeviceGetUtilizationRates").value
        power_milliwatts = self._ask(device, "nvmlDeviceGetPowerUsage").value
        temperature = self._ask(device, "nvmlDeviceGetTemperature", 0).value
        return GpuReading(
            device.index, device.uuid, device.name, memory,
            utilization_percent=NaN if utilization is None else float(utilization.gpu),
            power_watts=NaN if power_milliwatts is None else power_milliwatts / 1000,
            temperature_celsius=NaN if temperature is None else float(temperature),
            processes=self._processes(device), mig_index=device.mig_index, trouble=device.trouble, pci_bus_id=device.pci_bus_id,
        )  # fmt: skip

    def _processes(self, device: _Device) -> tuple[GpuProcess, ...]:
        answer = self._ask(device, "nvmlDeviceGetComputeRunningProcesses_v3")
        if answer.code == FUNCTION_NOT_FOUND:
            answer = self._ask(device, "nvmlDeviceGetComputeRunningProcesses_v2")
        listed = answer.value or ()
        return tuple(GpuProcess(int(process.pid), process.usedGpuMemory) for process in listed)

    def _memory(self, device: _Device) -> MemoryReading:
        if device.memory_version == 1:
            return self._memory_v1(device)
        version = getattr(self._pynvml, "nvmlMemory_v2", None)
        answer = self._ask(device, "nvmlDeviceGetMemoryInfo", version=version)
        if answer.code == SUCCESS and answer.value.total:
            device.memory_version = 2
            return _checked(answer.value, "nvml-v2", int(answer.value.reserved))
        if device.memory_version == 2 or device.trouble:
            return MemoryReading()
        if answer.code == NO_PERMISSION:
            return MemoryReading(source="hidden")
        return self._memory_v1(device)

    def _memory_v1(self, device: _Device) -> MemoryReading:
        answer = self._ask(device, "nvmlDeviceGetMemoryInfo")
        if answer.code == SUCCESS and answer.value.total:
            device.memory_version = 1
            return _checked(answer.value, "nvml-v1", None)
        if answer.code == NO_PERMISSION:
            return MemoryReading(source="hidden")
        if answer.code in (SUCCESS, NOT_SUPPORTED) and is_integrated(device.name):
            return system_memory()
        return MemoryReading()


def cuda_version(number: int | None) -> str:
    """``13.0`` from NVML's 13000; empty when unknown."""
    return "" if not number else f"{number // 1000}.{number % 1000 // 10}"


def _checked(info: Any, source: str, reserved_bytes: int | None) -> MemoryReading:
    """Drop values above the total: some Windows drivers answer a sentinel near 2**44 MiB."""
    total = int(info.total)
    used, free = int(info.used), int(info.free)
    return MemoryReading(
        total,
        used if used <= total else None,
        free if free <= total else None,
        reserved_bytes if reserved_bytes is None or reserved_bytes <= total else None,
        source,
    )
