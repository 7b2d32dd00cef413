"""The GPUs of this machine, whoever made them: NVIDIA's driver and AMD's as one.

Intel's and Apple's are known through torch alone (:mod:`probes.worker.vendors`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from probes.amd import LIBRARY_NOT_FOUND, AmdSmi
from probes.nvml import BINDING_MISSING, Nvml
from probes.nvml import LIBRARY_NOT_FOUND as NO_NVML
from probes.readings import DriverState, GpuReading
from probes.smi import NvidiaSmi


class Driver(Protocol):
    """What is asked of a driver. States with words take the place of exceptions."""

    @property
    def state(self) -> DriverState:
        """Whether it answers."""

    @property
    def driver_version(self) -> str:
        """Empty when unknown."""

    @property
    def cuda_version(self) -> str:
        """Empty when unknown."""

    def open(self) -> DriverState:
        """Load it, unless that is done."""

    def close(self) -> None:
        """Let go of it."""

    def readings(self) -> tuple[GpuReading, ...]:
        """Everything about every GPU, once or twice a second."""

    def memory(self) -> tuple[GpuReading, ...]:
        """Memory of every GPU, twenty times a second."""


class Drivers:
    """Every driver here. AMD's GPUs are numbered after NVIDIA's.

    NVIDIA's is asked through its library; where that or its package is missing, through ``nvidia-smi``.
    """

    def __init__(self, nvml: Nvml | None = None, amd: AmdSmi | None = None) -> None:
        self._nvml: Driver = nvml or Nvml()
        self._amd = amd or AmdSmi()
        self._has_looked = False

    @property
    def state(self) -> DriverState:
        """One that answers is enough; where none does, the words are those of the driver that is here, else NVIDIA's."""
        nvidia, amd = self._nvml.state, self._amd.state
        return nvidia if nvidia.available or amd.code == LIBRARY_NOT_FOUND else amd

    @property
    def driver_version(self) -> str:
        """Of each that answers."""
        return ", ".join(filter(None, (self._nvml.driver_version, self._amd.driver_version)))

    @property
    def cuda_version(self) -> str:
        """NVIDIA's."""
        return self._nvml.cuda_version

    def open(self) -> DriverState:
        """Load both."""
        self._open_nvidia()
        self._amd.open()
        return self.state

    def close(self) -> None:
        """Let go of both."""
        self._nvml.close()
        self._amd.close()

    def readings(self) -> tuple[GpuReading, ...]:
        """Everything about every GPU."""
        self._open_nvidia()
        return _joined(self._nvml.readings(), self._amd.readings())

    def memory(self) -> tuple[GpuReading, ...]:
        """Memory of every GPU."""
        self._open_nvidia()
        return _joined(self._nvml.memory(), self._amd.memory())

    def _open_nvidia(self) -> None:
        if self._nvml.open().code in (BINDING_MISSING, NO_NVML):
            self._nvml = self._smi() or self._nvml

    def _smi(self) -> NvidiaSmi | None:
        """Looked for once."""
        looked, self._has_looked = self._has_looked, True
        return None if looked else NvidiaSmi.find()


def visible(readings: Sequence[GpuReading], chosen: str | None = None) -> tuple[GpuReading, ...]:
    """The GPUs that CUDA shows a program, in its order: all, or those that ``CUDA_VISIBLE_DEVICES`` (``chosen``) names.

    By number, or by the beginning of a UUID; as CUDA does, the list ends at what names no GPU (CUDA C++ programming guide,
    environment variables). Numbers are taken to be the driver's, which they are for cards of one kind and with
    ``CUDA_DEVICE_ORDER=PCI_BUS_ID``.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES") if chosen is None else chosen
    if chosen is None:
        return tuple(readings)
    found: list[GpuReading] = []
    for word in chosen.split(","):
        named = [gpu for gpu in readings if _is_named(gpu, word.strip())]
        if not named:
            break
        found += named[:1]
    return tuple(found)


def _is_named(gpu: GpuReading, word: str) -> bool:
    if word.isascii() and word.isdigit():
        return gpu.index == int(word)
    return word.startswith(("GPU-", "MIG-")) and gpu.uuid.startswith(word)


def _joined(nvidia: tuple[GpuReading, ...], amd: tuple[GpuReading, ...]) -> tuple[GpuReading, ...]:
    first = max((gpu.index for gpu in nvidia), default=-1) + 1
    return (*nvidia, *(replace(gpu, index=first + gpu.index) for gpu in amd))
