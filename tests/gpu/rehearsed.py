"""A rehearsal of a battery scenario: the worker's trace through the simulated allocator."""

from __future__ import annotations

from typing import Any

from planner.allocator import AllocatorOptions
from probes.replay import Replay
from probes.trace import Trace
from tests.gpu.scenarios import Scenario
from tests.gpu.worker_process import run_worker

Peaks = dict[tuple[str, int], tuple[int, int]]
"""(phase, step) → highest (allocated, reserved)."""


def rehearse(scenario: Scenario, capability: list[int], torch_version: str, capacity_bytes: int | None = None) -> Peaks:
    """The peaks of every phase and step."""
    trace, told = Trace(), []

    def take(event: dict[str, Any]) -> None:
        if event["event"] == "storage":
            trace.take(event)
        elif event["event"] in ("result", "error"):
            told.append(event)

    order = scenario.order("rehearse", compute_capability=capability)
    status = run_worker(order, take)
    assert status == 0, told
    replay = Replay(trace, AllocatorOptions(torch_version=torch_version, capacity_bytes=capacity_bytes))
    replay.advance()
    peaks: Peaks = {}
    for run in replay.runs:
        allocated, reserved = peaks.get((run.name, run.step), (0, 0))
        peaks[run.name, run.step] = max(allocated, run.allocated_bytes), max(reserved, run.reserved_bytes)
    return peaks


def measured_peaks(result: dict[str, Any]) -> Peaks:
    """The same of a measurement's result."""
    return {(phase["name"], phase["step"]): (phase["allocated"], phase["reserved"]) for phase in result["phases"]}


def errors(rehearsed: Peaks, measured: Peaks) -> dict[tuple[str, int], tuple[float, float]]:
    """Rehearsed against measured, signed, (allocated, reserved), of every phase and step in both."""
    both = [key for key in rehearsed if key in measured and min(measured[key]) > 0]
    return {key: (rehearsed[key][0] / measured[key][0] - 1, rehearsed[key][1] / measured[key][1] - 1) for key in both}
