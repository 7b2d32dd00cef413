"""A trace of events through the allocator: what is held after each, and the peaks of each phase."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from planner.allocator.caching import CachingAllocator
from planner.allocator.events import (
    Alloc,
    BeginPool,
    EmptyCache,
    EndPool,
    Event,
    Free,
    Mark,
    RecordStream,
    ReleasePool,
    Synchronize,
)
from planner.allocator.options import AllocatorOptions
from planner.allocator.records import OutOfMemory, OutOfMemoryError
from planner.allocator.segments import SegmentState, segment_map
from planner.faults import Fault, Faults


@dataclass(frozen=True, slots=True)
class PhasePeak:
    """The highest figures from one :class:`Mark` to the next; ``*_event`` is the event at which one was first reached.

    ``first_event`` is the mark's (0 for what comes before any, under the name ""), ``end_event`` the one after the last. As with
    ``torch.cuda.reset_peak_memory_stats`` a phase's peaks start from what is held when it begins.
    """

    name: str
    first_event: int
    end_event: int
    allocated_bytes: int
    allocated_event: int
    reserved_bytes: int
    reserved_event: int
    active_bytes: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """What a replay found. The arrays (64-bit integers) have one figure for each event, as it is after the event.

    ``oom`` is the request that could not be met, at which the replay ended. ``snapshots`` has the segment maps asked for.
    """

    allocated_bytes: array[int]
    active_bytes: array[int]
    reserved_bytes: array[int]
    phases: tuple[PhasePeak, ...]
    snapshots: Mapping[int, tuple[SegmentState, ...]]
    oom: OutOfMemory | None

    @property
    def peak(self) -> PhasePeak:
        """The highest figures of the whole replay, named ""."""
        allocated = max(self.phases, key=lambda phase: phase.allocated_bytes)
        reserved = max(self.phases, key=lambda phase: phase.reserved_bytes)
        return PhasePeak(
            name="",
            first_event=0,
            end_event=len(self.allocated_bytes),
            allocated_bytes=allocated.allocated_bytes,
            allocated_event=allocated.allocated_event,
            reserved_bytes=reserved.reserved_bytes,
            reserved_event=reserved.reserved_event,
            active_bytes=max(phase.active_bytes for phase in self.phases),
        )

    @property
    def fragmentation(self) -> array[float]:
        """The share of the reserved memory in no storage, after each event; 0 when nothing is reserved."""
        pairs = zip(self.allocated_bytes, self.reserved_bytes, strict=True)
        return array("d", (1.0 - allocated / reserved if reserved else 0.0 for allocated, reserved in pairs))


def replay(events: Iterable[Event], options: AllocatorOptions | None = None, *, snapshots_at: Collection[int] = ()) -> Timeline:
    """Run a trace through an allocator of these options, up to its end or to the first request that can't be met.

    ``snapshots_at``: events after which the segment map is kept. Raises Faults under ``events[index].<field>`` for an event
    that could not have happened.
    """
    allocator = CachingAllocator(options)
    meter = _Meter(allocator)
    snapshots: dict[int, tuple[SegmentState, ...]] = {}
    oom = None
    for index, event in enumerate(events):
        if type(event) is Mark:
            meter.begin(event.name, index)
        try:
            apply(allocator, event, index)
        except OutOfMemoryError as error:
            oom = error.report
        meter.sample(index)
        if index in snapshots_at:
            snapshots[index] = segment_map(allocator)
        if oom is not None:
            break
    return Timeline(
        allocated_bytes=meter.allocated,
        active_bytes=meter.active,
        reserved_bytes=meter.reserved,
        phases=meter.finish(),
        snapshots=MappingProxyType(snapshots),
        oom=oom,
    )


def apply(allocator: CachingAllocator, event: Event, index: int) -> None:
    """Let one event happen. Raises OutOfMemoryError, and Faults with the event's ``index`` in the path."""
    act = _ACTS.get(type(event))
    if act is None:
        raise Faults([Fault(f"events[{index}]", f"must be an event, got {type(event).__name__}")])
    try:
        act(allocator, event)
    except Faults as faults:
        raise Faults(Fault(f"events[{index}].{fault.path}", fault.message) for fault in faults.faults) from None


_ACTS: Mapping[type, Callable[[CachingAllocator, Any], None]] = MappingProxyType(
    {
        Alloc: lambda allocator, event: allocator.malloc(event.id, event.size_bytes, event.stream, event.pool),
        Free: lambda allocator, event: allocator.free(event.id),
        RecordStream: lambda allocator, event: allocator.record_stream(event.id, event.stream),
        Synchronize: lambda allocator, event: allocator.synchronize(event.stream),
        EmptyCache: lambda allocator, _: allocator.empty_cache(),
        BeginPool: lambda allocator, event: allocator.begin_pool(event.pool),
        EndPool: lambda allocator, event: allocator.end_pool(event.pool),
        ReleasePool: lambda allocator, event: allocator.release_pool(event.pool),
        Mark: lambda allocator, _: allocator.reset_peaks(),
    }
)


class _Meter:
    """Reads an allocator after each event, and its peaks for the phase under way."""

    def __init__(self, allocator: CachingAllocator) -> None:
        self.allocated, self.active, self.reserved = array("q"), array("q"), array("q")
        self._allocator = allocator
        self._phases: list[PhasePeak] = []
        self._name, self._first = "", 0
        self._allocated_peak = self._allocated_event = 0
        self._reserved_peak = self._reserved_event = 0

    def begin(self, name: str, index: int) -> None:
        if index > 0:
            self._close(index)
        self._name, self._first = name, index
        self._allocated_peak, self._allocated_event = self._allocator.allocated_bytes, index
        self._reserved_peak, self._reserved_event = self._allocator.reserved_bytes, index

    def sample(self, index: int) -> None:
        allocator = self._allocator
        self.allocated.append(allocator.allocated_bytes)
        self.active.append(allocator.active_bytes)
        self.reserved.append(allocator.reserved_bytes)
        if allocator.peak_allocated_bytes > self._allocated_peak:
            self._allocated_peak, self._allocated_event = allocator.peak_allocated_bytes, index
        peak_reserved_bytes = allocator.peak_reserved_bytes
        if peak_reserved_bytes > self._reserved_peak:
            self._reserved_peak, self._reserved_event = peak_reserved_bytes, index

    def finish(self) -> tuple[PhasePeak, ...]:
        self._close(len(self.allocated))
        return tuple(self._phases)

    def _close(self, index: int) -> None:
        self._phases.append(
            PhasePeak(
                name=self._name,
                first_event=self._first,
                end_event=index,
                allocated_bytes=self._allocated_peak,
                allocated_event=self._allocated_event,
                reserved_bytes=self._reserved_peak,
                reserved_event=self._reserved_event,
                active_bytes=self._allocator.peak_active_bytes,
            )
        )
