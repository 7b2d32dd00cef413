"""Traces: timelines, phases, faults, and PyTorch's own tools reading the snapshot."""

from __future__ import annotations

import json
import sys
from time import process_time
from typing import Any

import pytest

from planner.allocator import (
    Alloc,
    AllocatorOptions,
    BeginPool,
    EmptyCache,
    EndPool,
    Event,
    Frame,
    Free,
    Mark,
    RecordStream,
    ReleasePool,
    Synchronize,
    memory_snapshot,
    replay,
)
from planner.faults import Faults

MIB = 2**20

STEP = [
    Alloc(1, 4 * MIB),
    Mark("forward"),
    Alloc(2, 30 * MIB),
    Mark("backward"),
    Alloc(3, 8 * MIB),
    Free(2),
    EmptyCache(),
]


def test_a_timeline_has_a_figure_for_each_event() -> None:
    timeline = replay(STEP)
    assert [size // MIB for size in timeline.allocated_bytes] == [4, 4, 34, 34, 42, 12, 12]
    assert [size // MIB for size in timeline.reserved_bytes] == [20, 20, 50, 50, 50, 50, 20]
    assert list(timeline.active_bytes) == list(timeline.allocated_bytes)
    assert timeline.fragmentation[0] == pytest.approx(0.8)
    assert timeline.oom is None


def test_phases_have_peaks_of_their_own() -> None:
    phases = replay(STEP).phases
    assert [(phase.name, phase.first_event, phase.end_event) for phase in phases] == [
        ("", 0, 1),
        ("forward", 1, 3),
        ("backward", 3, 7),
    ]
    assert [phase.allocated_bytes // MIB for phase in phases] == [4, 34, 42]
    assert [phase.allocated_event for phase in phases] == [0, 2, 4]
    assert [phase.reserved_bytes // MIB for phase in phases] == [20, 50, 50]
    assert [phase.reserved_event for phase in phases] == [0, 2, 3]  # the last begins with it
    peak = replay(STEP).peak
    assert (peak.allocated_bytes, peak.allocated_event, peak.reserved_event, peak.end_event) == (42 * MIB, 4, 2, 7)


def test_a_trace_that_begins_with_a_mark_has_no_unnamed_phase() -> None:
    assert [phase.name for phase in replay([Mark("load"), Alloc(1, 5)]).phases] == ["load"]


def test_nothing_happened() -> None:
    timeline = replay([])
    assert (len(timeline.allocated_bytes), timeline.peak.reserved_bytes, len(timeline.fragmentation)) == (0, 0, 0)
    assert replay([EmptyCache()]).fragmentation[0] == 0.0


def test_reserved_peaks_within_an_event_count() -> None:
    """map_block counts what it maps at once, though the request then fails and the cache is given back."""
    events: list[Event] = [Alloc(index, 20 * MIB) for index in range(4)]
    events += [Free(1), Free(3), EmptyCache(), Free(2), Mark("last"), Alloc(4, 70 * MIB)]
    timeline = replay(events, AllocatorOptions(capacity_bytes=85 * MIB, expandable_segments=True))
    assert timeline.oom is not None
    assert [size // MIB for size in timeline.reserved_bytes[-2:]] == [40, 20]
    assert (timeline.phases[-1].reserved_bytes, timeline.phases[-1].reserved_event) == (60 * MIB, 9)


def test_a_replay_ends_when_memory_does() -> None:
    timeline = replay([Alloc(1, 20 * MIB), Alloc(2, 20 * MIB), Free(1)], AllocatorOptions(capacity_bytes=30 * MIB))
    assert timeline.oom is not None
    assert (timeline.oom.requested_bytes, timeline.oom.free_bytes) == (20 * MIB, 10 * MIB)
    assert list(timeline.reserved_bytes) == [20 * MIB, 20 * MIB]


def test_every_kind_of_event() -> None:
    timeline = replay(
        [
            BeginPool(1),
            Alloc(1, 20 * MIB, pool=1),
            EndPool(1),
            Alloc(2, 20 * MIB),
            RecordStream(2, 4),
            Free(2),
            Synchronize(4),
            Alloc(3, 20 * MIB),
            Free(1),
            ReleasePool(1),
            EmptyCache(),
        ]
    )
    assert [size // MIB for size in timeline.active_bytes] == [0, 20, 20, 40, 40, 40, 40, 40, 20, 20, 20]
    assert timeline.reserved_bytes[-1] == 20 * MIB


def test_segment_maps_on_demand() -> None:
    timeline = replay(STEP, snapshots_at={4})
    assert list(timeline.snapshots) == [4]
    small, large = timeline.snapshots[4]
    assert [(block.size_bytes // MIB, block.id) for block in small.blocks] == [(4, 1), (8, 3), (8, None)]
    assert (large.allocated_bytes, large.active_bytes, large.is_small, large.is_expandable) == (30 * MIB, 30 * MIB, False, False)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (Free(8), r"events\[1\]\.id: 8 is not allocated"),
        (Alloc(2, -4), r"events\[1\]\.size_bytes: must be at least 0, got -4"),
        ("free", r"events\[1\]: must be an event, got str"),
    ],
)
def test_impossible_events(event: Any, message: str) -> None:
    with pytest.raises(Faults, match=message):
        replay([Alloc(1, 5), event])


FRAMES: dict[int, list[Frame]] = {3: [{"filename": "model.py", "line": 7, "name": "layers.0.mlp"}]}


@pytest.mark.parametrize("expandable", [False, True])
def test_snapshot_has_the_shape_of_torchs(expandable: bool) -> None:
    """torch.cuda.memory._snapshot's keys; what the trace says adds up to what the segments say."""
    snapshot = memory_snapshot([*STEP[:-1], RecordStream(3, 1), Free(3)], AllocatorOptions(expandable_segments=expandable))
    assert json.loads(json.dumps(snapshot))["segments"]  # plain data
    trace = snapshot["device_traces"][0]
    added = {"segment_alloc", "segment_map"}
    taken = {"segment_free", "segment_unmap"}
    held = sum((entry["action"] in added) * entry["size"] - (entry["action"] in taken) * entry["size"] for entry in trace)
    assert held == sum(segment["total_size"] for segment in snapshot["segments"])
    states = [block["state"] for segment in snapshot["segments"] for block in segment["blocks"]]
    assert {"active_allocated", "active_awaiting_free", "inactive"} == set(states)
    assert [entry["action"] for entry in trace].count("free_requested") == 2
    assert [entry["action"] for entry in trace].count("free_completed") == 1


def test_snapshot_carries_frames_times_and_phases() -> None:
    snapshot = memory_snapshot(STEP, frames=FRAMES, times_us=range(0, 700, 100))
    births = [entry for entry in snapshot["device_traces"][0] if entry["action"] == "alloc"]
    assert [(entry["time_us"], entry["frames"]) for entry in births] == [(0, []), (200, []), (400, FRAMES[3])]
    assert [(each["name"], each["stage"], each["time_us"]) for each in snapshot["external_annotations"]] == [
        ("forward", "START", 100),
        ("forward", "END", 300),
        ("backward", "START", 300),
        ("backward", "END", 600),
    ]


def test_snapshot_of_a_failure() -> None:
    options = AllocatorOptions(capacity_bytes=30 * MIB, max_split_size_bytes=25 * MIB)
    snapshot = memory_snapshot([Alloc(1, 20 * MIB), Alloc(2, 20 * MIB - 1), Free(1)], options)
    last = snapshot["device_traces"][0][-1]
    assert (last["action"], last["size"], last["device_free"]) == ("oom", 20 * MIB, 10 * MIB)
    assert snapshot["allocator_settings"]["max_split_size"] == 25 * MIB
    assert snapshot["segments"][0]["allocated_size"] == 20 * MIB


def test_torchs_viewer_reads_it() -> None:
    viewer = pytest.importorskip("torch.cuda._memory_viz")
    snapshot = memory_snapshot(STEP, frames=FRAMES)
    assert "del d # 30.0MiB" in viewer.trace(snapshot)
    assert "layers.0.mlp 8388608" in viewer.segments(snapshot, format_flamegraph=str)
    assert "total_reserved: 20.0MiB\ntotal_allocated: 12.0MiB" in viewer.segsum(snapshot)
    assert "<script" in viewer.trace_plot(snapshot)


@pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer is at work")
def test_a_hundred_thousand_events_take_a_moment() -> None:
    """Processor time, several times what it takes, so that only a change of order shows."""
    events: list[Event] = []
    for round_ in range(500):
        events += [Alloc(round_ * 100 + index, (index * 7919 % 97 + 1) * 40_000) for index in range(100)]
        events += [Free(round_ * 100 + index * 37 % 100) for index in range(100)]
    start = process_time()
    timeline = replay(events)
    assert len(timeline.reserved_bytes) == 100_000
    assert process_time() - start < 3.0
