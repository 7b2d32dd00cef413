"""A trace through the simulated allocator, as it arrives: the meters after each event, and the peaks of each phase."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from planner.allocator import AllocatorOptions, CachingAllocator, OutOfMemory, OutOfMemoryError
from planner.units import align
from probes.trace import Boundary, Trace

GRANULE_BYTES = 512
"""What the caching allocator rounds every storage up to (c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize)."""


class Allocator(Protocol):
    """What a replay asks of a device's memory."""

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the blocks that hold storages."""

    @property
    def reserved_bytes(self) -> int:
        """Bytes taken from the driver."""

    def malloc(self, storage: int, size_bytes: int) -> None:
        """A storage is born. Raises OutOfMemoryError."""

    def free(self, storage: int) -> None:
        """It dies."""


class LiveBytes:
    """The CPU: no cache, so what is reserved is what is allocated, each storage rounded as on a GPU."""

    def __init__(self) -> None:
        self.allocated_bytes = 0
        self._blocks: dict[int, int] = {}

    @property
    def reserved_bytes(self) -> int:
        """The same as allocated."""
        return self.allocated_bytes

    def malloc(self, storage: int, size_bytes: int) -> None:
        """Count a storage."""
        self._blocks[storage] = align(size_bytes, GRANULE_BYTES)
        self.allocated_bytes += self._blocks[storage]

    def free(self, storage: int) -> None:
        """No longer count it."""
        self.allocated_bytes -= self._blocks.pop(storage)


@dataclass(slots=True)
class PhaseRun:
    """One pass through a phase (of one step and micro-batch) and its highest meters.

    ``allocated_event`` is the event after which the peak was first reached; the one before ``first_event`` when that was
    held from the start. ``end_event`` None: still in it.
    """

    name: str
    step: int
    first_event: int
    end_event: int | None
    allocated_bytes: int
    allocated_event: int
    reserved_bytes: int


@dataclass(frozen=True, slots=True)
class Exhausted:
    """The event whose storage the card could not hold, the phase it was in, and the allocator's report."""

    event: int
    phase: str
    report: OutOfMemory


class Replay:
    """Follows a trace. ``allocated_bytes`` and ``reserved_bytes`` have one figure for each event, ``block_bytes`` for each storage.

    ``options`` None plays the CPU. At the first storage that does not fit ``exhausted`` is set and the replay stays there.
    """

    def __init__(self, trace: Trace, options: AllocatorOptions | None) -> None:
        self.allocated_bytes, self.reserved_bytes, self.block_bytes = array("q"), array("q"), array("q")
        self.runs: list[PhaseRun] = []
        self.exhausted: Exhausted | None = None
        self._trace = trace
        self._allocator: Allocator = LiveBytes() if options is None else CachingAllocator(options)
        self._boundaries = 0
        self._run = PhaseRun("", 0, 0, None, 0, -1, 0)

    def advance(self) -> None:
        """Go on to the end of the trace as it is now."""
        if self.exhausted is not None:
            return
        try:
            for boundary in self._trace.boundaries[self._boundaries :]:
                self._advance_to(boundary.event)
                self._cross(boundary)
                self._boundaries += 1
            self._advance_to(len(self._trace.events))
        except OutOfMemoryError as error:
            self.exhausted = Exhausted(len(self.allocated_bytes), self._run.name, error.report)

    def alive_at(self, event: int) -> np.ndarray:
        """The rows of the storages that live after an event."""
        rows = len(self.block_bytes)
        born, died = np.array(self._trace.born[:rows]), np.array(self._trace.died[:rows])
        return np.flatnonzero((born <= event) & (died > event))

    def components_at(self, event: int) -> Mapping[str, int]:
        """Bytes of each component after an event; they add up to ``allocated_bytes``."""
        rows = self.alive_at(event)
        components = np.array(self._trace.component)[rows]
        sizes = np.array(self.block_bytes)[rows]
        return {self._trace.text(int(index)): int(sizes[components == index].sum()) for index in np.unique(components)}

    def _advance_to(self, end: int) -> None:
        """The inner loop; a trace has up to millions of events."""
        events, sizes, run, allocator = self._trace.events, self._trace.size_bytes, self._run, self._allocator
        allocated, reserved, blocks = self.allocated_bytes, self.reserved_bytes, self.block_bytes
        before = allocator.allocated_bytes
        for index in range(len(allocated), end):
            row = events[index]
            if row >= 0:
                allocator.malloc(row, sizes[row])
                after = allocator.allocated_bytes
                blocks.append(after - before)
                held = allocator.reserved_bytes
                if after > run.allocated_bytes:
                    run.allocated_bytes, run.allocated_event = after, index
                run.reserved_bytes = max(run.reserved_bytes, held)
            else:
                allocator.free(~row)
                after, held = allocator.allocated_bytes, allocator.reserved_bytes
            allocated.append(after)
            reserved.append(held)
            before = after

    def _cross(self, boundary: Boundary) -> None:
        allocator, event = self._allocator, boundary.event
        self._run.end_event = event
        name, step = (boundary.name, boundary.step) if boundary.begins else ("", 0)
        self._run = PhaseRun(name, step, event, None, allocator.allocated_bytes, event - 1, allocator.reserved_bytes)
        if boundary.begins:
            self.runs.append(self._run)
