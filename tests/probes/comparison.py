"""A closed form beside the trace of the same scenario, phase by phase."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.footprint import Footprint


def assert_allocated(footprint: Footprint, traced: Mapping[str, Any], small_bytes: int, share: float = 0.0) -> None:
    """Of every phase of the first GPU: within a share of the trace's and the bytes of tensors that are too small to be told."""
    assert footprint.gpus, footprint.notes
    predicted = {phase.name: phase.allocated for phase in footprint.gpus[0].phases}
    assert predicted.keys() == traced.keys(), footprint.notes
    for name, allocated in predicted.items():
        truth = traced[name]["allocated"]
        assert abs(allocated - truth) <= share * truth + small_bytes, name


def assert_trained(footprint: Footprint, traced: Mapping[str, Any]) -> None:
    """What training adds to the weights is the trace's to the byte, at the optimizer's peak."""
    (parts,) = (phase.components for phase in footprint.gpus[0].phases if phase.name == "optimizer")
    for component in ("adapters", "gradients", "optimizer_state"):
        assert parts.get(component, 0) == traced["optimizer"]["components"].get(component, 0), component
