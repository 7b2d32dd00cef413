"""Expandable segments: one address range per stream and pool, behind which pages are mapped and unmapped."""

from __future__ import annotations

from planner.allocator.blocks import Block, BlockPool, Segment, merge
from planner.allocator.device import Device
from planner.allocator.options import AllocatorOptions
from planner.allocator.records import Log


class ExpandableSegments:
    """Maps and unmaps pages: 2 MiB each in small pools, ``large_segment_bytes`` in large ones."""

    def __init__(self, options: AllocatorOptions, device: Device, log: Log) -> None:
        self._small_page_bytes = options.constants.small_segment_bytes
        self._large_page_bytes = options.large_segment_bytes
        self._device = device
        self._log = log

    def allocate(self, pool: BlockPool, size: int, stream: int) -> Block | None:
        """A block of at least ``size``, out of the cache, at the lowest address where it fits; None when the driver is out.

        Pages are mapped in unmapped stretches together with the free blocks between them. When the driver runs out half
        way, what it gave stays cached.
        """
        block = self._room(pool, size, stream)
        if not block.mapped and not self._map(block, min(block.size, size)):
            return None
        while block.size < size:
            behind = block.next
            if behind is None or not self._map(behind, min(behind.size, size - block.size)):
                return None
            block = behind
        pool.remove(block)
        return block

    def unmap(self, block: Block) -> None:
        """Give back the whole pages within a free block; what is left before and after them stays cached."""
        address, size = block.segment.whole_pages(block)
        if size == 0:
            return
        pool, end = block.pool, block.address + block.size
        pool.remove(block)
        if address > block.address:
            _piece(block, block.address, address - block.address).link_after(block.prev, block)
        if end > address + size:
            _piece(block, address + size, end - address - size).link_after(block, block.next)
        block.address, block.size, block.mapped = address, size, False
        merge(block, block.prev)
        merge(block, block.next)
        if block.is_split:  # else the whole range is unmapped, and dropped
            pool.insert_unmapped(block)
        self._device.unreserve(pool, size)
        self._log.note("segment_unmap", block, size, address)

    def _room(self, pool: BlockPool, size: int, stream: int) -> Block:
        """The lowest free or unmapped block from which ``size`` addresses can be had in a row."""
        for _, block in pool.unmapped_of(stream):
            first = block.prev if block.prev is not None and block.prev.reusable else block
            if _reaches(first, size):
                return first
        return self._new_range(pool, size, stream)

    def _new_range(self, pool: BlockPool, size: int, stream: int) -> Block:
        page = self._small_page_bytes if pool.is_small else self._large_page_bytes
        room = max(-(-self._device.address_range_bytes(size) // page), 1) * page
        address = self._device.addresses(room)
        block = Block(address, room, stream, pool, Segment(address, room, page))
        block.mapped = False
        pool.insert_unmapped(block)
        return block

    def _map(self, block: Block, size: int) -> bool:
        page = block.segment.page_bytes
        mapped = -(-size // page) * page
        if not self._device.has(mapped):
            return False
        pool, address = block.pool, block.address
        pool.remove_unmapped(block)
        block.mapped = True
        if mapped < block.size:
            rest = Block(address + mapped, block.size - mapped, block.stream, pool, block.segment)
            rest.mapped = False
            rest.link_after(block, block.next)
            block.size = mapped
            pool.insert_unmapped(rest)
        merge(block, block.prev)
        merge(block, block.next)
        pool.insert(block)
        self._device.reserve(pool, mapped)
        self._log.note("segment_map", block, mapped, address)
        return True


def best_fit(blocks: list[tuple[int, int, Block]], index: int) -> int:
    """From the smallest sufficient block on, while the next one could grow to less.

    A block counts with what can be mapped right behind it, so that the end of a range is spared for what needs it.
    """
    while index + 1 < len(blocks) and _expanded(blocks[index + 1][2]) < _expanded(blocks[index][2]):
        index += 1
    return index


def _expanded(block: Block) -> int:
    behind = block.next
    return block.size + (behind.size if behind is not None and not behind.mapped else 0)


def _reaches(block: Block | None, size: int) -> bool:
    found = 0
    while found < size and block is not None and block.reusable:
        found += block.size
        block = block.next
    return found >= size


def _piece(of: Block, address: int, size: int) -> Block:
    piece = Block(address, size, of.stream, of.pool, of.segment)
    of.pool.insert(piece)
    return piece
