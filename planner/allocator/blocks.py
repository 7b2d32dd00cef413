"""Blocks of device memory and the pools that cache the free ones."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator


class Block:
    """A stretch of a segment: handed out, awaiting other streams, free, or (expandable segments) not mapped.

    ``prev`` and ``next`` are its neighbours within the segment.
    """

    __slots__ = (
        "address",
        "age_base",
        "allocated",
        "capture_streams",
        "id",
        "mapped",
        "next",
        "pending_streams",
        "pool",
        "prev",
        "requested_bytes",
        "segment",
        "size",
        "stream",
        "used_by",
    )

    def __init__(self, address: int, size: int, stream: int, pool: BlockPool, segment: Segment) -> None:
        self.address = address
        self.size = size
        self.stream = stream
        self.pool = pool
        self.segment = segment
        self.prev: Block | None = None
        self.next: Block | None = None
        self.allocated = False
        self.mapped = True
        self.requested_bytes = 0
        self.id: int | None = None
        self.age_base = 0  # the pool's lookups when the block became free
        self.used_by: set[int] | None = None  # other streams recorded on it
        self.capture_streams: set[int] | None = None  # those recorded during a capture
        self.pending_streams = 0  # streams that it still waits for after its free

    @property
    def is_split(self) -> bool:
        """Whether the segment holds other blocks too."""
        return self.prev is not None or self.next is not None

    @property
    def reusable(self) -> bool:
        """Free, and no stream works on it any more."""
        return not self.allocated and self.pending_streams == 0 and not self.used_by

    def link_after(self, before: Block | None, after: Block | None) -> None:
        """Take the place between two neighbours."""
        self.prev, self.next = before, after
        if before is not None:
            before.next = self
        if after is not None:
            after.prev = self


class Segment:
    """What one driver call gave: a cudaMalloc, or an address range of which pages are mapped (``page_bytes`` not 0)."""

    __slots__ = ("address", "page_bytes", "size")

    def __init__(self, address: int, size: int, page_bytes: int = 0) -> None:
        self.address = address
        self.size = size
        self.page_bytes = page_bytes

    def whole_pages(self, block: Block) -> tuple[int, int]:
        """Address and bytes of the pages that lie wholly within ``block``; no bytes when there is none."""
        page = self.page_bytes
        start = -(-(block.address - self.address) // page) * page
        end = (block.address + block.size - self.address) // page * page
        return self.address + start, max(0, end - start)


class BlockPool:
    """Cached blocks for small or for large requests, by stream, in the order of the best fit: size, then address."""

    __slots__ = ("_free", "_unmapped", "is_small", "lookups", "owner")

    def __init__(self, *, is_small: bool, owner: PrivatePool | None = None) -> None:
        self.is_small = is_small
        self.owner = owner
        self.lookups = 0
        self._free: dict[int, list[tuple[int, int, Block]]] = {}
        self._unmapped: dict[int, list[tuple[int, Block]]] = {}

    def free_of(self, stream: int) -> list[tuple[int, int, Block]]:
        """The stream's free blocks as (size, address, block), sorted. The caller may delete entries that it hands out."""
        found = self._free.get(stream)
        if found is None:
            found = self._free[stream] = []
        return found

    def insert(self, block: Block) -> None:
        """Cache a free block; its age counts from here."""
        block.age_base = self.lookups
        insort(self.free_of(block.stream), (block.size, block.address, block))

    def remove(self, block: Block) -> None:
        """Take a block out of the cache."""
        blocks = self._free[block.stream]
        del blocks[bisect_left(blocks, (block.size, block.address))]

    def free_blocks(self) -> Iterator[Block]:
        """All cached blocks, by stream, size and address. The cache may change meanwhile."""
        for stream in sorted(self._free):
            for _, _, block in tuple(self._free[stream]):
                yield block

    def unmapped_of(self, stream: int) -> list[tuple[int, Block]]:
        """The stream's unmapped stretches as (address, block), lowest address first."""
        return self._unmapped.get(stream, [])

    def insert_unmapped(self, block: Block) -> None:
        """Note a stretch of addresses with nothing behind it."""
        insort(self._unmapped.setdefault(block.stream, []), (block.address, block))

    def remove_unmapped(self, block: Block) -> None:
        """Forget an unmapped stretch."""
        blocks = self._unmapped[block.stream]
        del blocks[bisect_left(blocks, (block.address,))]


class PrivatePool:
    """Memory set aside for CUDA graphs. ``users`` counts live graphs, ``reserved_bytes`` what it holds."""

    __slots__ = ("id", "large", "reserved_bytes", "small", "users")

    def __init__(self, pool_id: int) -> None:
        self.id = pool_id
        self.users = 0
        self.reserved_bytes = 0
        self.small = BlockPool(is_small=True, owner=self)
        self.large = BlockPool(is_small=False, owner=self)


def merge(block: Block, neighbour: Block | None) -> None:
    """Let ``block`` take in a neighbour in the same state: both free, or both unmapped. ``block`` is in no pool's list."""
    if neighbour is None or neighbour.allocated or neighbour.mapped != block.mapped or not neighbour.reusable:
        return
    if neighbour.mapped:
        block.pool.remove(neighbour)
    else:
        block.pool.remove_unmapped(neighbour)
    if neighbour is block.prev:
        block.address = neighbour.address
        block.link_after(neighbour.prev, block.next)
    else:
        block.link_after(block.prev, neighbour.next)
    block.size += neighbour.size
