"""The segment map: which stretches of device memory are held, and for what."""

from __future__ import annotations

from dataclasses import dataclass

from planner.allocator.blocks import Block
from planner.allocator.caching import CachingAllocator


@dataclass(frozen=True, slots=True)
class BlockState:
    """A block. ``state`` is ``active_allocated``, ``active_awaiting_free`` or ``inactive``, as PyTorch's snapshots name them.

    ``requested_bytes`` is 0 and ``id`` None for an inactive block.
    """

    address: int
    size_bytes: int
    requested_bytes: int
    state: str
    id: int | None


@dataclass(frozen=True, slots=True)
class SegmentState:
    """Contiguous memory from the driver; ``blocks`` cover it without gaps, in the order of their addresses."""

    address: int
    stream: int
    pool: int
    is_small: bool
    is_expandable: bool
    blocks: tuple[BlockState, ...]

    @property
    def total_bytes(self) -> int:
        """What it reserves."""
        return sum(block.size_bytes for block in self.blocks)

    @property
    def allocated_bytes(self) -> int:
        """What storages hold of it."""
        return sum(block.size_bytes for block in self.blocks if block.state == "active_allocated")

    @property
    def active_bytes(self) -> int:
        """What storages hold, or other streams still use."""
        return sum(block.size_bytes for block in self.blocks if block.state != "inactive")


def segment_map(allocator: CachingAllocator) -> tuple[SegmentState, ...]:
    """Every segment that the allocator holds, by address; an expandable one gives an entry for each mapped stretch."""
    heads = [block for block in allocator.blocks() if block.prev is None or not block.prev.mapped]
    return tuple(_segment(head) for head in sorted(heads, key=lambda block: block.address))


def _segment(head: Block) -> SegmentState:
    blocks = []
    block: Block | None = head
    while block is not None and block.mapped:
        blocks.append(_state(block))
        block = block.next
    owner = head.pool.owner
    return SegmentState(
        address=head.address,
        stream=head.stream,
        pool=owner.id if owner else 0,
        is_small=head.pool.is_small,
        is_expandable=head.segment.page_bytes > 0,
        blocks=tuple(blocks),
    )


def _state(block: Block) -> BlockState:
    if block.reusable:
        return BlockState(block.address, block.size, 0, "inactive", None)
    state = "active_allocated" if block.allocated else "active_awaiting_free"
    return BlockState(block.address, block.size, block.requested_bytes, state, block.id)
