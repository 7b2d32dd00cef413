"""What a recording says about the machine that it was made on."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence

import psutil

from probes.drivers import Driver
from probes.readings import GpuReading


def environment(nvml: Driver, readings: Sequence[GpuReading]) -> dict[str, object]:
    """System, memory, driver, GPUs."""
    return {
        "system": platform.platform(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "driver": nvml.driver_version or None,
        "cuda_driver": nvml.cuda_version or None,
        "nvml": str(nvml.state) or None,
        "gpus": [gpu.to_json() for gpu in readings],
    }
