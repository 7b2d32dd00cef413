"""Recordings of the real allocator, without a card: how torch's trace is read, and that a difference would be seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planner.allocator import Alloc, AllocatorOptions, Free, replay
from tests.gpu import allocator
from tests.gpu.scenarios import SCENARIOS

TORCH = "2.13.0"
KEPT = sorted((Path(__file__).parents[1] / "data" / "allocator").glob("*.json.gz"))


def played(seed: int = 3) -> dict[str, Any]:
    """What a card would leave on which torch does what the simulated allocator does."""
    steps = allocator.random_steps(seed)
    events = [Alloc(step[1], step[2]) if step[0] == "a" else Free(step[1]) for step in steps]
    timeline = replay(events, AllocatorOptions(torch_version=TORCH))
    reserved = list(timeline.reserved_bytes)
    segments = [{"total": reserved[-1], "allocated": 0, "kind": "large", "blocks": []}]
    told = {"torch": TORCH, "steps": steps, "allocated": list(timeline.allocated_bytes), "reserved": reserved, "segments": segments}
    return json.loads(json.dumps(told))


def test_steps_are_the_same_whenever_they_are_made_and_free_what_was_born() -> None:
    steps = allocator.random_steps(1)
    assert steps == allocator.random_steps(1) != allocator.random_steps(2)
    alive: set[int] = set()
    for kind, number, *_ in steps:
        if kind == "a":
            alive.add(number)
        else:
            alive.remove(number)
    assert len(steps) == allocator.STEPS


def test_what_agrees_is_no_mismatch() -> None:
    assert allocator.mismatch(played()) == ""


@pytest.mark.parametrize("meter", ["allocated", "reserved"])
def test_a_step_that_differs_is_named(meter: str) -> None:
    recorded = played()
    recorded[meter][17] += 512
    assert allocator.mismatch(recorded).startswith(f"step 17 ({recorded['steps'][17]}): {meter} ")


def test_segments_that_differ_in_the_end_are_named() -> None:
    recorded = played()
    recorded["segments"][0]["total"] += 2**21
    assert allocator.mismatch(recorded).startswith("in the end: ")


def test_torchs_own_trace_becomes_steps() -> None:
    """Entries as torch/cuda/_memory_viz.py documents them: a segment is taken before the allocation that needs it."""

    def entry(action: str, addr: int, size: int) -> dict[str, Any]:
        return {"action": action, "addr": addr, "size": size, "stream": 0, "frames": []}

    steps, reserved = allocator.trace_steps([
        entry("segment_alloc", 100, 2 * 2**20), entry("alloc", 100, 700), entry("alloc", 1124, 512),
        entry("free_requested", 100, 700), entry("free_completed", 100, 700), entry("free_completed", 999, 1),
        entry("segment_alloc", 9000, 20 * 2**20), entry("alloc", 9000, 3 * 2**20), entry("alloc", 100, 100),
        entry("free_completed", 9000, 3 * 2**20), entry("segment_free", 9000, 20 * 2**20), entry("alloc", 2048, 8),
    ])  # fmt: skip
    assert steps == [["a", 0, 700], ["a", 1, 512], ["f", 0], ["a", 3, 3 * 2**20], ["a", 4, 100], ["f", 3], ["a", 6, 8]]
    assert reserved == [2 * 2**20] * 3 + [22 * 2**20] * 3 + [2 * 2**20]


def test_a_recording_is_read_as_it_was_written(tmp_path: Path) -> None:
    recorded = played()
    path = tmp_path / "new" / "r.json.gz"
    allocator.write(path, recorded)
    assert allocator.read(path) == recorded
    before = path.read_bytes()
    allocator.write(path, recorded)
    assert path.read_bytes() == before


def test_the_runs_to_record_are_scenarios_of_the_battery() -> None:
    assert set(allocator.MODELS) <= {scenario.name for scenario in SCENARIOS}


@pytest.mark.skipif(not KEPT, reason="no recording of a real allocator has been made yet: tests/gpu/allocator.py on a card")
@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.name)
def test_the_simulated_allocator_does_what_was_recorded(path: Path) -> None:
    assert allocator.mismatch(allocator.read(path)) == ""
