"""Cards that are not CUDA's, through torch alone: Apple's (MPS) and Intel's (XPU). AMD's answer to ``torch.cuda`` under ROCm.

Apple's torch has no peak counters: a phase's peak is the highest that was sampled, and the answer says so.
"""

from __future__ import annotations

from typing import Any

import torch

from .device import Reading
from .errors import OutOfMemory, WorkerError

KINDS = ("mps", "xpu")
MPS_NOTE = "torch counts no peaks on MPS: they are the highest that was sampled, and shorter ones were missed"


def describe(device: str) -> dict[str, Any]:
    """The ``device`` object of the hello event. Raises :class:`WorkerError` (no_device) when it is not there."""
    kind, _, index = device.partition(":")
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise WorkerError("no_device", "no Apple GPU can be used by this torch; measure on cpu or rehearse", "device")
        total_bytes, name = torch.mps.recommended_max_memory(), "Apple GPU"
        return {"type": "mps", "name": name, "index": None, "total_bytes": total_bytes, "capability": None}
    xpu = getattr(torch, "xpu", None)
    count = xpu.device_count() if xpu is not None and xpu.is_available() else 0
    if int(index or 0) >= count:
        raise WorkerError("no_device", f"{device}: this torch can use {count} Intel GPUs; measure on cpu or rehearse", "device")
    assert xpu is not None
    properties = xpu.get_device_properties(int(index or 0))
    return {
        "type": "xpu", "name": properties.name, "index": int(index or 0), "total_bytes": properties.total_memory,
        "capability": None, "uuid": str(getattr(properties, "uuid", "")) or None,
    }  # fmt: skip


def open_device(device: str, budget_bytes: int | None) -> tuple[torch.device, MpsMeter | XpuMeter]:
    """Select it, hold the process to its budget, and its meter. Raises :class:`OutOfMemory` if less than that is free."""
    selected = torch.device(device)
    meter: MpsMeter | XpuMeter = MpsMeter() if selected.type == "mps" else XpuMeter(selected)
    reading = meter.read()
    if budget_bytes is not None:
        if budget_bytes > reading.free:
            raise OutOfMemory(f"the budget of {budget_bytes} bytes is more than is free", budget_bytes, reading.free)
        fraction = min(1.0, budget_bytes / reading.total)
        if selected.type == "mps":
            torch.mps.set_per_process_memory_fraction(fraction)
        else:
            _limit_xpu(fraction, selected)
    return selected, meter


def _limit_xpu(fraction: float, device: torch.device) -> None:
    limit = getattr(torch.xpu, "set_per_process_memory_fraction", None)
    if limit is None:
        message = "budget_bytes: this torch cannot bound an Intel GPU; update torch or leave it out"
        raise WorkerError("unsupported", message, "budget_bytes")
    limit(fraction, device)


class MpsMeter:
    """``allocated`` is what tensors hold, ``reserved`` and ``device`` what Metal's driver gave this process."""

    def __init__(self) -> None:
        self._peak = (0, 0)

    def read(self) -> Reading:
        """The memory now."""
        allocated, driver = torch.mps.current_allocated_memory(), torch.mps.driver_allocated_memory()
        self._peak = (max(self._peak[0], allocated), max(self._peak[1], driver))
        total = torch.mps.recommended_max_memory()
        return Reading(allocated, driver, driver, max(0, total - driver), total)

    def begin_phase(self) -> None:
        """Forget the peaks."""
        torch.mps.synchronize()
        self._peak = (0, 0)
        self.read()

    def peak(self) -> tuple[int, int]:
        """Highest (allocated, reserved) that was read since the phase began."""
        torch.mps.synchronize()
        self.read()
        return self._peak

    def raised(self) -> int:
        """The highest allocated that was read."""
        self.read()
        return self._peak[0]

    def device_peak(self) -> int:
        """The driver's highest that was read."""
        return self._peak[1]

    def components(self) -> dict[str, int] | None:
        """Not known."""
        return None


class XpuMeter:
    """torch's own counters, as on CUDA."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def read(self) -> Reading:
        """The memory now."""
        free, total = torch.xpu.mem_get_info(self._device)
        reserved = torch.xpu.memory_reserved(self._device)
        return Reading(torch.xpu.memory_allocated(self._device), reserved, reserved, free, total)

    def begin_phase(self) -> None:
        """Forget the peaks."""
        torch.xpu.synchronize(self._device)
        torch.xpu.reset_peak_memory_stats(self._device)

    def peak(self) -> tuple[int, int]:
        """Highest (allocated, reserved) since the phase began."""
        torch.xpu.synchronize(self._device)
        return torch.xpu.max_memory_allocated(self._device), torch.xpu.max_memory_reserved(self._device)

    def raised(self) -> int:
        """The highest allocated since the phase began."""
        return int(torch.xpu.max_memory_allocated(self._device))

    def device_peak(self) -> int:
        """Highest device figure a counter tells."""
        return int(torch.xpu.max_memory_reserved(self._device))

    def components(self) -> dict[str, int] | None:
        """Not known."""
        return None
