"""The GPUs of this machine as the window sees them: read off the window's thread, twice a second."""

from __future__ import annotations

from PySide6.QtCore import QObject, Qt, Signal, Slot

from probes.nvml import GpuReading, Nvml, NvmlState
from probes.sampler import IDLE_INTERVAL_S, Sampler
from resources.gpus import UnknownGpu, gpu


class Machine(QObject):
    """``changed`` when it becomes known which GPUs are here; ``read`` with every reading."""

    changed = Signal()
    read = Signal(object)
    _sampled = Signal(object, object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._nvml = Nvml()
        self._sampler = Sampler(self._sample, IDLE_INTERVAL_S, "gpu-strip")
        self._state: NvmlState | None = None
        self._names: tuple[str, ...] = ()
        self._readings: tuple[GpuReading, ...] = ()
        self._sampled.connect(self._take, Qt.ConnectionType.QueuedConnection)

    @property
    def state(self) -> NvmlState | None:
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

    def start(self) -> None:
        """Begin to read."""
        self._sampler.start()

    def stop(self) -> None:
        """End the thread and let go of the driver."""
        self._sampler.stop()
        self._nvml.close()

    def _sample(self) -> None:
        readings = self._nvml.readings()
        self._sampled.emit(self._nvml.state, readings)

    @Slot(object, object)
    def _take(self, state: NvmlState, readings: tuple[GpuReading, ...]) -> None:
        self._readings = readings
        names = tuple(_catalog_name(reading) for reading in readings)
        if state != self._state or names != self._names:
            self._state, self._names = state, names
            self.changed.emit()
        self.read.emit(readings)


def _catalog_name(reading: GpuReading) -> str:
    try:
        return gpu(reading.name, reading.memory.total_bytes).name
    except UnknownGpu:
        return reading.name
