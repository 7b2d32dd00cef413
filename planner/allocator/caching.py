"""The rules of PyTorch's CUDA caching allocator, on numbers instead of memory.

Source: pytorch c10/cuda/CUDACachingAllocator.cpp (DeviceCachingAllocator). Left out, because nothing here can ask for them:
pools with their own allocator, pools used on out-of-memory or never split, sharing between processes, checkpoints of pools.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from planner.allocator.blocks import Block, BlockPool, PrivatePool, Segment, merge
from planner.allocator.device import Device
from planner.allocator.expandable import ExpandableSegments, best_fit
from planner.allocator.options import AllocatorOptions
from planner.allocator.records import Action, Log, OutOfMemory, OutOfMemoryError
from planner.allocator.sizes import Sizes
from planner.allocator.waits import StreamWaits
from planner.faults import Fault, Faults


class CachingAllocator:
    """One device's allocator. Storages are named by the caller's ids.

    ``allocated_bytes``, ``active_bytes`` (allocated, or awaiting another stream), ``reserved_bytes`` and ``requested_bytes``
    are torch.cuda.memory_stats' figures of those names, ``peak_*`` their peaks since :meth:`reset_peaks`.
    ``log`` collects :class:`Action` entries when given. Misuse raises Faults under the name of the event's field.
    """

    def __init__(self, options: AllocatorOptions | None = None, log: list[Action] | None = None) -> None:
        self.options = options or AllocatorOptions()
        self.allocated_bytes = self.active_bytes = self.requested_bytes = 0
        self.peak_allocated_bytes = self.peak_active_bytes = 0
        self._constants = self.options.constants
        self._allowed = self.options.allowed_bytes
        self._expands = self.options.expandable_segments
        self._split_limit = self.options.max_split_size_bytes
        self._collects_garbage = self._allowed is not None and self.options.garbage_collection_threshold > 0.0
        self._sizes = Sizes(self.options)
        self._log = Log(log)
        self._device = Device(self.options)
        self._expandable = ExpandableSegments(self.options, self._device, self._log)
        self._small = BlockPool(is_small=True)
        self._large = BlockPool(is_small=False)
        self._private: dict[int, PrivatePool] = {}
        self._captures: list[int] = []
        self._live: dict[int, Block | None] = {}
        self._waits = StreamWaits(self._free_block)

    @property
    def reserved_bytes(self) -> int:
        """What the driver has given."""
        return self._device.reserved_bytes

    @property
    def peak_reserved_bytes(self) -> int:
        """The most it had given since :meth:`reset_peaks`."""
        return self._device.peak_reserved_bytes

    # -- what a program does

    def malloc(self, storage: int, size_bytes: int, stream: int = 0, pool: int = 0) -> None:
        """Allocate a storage. Raises OutOfMemoryError when every way of the retry chain failed."""
        if storage in self._live:
            raise Faults([Fault("id", f"{storage} is already allocated; free it first")])
        if size_bytes <= 0:
            self._malloc_nothing(storage, size_bytes)
            return
        if self._waits.blocks and not self._captures:  # events cannot be asked during a capture
            self._waits.process()
        size = self._sizes.block_bytes(size_bytes)
        block_pool = self._pool_for(size, pool)
        block = self._find_free(block_pool, size, stream) or self._grow(block_pool, size, stream)
        if block is None:
            raise OutOfMemoryError(self._report(size_bytes, size, stream, pool))
        self._hand_out(block, storage, size, size_bytes)

    def free(self, storage: int) -> None:
        """Free a storage; its block waits for the streams recorded on it."""
        if storage not in self._live:
            raise Faults([Fault("id", f"{storage} is not allocated")])
        block = self._live.pop(storage)
        if block is None:
            return
        block.allocated = False
        self.allocated_bytes -= block.size
        self._log.note("free_requested", block, block.requested_bytes)
        if block.used_by:
            self._waits.add(block, capturing=bool(self._captures))
        else:
            self._free_block(block)

    def record_stream(self, storage: int, stream: int) -> None:
        """Note that another stream uses a storage."""
        if storage not in self._live:
            raise Faults([Fault("id", f"{storage} is not allocated")])
        block = self._live[storage]
        if block is None or block.stream == stream:
            return
        block.used_by = (block.used_by or set()) | {stream}
        if self._captures:
            block.capture_streams = (block.capture_streams or set()) | {stream}

    def synchronize(self, stream: int | None = None) -> None:
        """Let a stream (None: all) finish its work. The blocks that waited for it are cached at the next allocation."""
        self._waits.synchronize(stream)

    def empty_cache(self) -> None:
        """Give every cached segment that holds no storage back to the driver."""
        self._release_cached()

    def begin_pool(self, pool: int) -> None:
        """Begin allocating from a private pool, made at its first use."""
        if pool in self._captures or pool == 0:
            raise Faults([Fault("pool", f"{pool} is the device's own" if pool == 0 else f"{pool} is already begun")])
        private = self._private.setdefault(pool, PrivatePool(pool))
        if private.users == 0 and private.reserved_bytes:
            raise Faults([Fault("pool", f"{pool} was released and still holds memory; take another number")])
        private.users += 1
        self._captures.append(pool)

    def end_pool(self, pool: int) -> None:
        """Stop allocating from a private pool."""
        if pool not in self._captures:
            raise Faults([Fault("pool", f"{pool} is not begun")])
        self._captures.remove(pool)

    def release_pool(self, pool: int) -> None:
        """One user of a private pool is gone."""
        private = self._private.get(pool)
        if private is None or private.users == 0:
            raise Faults([Fault("pool", f"{pool} has no user")])
        private.users -= 1

    def reset_peaks(self) -> None:
        """Let the peaks start from what is held now."""
        self.peak_allocated_bytes = self.allocated_bytes
        self.peak_active_bytes = self.active_bytes
        self._device.peak_reserved_bytes = self._device.reserved_bytes

    # -- allocation

    def _malloc_nothing(self, storage: int, size_bytes: int) -> None:
        if size_bytes < 0:
            raise Faults([Fault("size_bytes", f"must be at least 0, got {size_bytes}")])
        self._live[storage] = None

    def _pool_for(self, size: int, pool: int) -> BlockPool:
        small = self._sizes.is_small(size)
        if pool == 0:
            return self._small if small else self._large
        if pool not in self._captures:
            raise Faults([Fault("pool", f"{pool} is not begun; begin it before allocating from it")])
        private = self._private[pool]
        return private.small if small else private.large

    def _find_free(self, pool: BlockPool, size: int, stream: int) -> Block | None:
        """The best fit among the stream's cached blocks, taken out of the cache."""
        if self._collects_garbage:
            pool.lookups += 1
        blocks = pool.free_of(stream)
        index = bisect_left(blocks, (size,))
        if index == len(blocks):
            return None
        if self._expands:
            index = best_fit(blocks, index)
        found, limit = blocks[index][0], self._split_limit
        if limit is not None:
            if size < limit <= found:
                return None
            if size >= limit and found >= size + self.options.max_non_split_rounding_bytes:
                return None
        block = blocks[index][2]
        del blocks[index]
        return block

    def _hand_out(self, block: Block, storage: int, size: int, requested_bytes: int) -> None:
        if block.size != size and self._should_split(block, size):
            block = self._split(block, size)
        block.allocated = True
        block.id = storage
        block.requested_bytes = requested_bytes
        self._live[storage] = block
        self.requested_bytes += requested_bytes
        self.allocated_bytes += block.size
        self.active_bytes += block.size
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)
        self.peak_active_bytes = max(self.peak_active_bytes, self.active_bytes)
        self._log.note("alloc", block, requested_bytes)

    def _should_split(self, block: Block, size: int) -> bool:
        rest = block.size - size
        if block.pool.is_small or self._expands:
            return rest >= self._constants.min_block_bytes
        limit = self._split_limit
        return (limit is None or size < limit) and rest > self._constants.small_request_bytes

    def _split(self, rest: Block, size: int) -> Block:
        """Cut ``size`` bytes off the front of ``rest``, whose remainder is cached."""
        block = Block(rest.address, size, rest.stream, rest.pool, rest.segment)
        block.link_after(rest.prev, rest)
        rest.address += size
        rest.size -= size
        rest.pool.insert(rest)
        return block

    # -- the retry chain on a miss

    def _grow(self, pool: BlockPool, size: int, stream: int) -> Block | None:
        if self._collects_garbage:
            self._collect_garbage()
        block = self._new_segment(pool, size, stream)
        if block is None and self._release_oversize(pool, size, stream):
            block = self._new_segment(pool, size, stream)
        if block is None and not self._captures:
            self._release_cached()
            block = self._new_segment(pool, size, stream)
        return block

    def _new_segment(self, pool: BlockPool, size: int, stream: int) -> Block | None:
        asked = self._sizes.segment_bytes(size)
        if not self._device.allows(asked):
            return None
        if self._expands:
            return self._expandable.allocate(pool, size, stream)
        if not self._device.has(asked):
            return None
        address = self._device.addresses(asked)
        block = Block(address, asked, stream, pool, Segment(address, asked))
        self._device.reserve(pool, asked)
        self._log.note("segment_alloc", block, asked)
        return block

    def _collect_garbage(self) -> None:
        """Give back unsplit large blocks at or above the mean age, until below the threshold or none is left."""
        threshold = int(self.options.garbage_collection_threshold * float(self._allowed or 0))
        excess = self.reserved_bytes - threshold
        if excess <= 0:
            return
        candidates = [block for block in self._large.free_blocks() if not block.is_split]
        while excess > 0 and candidates:
            ages = [self._large.lookups - block.age_base for block in candidates]
            mean = sum(ages) / len(ages)
            for block, age in zip(candidates, ages, strict=True):
                if age >= mean:
                    excess -= block.size
                    self._release(block)
            candidates = [block for block, age in zip(candidates, ages, strict=True) if age < mean]

    def _release_oversize(self, pool: BlockPool, size: int, stream: int) -> bool:
        """Give back the one oversize block that is large enough, else the largest ones; whether that was enough."""
        limit = self._split_limit
        if limit is None or self._expands:
            return False
        wanted = max(size, limit)
        blocks = pool.free_of(stream)
        index = bisect_left(blocks, (wanted,))
        if index < len(blocks):
            self._release(blocks[index][2])
            return True
        released = 0
        while released < wanted and blocks and blocks[-1][0] >= limit:
            released += blocks[-1][0]
            self._release(blocks[-1][2])
        return released >= wanted

    def _release_cached(self) -> None:
        """Give back whole cached segments, and whole pages of expandable ones."""
        if not self._captures:
            self._waits.wait()
            self._release_pool_blocks(self._large)
            self._release_pool_blocks(self._small)
        for private in [each for each in self._private.values() if each.users == 0]:
            self._release_pool_blocks(private.small)
            self._release_pool_blocks(private.large)
            if private.reserved_bytes == 0:
                del self._private[private.id]

    def _release_pool_blocks(self, pool: BlockPool) -> None:
        for block in tuple(pool.free_blocks()):
            if block.segment.page_bytes:
                self._expandable.unmap(block)
            elif not block.is_split:
                self._release(block)

    def _release(self, block: Block) -> None:
        block.pool.remove(block)
        self._device.unreserve(block.pool, block.size)
        self._log.note("segment_free", block, block.size)

    def _report(self, requested_bytes: int, size: int, stream: int, pool: int) -> OutOfMemory:
        free = self._device.free_bytes
        self._log.note_out_of_memory(free, size, stream, pool)
        pools = [half for private in self._private.values() for half in (private.small, private.large)]
        cached = sum(block.size for each in pools for block in each.free_blocks())
        return OutOfMemory(
            requested_bytes=requested_bytes,
            tried_bytes=self._sizes.segment_bytes(size),
            capacity_bytes=self.options.capacity_bytes or 0,
            free_bytes=free,
            allowed_bytes=self._allowed,
            allocated_bytes=self.allocated_bytes,
            private_pool_bytes=cached,
            unallocated_bytes=self.reserved_bytes - self.allocated_bytes - cached,
        )

    # -- free

    def _free_block(self, block: Block) -> None:
        self._log.note("free_completed", block, block.requested_bytes)
        self.active_bytes -= block.size
        self.requested_bytes -= block.requested_bytes
        block.id = None
        for neighbour in (block.prev, block.next):
            if neighbour is not None and not neighbour.allocated:
                merge(block, neighbour)
        block.pool.insert(block)

    # -- what it holds

    def blocks(self) -> Iterator[Block]:
        """Every block with memory behind it, in no order."""
        pools = [self._small, self._large]
        for private in self._private.values():
            pools += [private.small, private.large]
        for pool in pools:
            yield from pool.free_blocks()
        yield from (block for block in self._live.values() if block is not None)
        yield from self._waits.blocks.values()
