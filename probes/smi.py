"""NVIDIA's GPUs as ``nvidia-smi`` tells them, in place of :class:`probes.nvml.Nvml` where its library or package is missing."""

from __future__ import annotations

from probes.nvml import UNKNOWN
from probes.readings import DriverState, GpuProcess, GpuReading, MemoryReading, NaN, is_integrated, system_memory
from probes.worker.smi import Row, Smi, program


class NvidiaSmi:
    """A driver as :class:`probes.drivers.Driver` has it. Its figures are of whole MiB and up to about a second old."""

    def __init__(self, path: str) -> None:
        self._smi = Smi(path)
        self.cuda_version = ""

    @classmethod
    def find(cls) -> NvidiaSmi | None:
        """The one of this machine, None without the program."""
        path = program()
        return None if path is None else cls(path)

    @property
    def state(self) -> DriverState:
        """Whether it knows a GPU; else what it said."""
        answer = self._smi.answer
        return (
            DriverState() if answer.rows else DriverState(UNKNOWN, f"nvidia-smi: {answer.failed}", "Run `nvidia-smi` to see more.")
        )

    @property
    def driver_version(self) -> str:
        """Empty when unknown."""
        return self._smi.answer.driver_version

    def open(self) -> DriverState:
        """It has been asked by now."""
        return self.state

    def close(self) -> None:
        """Ask no more."""
        self._smi.close()

    def readings(self) -> tuple[GpuReading, ...]:
        """Everything about every GPU, as it was told last."""
        return tuple(map(_reading, self._smi.read().rows))

    def memory(self) -> tuple[GpuReading, ...]:
        """The same."""
        return self.readings()


def _reading(row: Row) -> GpuReading:
    memory = MemoryReading(row.total_bytes, row.used_bytes, row.free_bytes, None, "nvidia-smi")
    if not row.total_bytes:
        memory = system_memory() if is_integrated(row.name) else MemoryReading()
    return GpuReading(
        row.index, row.uuid, row.name, memory,
        utilization_percent=_or_nan(row.utilization_percent), power_watts=_or_nan(row.power_watts),
        temperature_celsius=_or_nan(row.temperature_celsius), processes=tuple(GpuProcess(*held) for held in row.processes),
        mig_index=row.mig_index, trouble=row.trouble, pci_bus_id=row.pci_bus_id,
    )  # fmt: skip


def _or_nan(value: float | None) -> float:
    return NaN if value is None else value
