"""Sequences worked out by hand, each by the rule it names (pytorch c10/cuda/CUDACachingAllocator.cpp)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from planner.allocator import (
    AllocatorOptions,
    CachingAllocator,
    OutOfMemoryError,
    SegmentState,
    parse_alloc_conf,
    segment_map,
)
from planner.faults import Faults

KIB, MIB = 2**10, 2**20


def blocks_of(allocator: CachingAllocator) -> list[list[tuple[int, str]]]:
    return [[(block.size_bytes, block.state) for block in segment.blocks] for segment in segment_map(allocator)]


def offsets(segment: SegmentState) -> dict[int | None, int]:
    return {block.id: block.address - segment.address for block in segment.blocks}


@pytest.mark.parametrize(
    ("requested", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),  # round_size: at least 512 B; up to 1 MiB a 2 MiB segment
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),  # the largest small request
        (MIB + 1, MIB + 512, 20 * MIB),  # below 10 MiB a 20 MiB segment, split when more than 1 MiB is left
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB - 511, 10 * MIB, 10 * MIB),  # 10 MiB after rounding: its own size, in steps of 2 MiB
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
        (11 * MIB - 512, 11 * MIB - 512, 12 * MIB),  # 1 MiB + 512 B is left: split off
        (11 * MIB, 12 * MIB, 12 * MIB),  # 1 MiB is left: an unsplit tail counts as allocated
    ],
)
def test_first_request(requested: int, allocated: int, reserved: int) -> None:
    allocator = CachingAllocator()
    allocator.malloc(1, requested)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (allocated, reserved)
    assert allocator.requested_bytes == requested


def test_zero_bytes_take_no_block() -> None:
    """NativeCachingAllocator::allocate calls malloc only for sizes other than 0."""
    allocator = CachingAllocator()
    allocator.malloc(1, 0)
    allocator.record_stream(1, 2)
    allocator.free(1)
    assert allocator.reserved_bytes == allocator.peak_allocated_bytes == 0


@pytest.mark.parametrize("expandable", [False, True])
def test_best_fit_is_the_smallest_block_then_the_lowest_address(expandable: bool) -> None:
    """BlockComparatorSize: size, then address."""
    allocator = CachingAllocator(AllocatorOptions(expandable_segments=expandable))
    for index, size in enumerate([6 * MIB, 2 * MIB, 4 * MIB, 2 * MIB, 4 * MIB, 2 * MIB]):
        allocator.malloc(index, size)
    for index in (0, 2, 4):
        allocator.free(index)
    allocator.malloc(10, 3 * MIB)
    assert offsets(segment_map(allocator)[0])[10] == 8 * MIB  # the first of the two of 4 MiB, not the 6 MiB before it


def test_freed_neighbours_merge() -> None:
    """try_merge_blocks: on both sides, within the segment."""
    allocator = CachingAllocator()
    for index in range(3):
        allocator.malloc(index, 512 * KIB)
    allocator.free(0)
    allocator.free(2)  # merges with the rest of the segment behind it
    assert blocks_of(allocator) == [
        [(512 * KIB, "inactive"), (512 * KIB, "active_allocated"), (MIB, "inactive")],
    ]
    allocator.free(1)
    assert blocks_of(allocator) == [[(2 * MIB, "inactive")]]


def test_streams_share_nothing() -> None:
    """A freed block serves its own stream only."""
    allocator = CachingAllocator()
    allocator.malloc(1, 4 * MIB, stream=0)
    allocator.free(1)
    allocator.malloc(2, 4 * MIB, stream=7)
    assert allocator.reserved_bytes == 40 * MIB


def test_recorded_streams_delay_the_free() -> None:
    """free() with stream_uses waits for an event on each stream; malloc() then finds it complete and caches the block."""
    allocator = CachingAllocator()
    allocator.malloc(1, 4 * MIB)
    allocator.record_stream(1, 0)  # its own stream: no wait
    allocator.record_stream(1, 5)
    allocator.record_stream(1, 6)
    allocator.free(1)
    assert (allocator.allocated_bytes, allocator.active_bytes) == (0, 4 * MIB)
    allocator.synchronize(5)
    allocator.malloc(2, 17 * MIB)
    assert allocator.active_bytes == 4 * MIB + 18 * MIB  # 6 is still at work, so the 20 MiB segment was no use
    allocator.synchronize(6)
    allocator.malloc(3, 15 * MIB)
    assert allocator.reserved_bytes == 20 * MIB + 18 * MIB


def test_a_full_card_waits_for_every_stream() -> None:
    """release_cached_blocks synchronizes before it frees."""
    allocator = CachingAllocator(AllocatorOptions(capacity_bytes=40 * MIB))
    allocator.malloc(1, 20 * MIB)
    allocator.record_stream(1, 5)
    allocator.free(1)
    allocator.malloc(2, 30 * MIB)
    assert (allocator.active_bytes, allocator.reserved_bytes) == (30 * MIB, 30 * MIB)


@pytest.mark.parametrize(("capacity", "reserved"), [(40 * MIB, 30 * MIB), (50 * MIB, 50 * MIB)])
def test_a_miss_on_a_full_card_gives_the_cache_back(capacity: int, reserved: int) -> None:
    """alloc_block fails, release_cached_blocks, alloc_block again: reserved depends on the capacity."""
    allocator = CachingAllocator(AllocatorOptions(capacity_bytes=capacity))
    allocator.malloc(1, 20 * MIB)
    allocator.free(1)
    allocator.malloc(2, 30 * MIB)
    assert allocator.reserved_bytes == reserved


def test_split_segments_stay() -> None:
    """release_blocks frees only what is not split."""
    allocator = CachingAllocator()
    allocator.malloc(1, 4 * MIB)
    allocator.malloc(2, 4 * MIB)
    allocator.malloc(3, 20 * MIB)
    allocator.free(2)
    allocator.free(3)
    allocator.empty_cache()
    assert allocator.reserved_bytes == 20 * MIB


def test_out_of_memory_states_the_numbers_of_the_message() -> None:
    """malloc: tried is the segment; free and total are cudaMemGetInfo's; the rest is reserved - allocated."""
    options = AllocatorOptions(capacity_bytes=64 * MIB, outside_bytes=4 * MIB)
    allocator = CachingAllocator(options)
    allocator.malloc(1, 5 * MIB)
    allocator.malloc(2, 20 * MIB)
    with pytest.raises(OutOfMemoryError) as caught:
        allocator.malloc(3, 21 * MIB)
    report = caught.value.report
    assert (report.requested_bytes, report.tried_bytes) == (21 * MIB, 22 * MIB)
    assert (report.capacity_bytes, report.free_bytes, report.allowed_bytes) == (64 * MIB, 20 * MIB, None)
    assert (report.allocated_bytes, report.unallocated_bytes) == (25 * MIB, 15 * MIB)
    assert str(report) == (
        "out of memory: tried to allocate 22.00 MiB; the GPU has 64.00 MiB, of which 20.00 MiB is free; 25.00 MiB is"
        " allocated, 15.00 MiB is reserved but unallocated"
    )
    allocator.malloc(3, 20 * MIB)  # it can go on


def test_out_of_memory_names_the_limit_and_the_pools() -> None:
    allocator = CachingAllocator(AllocatorOptions(capacity_bytes=2**31, memory_fraction=0.01))
    allocator.begin_pool(1)
    allocator.malloc(1, 700, pool=1)
    with pytest.raises(OutOfMemoryError, match=r"20\.48 MiB allowed to this process; 1\.00 KiB is allocated, 2\.00 MiB cached"):
        allocator.malloc(2, 20 * MIB)


def test_memory_fraction_limits_what_is_reserved() -> None:
    """alloc_block: total_allocated_memory + size > allowed_memory_maximum is out of memory, whatever the driver has."""
    allocator = CachingAllocator(AllocatorOptions(capacity_bytes=100 * MIB, memory_fraction=0.5))
    allocator.malloc(1, 40 * MIB)
    with pytest.raises(OutOfMemoryError) as caught:
        allocator.malloc(2, 12 * MIB)
    assert (caught.value.report.allowed_bytes, caught.value.report.free_bytes) == (50 * MIB, 60 * MIB)
    allocator.malloc(2, 10 * MIB)  # up to the last byte


@pytest.mark.parametrize(("threshold", "reserved"), [(0.8, 80), (0.7, 60), (0.5, 40)])
def test_garbage_collection_takes_the_older_blocks_first(threshold: float, reserved: int) -> None:
    """Ages in lookups of the large pool since the free; unsplit blocks of at least the mean age go, then again if need be.

    Reserved are 80 MiB of 100 allowed, 20 free since lookup 4 and 20 since lookup 5.
    """
    options = AllocatorOptions(capacity_bytes=200 * MIB, memory_fraction=0.5, garbage_collection_threshold=threshold)
    allocator = CachingAllocator(options)
    for index in range(4):
        allocator.malloc(index, 20 * MIB)  # lookups 1 to 4
    allocator.free(0)
    allocator.free(1)
    allocator.malloc(4, 20 * MIB)  # lookup 5, in the place of 0
    allocator.free(4)
    allocator.malloc(5, 12 * MIB, stream=1)  # lookup 6, a miss
    assert allocator.reserved_bytes == reserved * MIB + 12 * MIB


def test_garbage_collection_ages_by_lookups_of_the_large_pool() -> None:
    """get_free_blocks_call_count is the pool's own: small requests make no large block older."""
    options = AllocatorOptions(capacity_bytes=200 * MIB, memory_fraction=0.5, garbage_collection_threshold=0.78)
    allocator = CachingAllocator(options)
    for index in range(3):
        allocator.malloc(index, 20 * MIB)  # large lookups 1 to 3
    allocator.free(0)  # from 3
    allocator.malloc(3, 512)
    allocator.free(1)  # from 3 as well
    allocator.malloc(4, 18 * MIB, stream=1)  # 62 MiB, below the threshold
    allocator.malloc(5, 18 * MIB, stream=2)  # 80 MiB: both are of the mean age, both go
    assert allocator.reserved_bytes == 20 * MIB + 2 * MIB + 18 * MIB + 18 * MIB


def test_max_split_size_keeps_oversize_blocks_whole() -> None:
    """get_free_block: none at or above the limit for a smaller request; above it at most max_non_split_rounding more."""
    allocator = CachingAllocator(AllocatorOptions(max_split_size_bytes=40 * MIB))
    allocator.malloc(1, 60 * MIB)
    allocator.free(1)
    allocator.malloc(2, 30 * MIB)
    assert allocator.reserved_bytes == 90 * MIB
    allocator.malloc(3, 40 * MIB)  # 60 MiB is 20 MiB more: too large
    assert allocator.reserved_bytes == 130 * MIB
    allocator.malloc(4, 40 * MIB + 512)
    assert allocator.reserved_bytes == 130 * MIB
    assert allocator.allocated_bytes == 30 * MIB + 40 * MIB + 60 * MIB  # not split


def test_max_split_size_gives_back_oversize_blocks_first() -> None:
    """release_available_cached_blocks: the smallest sufficient oversize block, else the largest, and only those."""
    allocator = CachingAllocator(AllocatorOptions(capacity_bytes=200 * MIB, max_split_size_bytes=40 * MIB))
    for index, size in enumerate([40 * MIB, 46 * MIB, 90 * MIB, 20 * MIB]):
        allocator.malloc(index, size)
    for index in range(4):
        allocator.free(index)
    allocator.malloc(10, 68 * MIB)  # the 90 MiB block goes; the 40 and 46 MiB ones and the 20 MiB one stay
    assert allocator.reserved_bytes == 40 * MIB + 46 * MIB + 20 * MIB + 68 * MIB
    allocator.malloc(11, 80 * MIB)  # none is large enough: 46 then 40 MiB go
    assert allocator.reserved_bytes == 20 * MIB + 68 * MIB + 80 * MIB


@pytest.mark.parametrize(
    ("conf", "requested", "allocated"),
    [
        ("roundup_power2_divisions:4", 1200 * MIB, 1280 * MIB),  # the example in the source
        ("roundup_power2_divisions:4", 1024 * MIB, 1024 * MIB),
        ("roundup_power2_divisions:4", 2048, 2048),  # not above 512 B × 4: plain rounding
        ("roundup_power2_divisions:4", 2049, 2560),
        ("roundup_power2_divisions:[256:1,512:2,1024:4,>:8]", 300 * MIB + 1, 300 * MIB + 512),  # 1 is off
        ("roundup_power2_divisions:[256:1,512:2,1024:4,>:8]", 600 * MIB, 768 * MIB),
        ("roundup_power2_divisions:[256:1,512:2,1024:4,>:8]", 1200 * MIB, 1280 * MIB),
        ("roundup_power2_divisions:[256:1,512:2,1024:4,>:8]", 2100 * MIB, 2304 * MIB),
    ],
)
def test_roundup_power2_divisions(conf: str, requested: int, allocated: int) -> None:
    allocator = CachingAllocator(parse_alloc_conf(conf))
    allocator.malloc(1, requested)
    assert allocator.allocated_bytes == allocated


def test_large_segment_size() -> None:
    allocator = CachingAllocator(parse_alloc_conf("large_segment_size_mb:64"))
    allocator.malloc(1, 9 * MIB)
    assert allocator.reserved_bytes == 64 * MIB


EXPANDABLE = AllocatorOptions(expandable_segments=True)


def test_expandable_segments_grow_by_pages() -> None:
    """2 MiB pages for small requests, 20 MiB ones for large; a free end takes part in the next request."""
    allocator = CachingAllocator(EXPANDABLE)
    allocator.malloc(1, 3 * MIB)
    assert allocator.reserved_bytes == 20 * MIB
    allocator.malloc(2, 18 * MIB)  # 17 MiB are free at the end, one page more
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (21 * MIB, 40 * MIB)
    allocator.malloc(3, 1)
    assert allocator.reserved_bytes == 42 * MIB
    assert [segment.is_expandable for segment in segment_map(allocator)] == [True, True]


def test_expandable_blocks_split_down_to_512() -> None:
    """should_split: with expandable segments as in the small pool, so there is no unsplit tail."""
    allocator = CachingAllocator(EXPANDABLE)
    allocator.malloc(1, 11 * MIB)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (11 * MIB, 20 * MIB)


def test_unmapping_frees_whole_pages_and_mapping_fills_the_gap() -> None:
    """ExpandableSegment::unmap and find_expandable_block."""
    allocator = CachingAllocator(EXPANDABLE)
    for index, size in enumerate([15 * MIB, 30 * MIB, 5 * MIB]):
        allocator.malloc(index, size)
    allocator.free(1)  # 15 to 45 MiB of 60
    allocator.empty_cache()  # only the page from 20 to 40 MiB is whole
    assert allocator.reserved_bytes == 40 * MIB
    first, second = segment_map(allocator)
    assert (first.total_bytes, second.total_bytes) == (20 * MIB, 20 * MIB)
    assert second.address - first.address == 40 * MIB
    allocator.malloc(3, 20 * MIB)  # at 15 MiB, with the page mapped again
    assert allocator.reserved_bytes == 60 * MIB
    assert offsets(segment_map(allocator)[0])[3] == 15 * MIB


def test_a_gap_that_is_too_small_is_passed_over() -> None:
    """find_expandable_block: the lowest address from which the whole request fits."""
    allocator = CachingAllocator(EXPANDABLE)
    for index in range(3):
        allocator.malloc(index, 20 * MIB)
    allocator.free(1)
    allocator.empty_cache()
    allocator.malloc(3, 30 * MIB)
    assert [segment.total_bytes // MIB for segment in segment_map(allocator)] == [20, 60]
    assert offsets(segment_map(allocator)[1])[3] == 20 * MIB


def test_an_unused_range_goes_as_a_whole() -> None:
    """release_expandable_segment: once nothing is mapped; the next request takes fresh addresses."""
    allocator = CachingAllocator(EXPANDABLE)
    allocator.malloc(1, 45 * MIB)
    (first,) = segment_map(allocator)
    allocator.free(1)
    allocator.empty_cache()
    assert segment_map(allocator) == ()
    allocator.malloc(2, 45 * MIB)
    (second,) = segment_map(allocator)
    assert second.address >= first.address + 2**44


def test_an_expandable_segment_spares_its_end() -> None:
    """get_free_block: a block counts with what can be mapped behind it, so the larger inner block is taken."""
    allocator = CachingAllocator(EXPANDABLE)
    for index, size in enumerate([12 * MIB, 5 * MIB, 15 * MIB]):
        allocator.malloc(index, size)
    allocator.free(0)  # 12 MiB inside, 8 MiB at the end
    allocator.malloc(4, 6 * MIB)
    assert offsets(segment_map(allocator)[0])[4] == 0


def test_a_mapping_that_fails_half_way_stays_cached() -> None:
    """try_allocate_expandable_block: the gap is mapped before the end turns out too much; without a retry that stays."""
    allocator = CachingAllocator(AllocatorOptions(capacity_bytes=85 * MIB, expandable_segments=True))
    for index in range(4):
        allocator.malloc(index, 20 * MIB)
    allocator.free(1)
    allocator.free(3)
    allocator.empty_cache()
    allocator.free(2)
    assert allocator.reserved_bytes == 40 * MIB  # page 0 in use, 1 not mapped, 2 free, 3 and 4 not mapped
    allocator.begin_pool(1)
    with pytest.raises(OutOfMemoryError) as caught:
        allocator.malloc(4, 70 * MIB)  # page 1 is mapped; two more at the end are not to be had
    assert (allocator.reserved_bytes, caught.value.report.free_bytes) == (60 * MIB, 25 * MIB)
    assert blocks_of(allocator) == [[(20 * MIB, "active_allocated"), (40 * MIB, "inactive")]]


def test_private_pools_keep_their_memory() -> None:
    """get_pool during a capture; released pools give back only with the cache."""
    allocator = CachingAllocator()
    allocator.malloc(1, 20 * MIB)
    allocator.free(1)
    allocator.begin_pool(3)
    allocator.malloc(2, 20 * MIB, pool=3)
    allocator.malloc(4, 512, pool=3)
    allocator.end_pool(3)
    allocator.free(2)
    allocator.free(4)
    allocator.empty_cache()
    assert allocator.reserved_bytes == 22 * MIB
    assert [segment.pool for segment in segment_map(allocator)] == [3, 3]
    allocator.begin_pool(3)  # a second graph shares it
    allocator.end_pool(3)
    allocator.release_pool(3)
    allocator.empty_cache()
    assert allocator.reserved_bytes == 22 * MIB
    allocator.release_pool(3)
    allocator.empty_cache()
    assert allocator.reserved_bytes == 0


def test_a_released_pool_lives_as_long_as_its_storages() -> None:
    allocator = CachingAllocator()
    allocator.begin_pool(1)
    allocator.malloc(1, 20 * MIB, pool=1)
    allocator.malloc(2, 20 * MIB, pool=1)
    allocator.end_pool(1)
    allocator.release_pool(1)
    allocator.free(1)
    allocator.empty_cache()
    assert allocator.reserved_bytes == 20 * MIB
    with pytest.raises(Faults, match="still holds memory"):
        allocator.begin_pool(1)


def test_a_capture_gives_nothing_back() -> None:
    """malloc: no release_cached_blocks while captures are under way, not even of released pools."""
    allocator = CachingAllocator(AllocatorOptions(capacity_bytes=50 * MIB))
    allocator.begin_pool(1)
    allocator.malloc(1, 20 * MIB, pool=1)
    allocator.end_pool(1)
    allocator.malloc(2, 20 * MIB)
    allocator.free(1)
    allocator.free(2)
    allocator.release_pool(1)
    allocator.begin_pool(2)
    with pytest.raises(OutOfMemoryError):
        allocator.malloc(3, 20 * MIB, pool=2)
    assert allocator.reserved_bytes == 40 * MIB
    allocator.empty_cache()  # what is released goes, what is the device's own stays
    assert allocator.reserved_bytes == 20 * MIB
    allocator.end_pool(2)
    allocator.malloc(3, 50 * MIB)


def test_frees_during_a_capture_wait_for_its_end() -> None:
    """insert_events_deferred_until_no_capture: streams used only within the capture need no event after it."""
    allocator = CachingAllocator()
    allocator.malloc(1, 20 * MIB)
    allocator.begin_pool(1)
    allocator.record_stream(1, 5)
    allocator.free(1)
    allocator.malloc(2, 512, pool=1)
    assert allocator.active_bytes == 20 * MIB + 512
    allocator.end_pool(1)
    allocator.malloc(3, 20 * MIB)
    assert allocator.reserved_bytes == 20 * MIB + 2 * MIB


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda allocator: allocator.malloc(1, 5), "id: 1 is already allocated"),
        (lambda allocator: allocator.malloc(2, -1), "size_bytes: must be at least 0, got -1"),
        (lambda allocator: allocator.malloc(2, 5, pool=9), "pool: 9 is not begun"),
        (lambda allocator: allocator.free(2), "id: 2 is not allocated"),
        (lambda allocator: allocator.record_stream(2, 0), "id: 2 is not allocated"),
        (lambda allocator: allocator.begin_pool(0), "pool: 0 is the device's own"),
        (lambda allocator: allocator.begin_pool(4), "pool: 4 is already begun"),
        (lambda allocator: allocator.end_pool(5), "pool: 5 is not begun"),
        (lambda allocator: allocator.release_pool(5), "pool: 5 has no user"),
    ],
)
def test_misuse(misuse: Callable[[CachingAllocator], None], message: str) -> None:
    allocator = CachingAllocator()
    allocator.malloc(1, 1)
    allocator.begin_pool(4)
    with pytest.raises(Faults, match=message):
        misuse(allocator)
