"""Machines whose host and GPU share one memory: what lies on the host is missing on the GPU."""

from __future__ import annotations

from dataclasses import replace

from planner.footprint import Footprint, Verdict, judge
from planner.later import LaterMapping
from planner.scenario import Scenario
from planner.symbolic.amount import largest, smallest
from planner.units import GIB

ORDER: tuple[Verdict, ...] = ("does_not_fit", "tight", "fits")


def in_one_memory(found: Footprint, scenario: Scenario) -> Footprint:
    """A footprint judged by both together, every card with its machine's share of what the host holds."""
    host = found.host.bytes // (scenario.hardware.gpus * scenario.hardware.nodes)
    pairs = [(gpu.peak.device, gpu.capacity_bytes) for gpu in found.gpus if gpu.peak is not None and gpu.capacity_bytes is not None]
    if not host or not pairs or found.verdict == "unknown":
        return found
    device, capacity = largest(*(device for device, _ in pairs)), pairs[0][1]
    together = judge(device + host, capacity, found.uncertainty_bytes or 0)
    note = f"host and GPU share one memory: beside {device / GIB:.2f} GiB of the GPU's lie {host / GIB:.2f} GiB of the host's"
    verdict = min(found.verdict, together, key=ORDER.index)
    limits = found.limits
    if verdict == "does_not_fit" != found.verdict:
        limits = LaterMapping(lambda: {name: 0 if name == "max_batch" else value for name, value in found.limits.items()})
    left = capacity - device - host
    headroom = left if found.headroom_bytes is None else smallest(left, found.headroom_bytes)
    return replace(found, verdict=verdict, headroom_bytes=headroom, limits=limits, notes=(*found.notes, note))
