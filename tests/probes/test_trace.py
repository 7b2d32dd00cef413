from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.allocator import Alloc, AllocatorOptions, Free, Mark, replay
from planner.units import MIB, align
from probes.downsample import extremes
from probes.peaks import GROUPS_TOLD, OpenedPeak, TensorGroup, fold_paths, open_peak
from probes.replay import Replay
from probes.trace import Trace

STRINGS = ["weights", "activations", "workspace", "model.layers.0.mlp", "model.layers.1.mlp", "", "mm", "load", "forward"]
WEIGHTS, ACTIVATIONS, WORKSPACE, LAYER_0, LAYER_1, ROOT, MM, LOAD, FORWARD = range(9)


def birth(ident: int, size: int, component: int = WEIGHTS, module: int = ROOT) -> list[Any]:
    return ["a", ident, size, component, module, MM]


def traced(*entries: list[Any]) -> Trace:
    trace = Trace()
    trace.take({"strings": STRINGS, "batch": list(entries)})
    return trace


def replayed(trace: Trace, options: AllocatorOptions | None = None) -> Replay:
    found = Replay(trace, options)
    found.advance()
    return found


STEP = (
    ["p", LOAD, "begin", 0],
    birth(10, 4 * MIB),
    ["p", LOAD, "end", 0],
    birth(11, 700),
    ["p", FORWARD, "begin", 1],
    birth(12, 3000, WORKSPACE, LAYER_0),
    ["c", 12, ACTIVATIONS],
    birth(13, 5000, ACTIVATIONS, LAYER_1),
    ["f", 12],
    ["p", FORWARD, "end", 1],
    ["f", 13],
)


def test_columns_hold_every_storage_from_birth_to_death() -> None:
    trace = traced(*STEP)
    assert list(trace.events) == [0, 1, 2, 3, ~2, ~3]
    assert list(trace.size_bytes) == [4 * MIB, 700, 3000, 5000]
    assert list(trace.born) == [0, 1, 2, 3]
    assert list(trace.died[2:]) == [4, 5]
    assert [trace.text(index) for index in trace.component] == ["weights", "weights", "activations", "activations"]


def test_the_allocators_events_carry_the_phases() -> None:
    events = list(traced(*STEP).allocator_events())
    assert events == [
        Mark("load"), Alloc(0, 4 * MIB), Alloc(1, 700), Mark("forward 1"), Alloc(2, 3000), Alloc(3, 5000), Free(2), Free(3),
    ]  # fmt: skip


def test_phases_begin_from_what_is_held_and_end_where_they_end() -> None:
    load, forward = replayed(traced(*STEP)).runs
    assert (load.name, load.allocated_bytes, load.allocated_event, load.end_event) == ("load", 4 * MIB, 0, 1)
    assert forward.allocated_bytes == 4 * MIB + align(700, 512) + align(3000, 512) + align(5000, 512)
    assert (forward.step, forward.allocated_event, forward.first_event) == (1, 3, 2)


def test_a_phase_without_births_peaks_before_it_begins() -> None:
    trace = traced(birth(1, 512), ["p", FORWARD, "begin", 0], ["f", 1], ["p", FORWARD, "end", 0])
    found = replayed(trace)
    assert found.runs[0].allocated_event == 0
    peak = open_peak(trace, found, found.runs[0])
    assert (peak.allocated_bytes, peak.operator, [group.bytes for group in peak.groups]) == (512, "", [512])


@pytest.mark.parametrize(
    "entry",
    [
        ["a", 1, 0, 0, 0, 0], ["a", 1, -5, 0, 0, 0], ["a", 1, 5], ["a", 1, 5, "x", 0, 0], ["a", 1, 5, 0, 2**40, 0],
        ["a", [], 5, 0, 0, 0], ["f", 99], ["c", 99, 0], ["p", 99, "begin", 0], ["p", 0, "begin"], ["z"], [], None, 7,
        ["a", 10, 512, 0, 0, 0],
    ],
)  # fmt: skip
def test_entries_that_make_no_sense_are_counted_and_leave_nothing(entry: Any) -> None:
    clean, dirty = traced(birth(10, 512), birth(11, 512)), traced(birth(10, 512), entry, birth(11, 512))
    assert dirty.faults == 1
    assert list(dirty.allocator_events()) == list(clean.allocator_events())
    assert len({len(column) for column in (dirty.size_bytes, dirty.component, dirty.module, dirty.operator, dirty.died)}) == 1


def test_a_replay_in_pieces_is_one_in_whole() -> None:
    trace = Trace()
    following = Replay(trace, AllocatorOptions())
    trace.take({"strings": STRINGS, "batch": []})
    for entry in STEP:
        trace.take({"batch": [entry]})
        following.advance()
    whole = replayed(traced(*STEP), AllocatorOptions())
    assert following.allocated_bytes == whole.allocated_bytes
    assert following.reserved_bytes == whole.reserved_bytes
    assert following.runs == whole.runs


def test_out_of_memory_stops_the_replay_at_its_event() -> None:
    trace = traced(birth(1, 30 * MIB), ["p", FORWARD, "begin", 0], birth(2, 30 * MIB), birth(3, 512))
    found = replayed(trace, AllocatorOptions(capacity_bytes=50 * MIB))
    assert found.exhausted is not None
    assert (found.exhausted.event, found.exhausted.phase) == (1, "forward")
    assert (found.exhausted.report.requested_bytes, found.exhausted.report.free_bytes) == (30 * MIB, 20 * MIB)
    found.advance()
    assert len(found.allocated_bytes) == 1


SIZES = st.integers(min_value=1, max_value=64 * MIB)
PROGRAMS = st.lists(st.one_of(SIZES, st.none()), max_size=60)
"""A birth of some size, or the death of the oldest storage."""


def program(steps: list[int | None]) -> Trace:
    entries, alive = [], []
    for number, size in enumerate(steps):
        if size is not None:
            alive.append(number)
            entries.append(birth(number, size, number % 3, LAYER_0 + number % 2))
        elif alive:
            entries.append(["f", alive.pop(0)])
    return traced(*entries)


@given(PROGRAMS)
def test_the_meters_are_the_simulators(steps: list[int | None]) -> None:
    """The meters after each event are those that planner.allocator.replay gives for the same events."""
    trace = program(steps)
    found, expected = replayed(trace, AllocatorOptions()), replay(trace.allocator_events())
    assert found.allocated_bytes == expected.allocated_bytes
    assert found.reserved_bytes == expected.reserved_bytes


@given(PROGRAMS, st.sampled_from([AllocatorOptions(), AllocatorOptions(expandable_segments=True), None]))
def test_components_add_up_to_allocated_at_every_event(steps: list[int | None], options: AllocatorOptions | None) -> None:
    """The components of a moment add up to allocated (DESIGN of the footprint), block tails included."""
    found = replayed(program(steps), options)
    for event, allocated in enumerate(found.allocated_bytes):
        assert sum(found.components_at(event).values()) == allocated


@given(PROGRAMS)
def test_on_a_cpu_reserved_is_allocated_in_512_bytes(steps: list[int | None]) -> None:
    """Each storage is rounded up to 512 bytes, and nothing is cached."""
    trace = program(steps)
    found = replayed(trace, None)
    assert found.reserved_bytes == found.allocated_bytes
    for event, allocated in enumerate(found.allocated_bytes):
        rows = found.alive_at(event)
        assert allocated == sum(align(size, 512) for size in np.array(trace.size_bytes)[rows].tolist())


def test_a_peak_folds_layers_and_adds_up() -> None:
    trace = traced(
        ["p", FORWARD, "begin", 0], birth(1, 4096), birth(2, 1024, ACTIVATIONS, LAYER_0), birth(3, 1024, ACTIVATIONS, LAYER_1)
    )
    found = replayed(trace)
    peak = open_peak(trace, found, found.runs[0])
    assert peak.groups == (
        TensorGroup("weights", "", "mm", 4096, 1), TensorGroup("activations", "model.layers.0-1.mlp", "mm", 2048, 2),
    )  # fmt: skip
    assert (peak.module, peak.operator, peak.allocated_bytes) == ("model.layers.1.mlp", "mm", 6144)


@pytest.mark.parametrize(
    ("paths", "folded"),
    [
        (["lm_head"], "lm_head"),
        ([""], ""),
        (["h.3.attn"], "h.3.attn"),
        (["h.0.attn", "h.1.attn", "h.2.attn", "h.5.attn"], "h.0-2,5.attn"),
        (["layers.0.experts.1.w1", "layers.2.experts.0.w1"], "layers.0,2.experts.0-1.w1"),
        (["block1.0", "block1.1"], "block1.0-1"),
    ],
)
def test_paths_fold_to_ranges(paths: list[str], folded: str) -> None:
    assert fold_paths(paths) == folded


def test_json_adds_up_the_smallest_groups() -> None:
    groups = tuple(TensorGroup("weights", str(number), "mm", 10, 2) for number in range(GROUPS_TOLD + 3))
    told = OpenedPeak("load", 0, 0, "", "mm", 10 * len(groups), groups).to_json()
    assert told["rest"] == {"bytes": 30, "count": 6}
    assert sum(tensor["bytes"] for tensor in told["tensors"]) + 30 == told["allocated"]  # type: ignore[attr-defined]


@given(st.lists(st.integers(0, 2**50), min_size=1, max_size=400), st.integers(8, 60))
def test_peaks_and_valleys_survive(values: list[int], limit: int) -> None:
    """Of every column the highest and the lowest value are among the points, which are no more than asked for, and in order."""
    other = [value % 1000 for value in values]
    kept = extremes((values, other), limit)
    assert len(kept) <= limit
    assert kept == sorted(set(kept))
    assert kept[-1] == len(values) - 1
    for column in (values, other):
        assert max(column[index] for index in kept) == max(column)
        assert min(column[index] for index in kept) == min(column)


def test_what_is_asked_for_is_kept_while_it_is_few() -> None:
    values = list(range(1000))
    assert 377 in extremes((values,), 100, [377])
    assert len(extremes((values,), 100, range(900))) <= 100
