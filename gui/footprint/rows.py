"""What the stacked bars show: one row for each phase (one GPU) or for each GPU. Nothing here knows of widgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gui.translate import tr
from gui.words import word
from planner.footprint import COMPONENTS as ORDER
from planner.footprint import HOST, Footprint
from planner.words import PHASES


@dataclass(frozen=True, slots=True)
class Row:
    """One bar: which GPU and phase it stands for, and its parts in drawing order."""

    gpu: int
    phase: str
    label: str
    parts: tuple[tuple[str, int], ...]
    total_bytes: int
    capacity_bytes: int | None
    peak: bool
    error_bytes: int = 0
    """Half of the error band of the total."""
    free_bytes: int | None = None
    """What is free of that GPU now, where it is in this machine."""


def rows_of(footprint: Footprint, phase: str | None, free: Sequence[int | None] = ()) -> tuple[Row, ...]:
    """Every phase of a single GPU; of several, the phase asked for (None: each one's peak) on each GPU.

    Where no phase could be sized, the weights alone; last, what lies in the host's memory.
    ``free``: what is free of each GPU now, as far as that is known.
    """
    rows = []
    if footprint.weight_bytes and not any(gpu.phases for gpu in footprint.gpus):
        return _weights_alone(footprint, footprint.weight_bytes)
    for gpu in footprint.gpus:
        known = phase if any(found.name == phase for found in gpu.phases) else None
        named = known or (gpu.peak.name if gpu.peak else None)
        shown = gpu.phases if len(footprint.gpus) == 1 else [found for found in gpu.phases if found.name == named]
        for found in shown:
            label = word(PHASES, found.name).label if len(footprint.gpus) == 1 else f"GPU {gpu.index}"
            parts = tuple((name, found.components[name]) for name in ORDER if found.components.get(name, 0) > 0)
            error = footprint.uncertainty_bytes or 0 if found == gpu.peak else 0
            free_bytes = free[gpu.index] if gpu.index < len(free) else None
            rows.append(
                Row(gpu.index, found.name, label, parts, found.device, gpu.capacity_bytes, found == gpu.peak, error, free_bytes)
            )
    return (*rows, *_host(footprint))


def _host(footprint: Footprint) -> tuple[Row, ...]:
    """System memory, where a part of the plan lies there."""
    held = footprint.host.phase
    if held is None:
        return ()
    parts = tuple((name, held.components[name]) for name in ORDER if held.components.get(name, 0) > 0)
    return (Row(HOST, held.name, tr("Host"), parts, held.device, None, peak=False),)


def _weights_alone(footprint: Footprint, weight_bytes: int) -> tuple[Row, ...]:
    parts = (("weights", weight_bytes),)
    return tuple(Row(gpu.index, "", "Weights", parts, weight_bytes, gpu.capacity_bytes, peak=False) for gpu in footprint.gpus)
