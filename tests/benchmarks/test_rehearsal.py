"""How long a rehearsal's trace takes from the wire to the footprint (``make bench``)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from probes.rehearsal import Rehearsal
from probes.wire import decode_event

LAYERS = 50
BIRTHS_PER_LAYER = 25
ROUNDS = 40
EVENTS = 2 * LAYERS * BIRTHS_PER_LAYER * ROUNDS
BATCH = 4096
SIZES = (8192, 33_554_432, 4_194_304, 58_720_256, 16_777_216)
ORDER = {"scenario": {}, "card": {"capacity_bytes": 80 * 2**30, "outside_bytes": 2**28, "torch_version": "2.13.0"}}


def wire() -> list[bytes]:
    """Rounds of a forward that saves for a backward: the sizes of a layer recur, births outlive their layer."""
    entries: list[list[Any]] = [["p", 1, "begin", 1]]
    ident = 0
    for _ in range(ROUNDS):
        idents = range(ident, ident + LAYERS * BIRTHS_PER_LAYER)
        entries += [["a", one, SIZES[one % len(SIZES)], 0, 3 + one // BIRTHS_PER_LAYER % LAYERS, 2] for one in idents]
        entries += [["f", one] for one in reversed(idents)]
        ident = idents.stop
    entries.append(["p", 1, "end", 1])
    strings = ["activations", "forward", "mm", *(f"model.layers.{layer}" for layer in range(LAYERS))]
    batches = [entries[start : start + BATCH] for start in range(0, len(entries), BATCH)]
    events: list[dict[str, Any]] = [{"event": "phase", "t": 0, "name": "forward", "state": "begin", "step": 1}]
    events += [{"event": "storage", "t": 0, "strings": [] if number else strings, "batch": b} for number, b in enumerate(batches)]
    events.append({"event": "phase", "t": 1, "name": "forward", "state": "end", "step": 1})
    return [json.dumps(event, separators=(",", ":")).encode() for event in events]


def fold(lines: list[bytes]) -> Rehearsal:
    rehearsal = Rehearsal(ORDER)
    for line in lines:
        event = decode_event(line)
        assert event is not None
        rehearsal.add(event)
    return rehearsal


@pytest.mark.benchmark(group="rehearsal")
def test_from_the_wire_through_the_allocator(benchmark: Any) -> None:
    rehearsal = benchmark.pedantic(fold, (wire(),), rounds=3)
    assert EVENTS == len(rehearsal.timeline_points(limit=None)) == 100_000
    assert rehearsal.trace.faults == 0


@pytest.mark.benchmark(group="rehearsal")
def test_from_the_trace_to_the_footprint(benchmark: Any) -> None:
    rehearsal = fold(wire())
    footprint = benchmark.pedantic(rehearsal.footprint, rounds=3)
    assert footprint.gpus[0].phases[0].name == "forward"
