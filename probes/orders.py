"""The order that a worker is given; its keys are documented in :mod:`probes.worker`."""

from __future__ import annotations

import re
from collections.abc import Mapping

VERSION = 1


def measure_order(
    scenario: Mapping[str, object],
    config: Mapping[str, object],
    device: str = "cpu",
    layers: int | None = None,
    budget_bytes: int | None = None,
) -> dict[str, object]:
    """The order to measure a scenario on ``cpu`` or ``cuda:N``.

    ``layers`` keeps only so many layers; ``budget_bytes`` is the most the run may allocate. Raises ValueError for a device
    or a number that no worker takes.
    """
    if not re.fullmatch(r"cpu|cuda:\d+", device):
        message = f"device: must be cpu or cuda:N, got {device!r}"
        raise ValueError(message)
    for name, value in (("layers", layers), ("budget_bytes", budget_bytes)):
        if value is not None and value < 1:
            message = f"{name}: must be at least 1, got {value}"
            raise ValueError(message)
    return {
        "version": VERSION,
        "mode": "measure",
        "scenario": dict(scenario),
        "config": dict(config),
        "device": device,
        "layers": layers,
        "budget_bytes": budget_bytes,
    }
