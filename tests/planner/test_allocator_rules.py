"""The simulator against a slow one written from the rules, on arbitrary programs and settings."""

from __future__ import annotations

from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from planner.allocator import (
    Alloc,
    AllocatorOptions,
    CachingAllocator,
    EmptyCache,
    Free,
    Mark,
    OutOfMemoryError,
    RecordStream,
    SegmentState,
    Synchronize,
    replay,
    segment_map,
)
from tests.planner.allocator_reference import MIB, Failure, ReferenceAllocator

EDGES = [512, 1024, 64 * 1024, MIB, 2 * MIB, 5 * MIB, 10 * MIB, 12 * MIB, 19 * MIB, 20 * MIB, 22 * MIB, 31 * MIB, 40 * MIB]
sizes = st.one_of(
    st.builds(lambda edge, by: max(0, edge + by), st.sampled_from(EDGES), st.sampled_from([-513, -512, -1, 0, 1, 512])),
    st.integers(0, 45 * MIB),
)
steps = st.one_of(
    st.tuples(st.just("malloc"), sizes, st.sampled_from([0, 0, 0, 1]), st.sampled_from([0, 0, 1, 2])),
    st.tuples(st.just("malloc"), sizes, st.just(0), st.just(0)),
    st.tuples(st.just("free"), st.integers(0, 50)),
    st.tuples(st.just("free"), st.integers(0, 50)),
    st.tuples(st.just("record"), st.integers(0, 50), st.integers(0, 2)),
    st.tuples(st.just("synchronize"), st.sampled_from([None, 0, 1, 2])),
    st.tuples(st.just("empty")),
    st.tuples(st.just("begin"), st.integers(1, 2)),
    st.tuples(st.just("end"), st.integers(1, 2)),
    st.tuples(st.just("release"), st.integers(1, 2)),
)


@st.composite
def option_sets(draw: st.DrawFn) -> AllocatorOptions:
    capacity = draw(st.one_of(st.none(), st.integers(0, 300 * MIB), st.integers(30 * MIB, 120 * MIB)))
    large = draw(st.sampled_from([20 * MIB, 20 * MIB, 11 * MIB, 32 * MIB]))
    return AllocatorOptions(
        capacity_bytes=capacity,
        outside_bytes=draw(st.sampled_from([0, 7 * MIB])),
        memory_fraction=1.0 if capacity is None else draw(st.sampled_from([1.0, 0.9, 0.5])),
        garbage_collection_threshold=draw(st.sampled_from([0.0, 0.3, 0.8])),
        max_split_size_bytes=draw(st.sampled_from([None, None, large, large + 5 * MIB])),
        max_non_split_rounding_bytes=draw(st.sampled_from([20 * MIB, 2 * MIB])),
        large_segment_bytes=large,
        roundup_power2_divisions=tuple(draw(st.lists(st.sampled_from([0, 1, 2, 8]), min_size=16, max_size=16)))
        if draw(st.booleans())
        else (0,) * 16,
        expandable_segments=draw(st.booleans()),
    )


class Pair:
    """Both allocators under one program; steps that make no sense at the moment are left out."""

    def __init__(self, options: AllocatorOptions) -> None:
        self.real, self.reference = CachingAllocator(options), ReferenceAllocator(options)
        self.live: list[int] = []
        self.count = 0

    def run(self, step: tuple[object, ...]) -> None:
        getattr(self, f"_{step[0]}")(*step[1:])

    def _malloc(self, size: int, stream: int, pool: int) -> None:
        pool = pool if pool in self.reference.captures else 0
        self.count += 1
        failure = None
        try:
            self.real.malloc(self.count, size, stream, pool)
        except OutOfMemoryError as error:
            report = error.report
            failure = Failure(
                report.tried_bytes,
                report.free_bytes,
                report.allocated_bytes,
                report.private_pool_bytes,
                report.unallocated_bytes,
            )
        assert self.reference.malloc(self.count, size, stream, pool) == failure
        if failure is None:
            self.live.append(self.count)

    def _free(self, which: int) -> None:
        if self.live:
            storage = self.live.pop(which % len(self.live))
            self.real.free(storage)
            self.reference.free(storage)

    def _record(self, which: int, stream: int) -> None:
        if self.live:
            storage = self.live[which % len(self.live)]
            self.real.record_stream(storage, stream)
            self.reference.record_stream(storage, stream)

    def _synchronize(self, stream: int | None) -> None:
        self.real.synchronize(stream)
        self.reference.synchronize(stream)

    def _empty(self) -> None:
        self.real.empty_cache()
        self.reference.empty_cache()

    def _begin(self, pool: int) -> None:
        released = self.reference.users.get(pool) == 0 and any(each.pool == pool for each in self.reference.ranges)
        if pool not in self.reference.captures and not released:
            self.real.begin_pool(pool)
            self.reference.captures.append(pool)
            self.reference.users[pool] = self.reference.users.get(pool, 0) + 1

    def _end(self, pool: int) -> None:
        if pool in self.reference.captures:
            self.real.end_pool(pool)
            self.reference.captures.remove(pool)

    def _release(self, pool: int) -> None:
        if self.reference.users.get(pool, 0) > 0 and pool not in self.reference.captures:
            self.real.release_pool(pool)
            self.reference.users[pool] -= 1


def flat(segments: tuple[SegmentState, ...]) -> set[tuple[int, int, str, int, int, bool]]:
    return {
        (block.address, block.size_bytes, block.state, segment.stream, segment.pool, segment.is_small)
        for segment in segments
        for block in segment.blocks
    }


@settings(max_examples=200)
@given(option_sets(), st.lists(steps, max_size=60))
def test_same_blocks_as_the_reference(options: AllocatorOptions, program: list[tuple[object, ...]]) -> None:
    """Best fit, splitting, merging, the retry chain, garbage collection, streams, pools, pages: every block, at every step."""
    pair = Pair(options)
    for step in program:
        pair.run(step)
        assert flat(segment_map(pair.real)) == pair.reference.blocks()
        assert pair.real.reserved_bytes == pair.reference.reserved
        assert pair.real.allocated_bytes == pair.reference.allocated
        assert pair.real.active_bytes == pair.reference.active
        assert pair.real.requested_bytes == pair.reference.requested


events = st.lists(steps, max_size=80)


def trace(program: list[tuple[object, ...]]) -> list[Alloc | Free | RecordStream | Synchronize | EmptyCache | Mark]:
    """The program as events that make sense; pool steps become marks."""
    found: list[Alloc | Free | RecordStream | Synchronize | EmptyCache | Mark] = []
    live: list[int] = []
    for index, step in enumerate(program):
        match step:
            case ("malloc", int(size), int(stream), _):
                found.append(Alloc(index, size, stream))
                live.append(index)
            case ("free", int(which)) if live:
                found.append(Free(live.pop(which % len(live))))
            case ("record", int(which), int(stream)) if live:
                found.append(RecordStream(live[which % len(live)], stream))
            case ("synchronize", stream):
                found.append(Synchronize(stream))  # type: ignore[arg-type]
            case ("empty",):
                found.append(EmptyCache())
            case ("begin", int(pool)):
                found.append(Mark(f"phase {pool}"))
    return found


@settings(max_examples=50)
@given(option_sets(), events)
def test_segment_maps_hold_together(options: AllocatorOptions, program: list[tuple[object, ...]]) -> None:
    """Blocks never overlap, cover their segment, two free ones are never neighbours, and their sums are the running figures."""
    run = trace(program)
    timeline = replay(run, options, snapshots_at=range(len(run)))
    for index, segments in timeline.snapshots.items():
        end = 0
        for segment in segments:
            assert segment.address >= end
            end = segment.address
            for block in segment.blocks:
                assert block.address == end
                assert block.size_bytes > 0
                assert block.requested_bytes <= block.size_bytes
                end += block.size_bytes
            states = [block.state for block in segment.blocks]
            assert ("inactive", "inactive") not in set(pairwise(states))
        assert sum(segment.total_bytes for segment in segments) == timeline.reserved_bytes[index]
        assert sum(segment.active_bytes for segment in segments) == timeline.active_bytes[index]
        assert sum(segment.allocated_bytes for segment in segments) == timeline.allocated_bytes[index]


@settings(max_examples=50)
@given(option_sets(), events)
def test_peaks_are_those_of_the_timeline(options: AllocatorOptions, program: list[tuple[object, ...]]) -> None:
    """A phase's peak is the highest figure within it; the peak of a longer trace is never lower."""
    run = trace(program)
    timeline = replay(run, options)
    assert timeline.phases[0].first_event == 0
    assert timeline.phases[-1].end_event == len(timeline.allocated_bytes)
    for phase in timeline.phases:
        span = slice(phase.first_event, phase.end_event)
        assert phase.allocated_bytes == max(timeline.allocated_bytes[span], default=0)
        assert phase.active_bytes == max(timeline.active_bytes[span], default=0)
        assert phase.reserved_bytes >= max(timeline.reserved_bytes[span], default=0)
    shorter = replay(run[: len(run) // 2], options)
    assert shorter.peak.allocated_bytes <= timeline.peak.allocated_bytes
    assert shorter.peak.reserved_bytes <= timeline.peak.reserved_bytes


@settings(max_examples=50)
@given(st.lists(st.tuples(sizes, st.integers(0, 2)), max_size=40), st.booleans(), st.randoms(use_true_random=False))
def test_everything_comes_back(requests: list[tuple[int, int]], expandable: bool, order: object) -> None:
    """Conservation: with every storage freed, in any order, emptying the cache leaves nothing reserved."""
    ids = list(range(len(requests)))
    order.shuffle(ids)  # type: ignore[attr-defined]
    allocs = [Alloc(index, size, stream) for index, (size, stream) in enumerate(requests)]
    timeline = replay([*allocs, *map(Free, ids), EmptyCache()], AllocatorOptions(expandable_segments=expandable))
    assert timeline.allocated_bytes[-1] == timeline.active_bytes[-1] == timeline.reserved_bytes[-1] == 0


@pytest.mark.parametrize(
    "options",
    [
        AllocatorOptions(capacity_bytes=160 * MIB),
        AllocatorOptions(capacity_bytes=160 * MIB, expandable_segments=True),
        AllocatorOptions(capacity_bytes=600 * MIB, memory_fraction=0.9, garbage_collection_threshold=0.4),
        AllocatorOptions(capacity_bytes=300 * MIB, max_split_size_bytes=20 * MIB, roundup_power2_divisions=(4,) * 16),
    ],
    ids=["plain", "expandable", "garbage", "oversize"],
)
def test_a_long_program_stays_equal(options: AllocatorOptions) -> None:
    """The same, through a thousand steps near a full card."""
    pair = Pair(options)
    state = 1
    for _ in range(1000):
        state = (state * 6364136223846793005 + 1442695040888963407) & (2**64 - 1)
        kind, value = state >> 62, (state >> 20) & 0xFFFFFFFF
        pair.run(("malloc", value % EDGES[value % len(EDGES)], value % 7 // 6, 0) if kind < 2 else ("free", value))
        assert pair.real.reserved_bytes == pair.reference.reserved
        assert pair.real.allocated_bytes == pair.reference.allocated
    assert flat(segment_map(pair.real)) == pair.reference.blocks()
