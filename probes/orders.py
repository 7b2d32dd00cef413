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
    ranks: int = 1,
    *,
    snapshot: bool = False,
    stored_as: str | None = None,
) -> dict[str, object]:
    """The order to measure a scenario on ``cpu`` or ``cuda:N``, with several ``ranks`` on that card and the next ones.

    ``snapshot`` asks for the allocator's segments after the run; ``stored_as`` names the format of ``native`` weights.
    ``layers`` keeps only so many layers; ``budget_bytes`` is the most the run may allocate. Raises ValueError for a device
    or a number that no worker takes.
    """
    _check_device(device)
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
        **({"ranks": ranks} if ranks > 1 else {}),
        **({"snapshot": True} if snapshot else {}),
        **({"stored_as": stored_as} if stored_as else {}),
    }


def load_order(mode: str, device: str, budget_bytes: int | None = None, **more: object) -> dict[str, object]:
    """The order for a load without a model: ``ramp``, ``calibrate`` or ``script`` (:mod:`probes.worker.loads`).

    Raises ValueError for a device or a budget that no worker takes.
    """
    _check_device(device)
    if budget_bytes is not None and budget_bytes < 1:
        message = f"budget_bytes: must be at least 1, got {budget_bytes}"
        raise ValueError(message)
    return {"version": VERSION, "mode": mode, "device": device, "budget_bytes": budget_bytes, **more}


def _check_device(device: str) -> None:
    if not re.fullmatch(r"cpu|mps|(cuda|xpu):\d+", device):
        message = f"device: must be cpu or cuda:N (mps, xpu:N), got {device!r}"
        raise ValueError(message)
