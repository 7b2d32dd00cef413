"""What an allocator says of itself: its log, and the report of a request that could not be met."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from planner.allocator.blocks import Block
from planner.allocator.options import MIB


class Action(NamedTuple):
    """One entry of the allocator's own log, named as in PyTorch's memory snapshots.

    ``address`` is the free device memory for ``oom``. ``id`` is the storage's, None for segments.
    """

    name: str
    address: int
    size_bytes: int
    stream: int
    pool: int
    id: int | None


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """A request that could not be met, with the numbers that PyTorch's error message states.

    ``tried_bytes`` is the segment it asked the driver for. ``allowed_bytes`` is set by ``memory_fraction``.
    ``private_pool_bytes`` is cached in private pools; ``unallocated_bytes`` is reserved, in no private pool, and in no tensor.
    """

    requested_bytes: int
    tried_bytes: int
    capacity_bytes: int
    free_bytes: int
    allowed_bytes: int | None
    allocated_bytes: int
    private_pool_bytes: int
    unallocated_bytes: int

    def __str__(self) -> str:
        limit = "" if self.allowed_bytes is None else f", {_shown(self.allowed_bytes)} allowed to this process"
        pools = "" if not self.private_pool_bytes else f", {_shown(self.private_pool_bytes)} cached in private pools"
        return (
            f"out of memory: tried to allocate {_shown(self.tried_bytes)}; the GPU has {_shown(self.capacity_bytes)}, of which"
            f" {_shown(self.free_bytes)} is free{limit}; {_shown(self.allocated_bytes)} is allocated{pools},"
            f" {_shown(self.unallocated_bytes)} is reserved but unallocated"
        )


class OutOfMemoryError(Exception):
    """Raised by :meth:`CachingAllocator.malloc`; ``report`` says what was asked and what was there."""

    def __init__(self, report: OutOfMemory) -> None:
        super().__init__(str(report))
        self.report = report


class Log:
    """Collects :class:`Action` entries, or nothing when there is no list to collect them in."""

    __slots__ = ("_entries",)

    def __init__(self, entries: list[Action] | None) -> None:
        self._entries = entries

    def note(self, name: str, block: Block, size: int, address: int | None = None) -> None:
        """One action on a block, of ``size`` bytes from ``address`` (the block's own by default)."""
        if self._entries is not None:
            owner = block.pool.owner
            start = block.address if address is None else address
            self._entries.append(Action(name, start, size, block.stream, owner.id if owner else 0, block.id))

    def note_out_of_memory(self, free_bytes: int, size: int, stream: int, pool: int) -> None:
        """A request failed with ``free_bytes`` left on the device."""
        if self._entries is not None:
            self._entries.append(Action("oom", free_bytes, size, stream, pool, None))


def _shown(size: int) -> str:
    for unit, name in ((2**30, "GiB"), (MIB, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size} B"
