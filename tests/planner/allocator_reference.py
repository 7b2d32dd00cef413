"""A slow allocator written from the rules alone: no lists of blocks, no links, no merging.

A segment knows the storages in it; its free blocks are the gaps between them, found anew each time they are needed (a free
block always takes in its free neighbours, so a gap is a block). Everything is a scan.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from planner.allocator import AllocatorOptions

KIB, MIB = 2**10, 2**20
FIRST_ADDRESS = 0x7F0000000000


@dataclass
class Held:
    """A storage, or a freed one that streams still use."""

    address: int
    size: int
    requested: int
    stream: int
    live: bool = True
    used_by: set[int] = field(default_factory=set)
    captured: set[int] = field(default_factory=set)
    waits: dict[int, int] = field(default_factory=dict)
    deferred: bool = False


@dataclass
class Range:
    """A segment (``page`` 0, wholly mapped) or an address range with pages mapped behind it."""

    address: int
    size: int
    stream: int
    pool: int
    small: bool
    page: int = 0
    pages: set[int] = field(default_factory=set)
    held: list[Held] = field(default_factory=list)
    freed_at: int = 0

    def extents(self) -> list[tuple[int, int, str]]:
        """(address, size, "held" | "free" | "unmapped") in order, covering the range."""
        found: list[tuple[int, int, str]] = []
        at = self.address
        for held in sorted(self.held, key=lambda each: each.address):
            found += self._gap(at, held.address)
            found.append((held.address, held.size, "held"))
            at = held.address + held.size
        return found + self._gap(at, self.address + self.size)

    def _gap(self, start: int, end: int) -> list[tuple[int, int, str]]:
        if start == end:
            return []
        if not self.page:
            return [(start, end - start, "free")]
        runs: list[tuple[int, int, str]] = []
        at = start
        while at < end:
            page = (at - self.address) // self.page
            upto = min(end, self.address + (page + 1) * self.page)
            kind = "free" if page in self.pages else "unmapped"
            if not self.pages or page > max(self.pages):
                upto = end
            if runs and runs[-1][2] == kind:
                runs[-1] = (runs[-1][0], runs[-1][1] + upto - at, kind)
            else:
                runs.append((at, upto - at, kind))
            at = upto
        return runs

    def mapped(self) -> int:
        return len(self.pages) * self.page if self.page else self.size


@dataclass(frozen=True)
class Failure:
    tried: int
    free: int
    allocated: int
    private: int
    unallocated: int


class ReferenceAllocator:
    def __init__(self, options: AllocatorOptions) -> None:
        self.options = options
        self.ranges: list[Range] = []
        self.ids: dict[int, tuple[Range, Held] | None] = {}
        self.captures: list[int] = []
        self.users: dict[int, int] = {}
        self.syncs: dict[int, int] = {}
        self.lookups: dict[tuple[int, bool], int] = {}
        self.next_address = FIRST_ADDRESS

    # figures

    @property
    def reserved(self) -> int:
        return sum(each.mapped() for each in self.ranges)

    @property
    def allocated(self) -> int:
        return sum(held.size for each in self.ranges for held in each.held if held.live)

    @property
    def active(self) -> int:
        return sum(held.size for each in self.ranges for held in each.held)

    @property
    def requested(self) -> int:
        return sum(held.requested for each in self.ranges for held in each.held)

    def blocks(self) -> set[tuple[int, int, str, int, int, bool]]:
        found = set()
        for each in self.ranges:
            waiting = {held.address for held in each.held if not held.live}
            for address, size, kind in each.extents():
                if kind != "unmapped":
                    state = "inactive" if kind == "free" else "active_awaiting_free" if address in waiting else "active_allocated"
                    found.add((address, size, state, each.stream, each.pool, each.small))
        return found

    # sizes

    def rounded(self, size: int) -> int:
        if size < 512:
            return 512
        megabytes = 1
        interval = 0
        while interval < 15 and size >= 2 * megabytes * MIB:
            megabytes *= 2
            interval += 1
        divisions = self.options.roundup_power2_divisions[interval]
        if divisions > 1 and size > 512 * divisions:
            floor = 1
            while floor * 2 <= size:
                floor *= 2
            steps = 0
            while floor + steps * (floor // divisions) < size:
                steps += 1
            return floor + steps * (floor // divisions)
        return (size + 511) // 512 * 512

    def segment_for(self, size: int) -> int:
        if size <= MIB:
            return 2 * MIB
        if size < 10 * MIB:
            return self.options.large_segment_bytes
        return (size + 2 * MIB - 1) // (2 * MIB) * (2 * MIB)

    # the program's side

    def malloc(self, storage: int, requested: int, stream: int, pool: int) -> Failure | None:
        if requested == 0:
            self.ids[storage] = None
            return None
        if not self.captures:
            self.finish_waits(everything=False)
        size = self.rounded(requested)
        small = size <= MIB
        found = self.find(size, stream, pool, small) or self.grow(size, stream, pool, small)
        if found is None:
            return self.failure(size)
        owner, address, available = found
        rest = available - size
        if small or self.options.expandable_segments:
            split = rest >= 512
        else:
            limit = self.options.max_split_size_bytes
            split = rest > MIB and (limit is None or size < limit)
        held = Held(address, size if split else available, requested, stream)
        owner.held.append(held)
        self.ids[storage] = (owner, held)
        return None

    def free(self, storage: int) -> None:
        entry = self.ids.pop(storage)
        if entry is None:
            return
        owner, held = entry
        held.live = False
        if not held.used_by:
            self.drop(owner, held)
        elif self.captures:
            held.deferred = True
        else:
            held.waits = {stream: self.syncs.get(stream, 0) for stream in held.used_by}

    def record_stream(self, storage: int, stream: int) -> None:
        entry = self.ids[storage]
        if entry is not None and entry[1].stream != stream:
            entry[1].used_by.add(stream)
            if self.captures:
                entry[1].captured.add(stream)

    def synchronize(self, stream: int | None) -> None:
        for each in [stream] if stream is not None else range(8):
            self.syncs[each] = self.syncs.get(each, 0) + 1

    def empty_cache(self) -> None:
        self.release_cached()

    # waiting

    def drop(self, owner: Range, held: Held) -> None:
        owner.held.remove(held)
        if not owner.held:
            owner.freed_at = self.lookups.get((owner.pool, owner.small), 0)

    def finish_waits(self, *, everything: bool) -> None:
        for owner in self.ranges:
            for held in [each for each in owner.held if not each.live]:
                if held.deferred:
                    held.deferred = False
                    held.waits = {stream: self.syncs.get(stream, 0) for stream in held.used_by - held.captured}
                if everything or all(self.syncs.get(stream, 0) > count for stream, count in held.waits.items()):
                    self.drop(owner, held)

    # finding room

    def gaps(self, stream: int, pool: int, small: bool) -> list[tuple[int, int, Range, int]]:
        """(size, address, range, what lies unmapped right behind) of the free blocks, best fit first."""
        found = []
        for each in self.ranges:
            if (each.stream, each.pool, each.small) == (stream, pool, small):
                extents = [*each.extents(), (0, 0, "end")]
                for (address, size, kind), (_, behind, next_kind) in pairwise(extents):
                    if kind == "free":
                        found.append((size, address, each, behind if next_kind == "unmapped" else 0))
        return sorted(found, key=lambda gap: gap[:2])

    def counts_lookups(self) -> bool:
        return self.options.allowed_bytes is not None and self.options.garbage_collection_threshold > 0

    def find(self, size: int, stream: int, pool: int, small: bool) -> tuple[Range, int, int] | None:
        if self.counts_lookups():
            self.lookups[pool, small] = self.lookups.get((pool, small), 0) + 1
        fitting = [gap for gap in self.gaps(stream, pool, small) if gap[0] >= size]
        if not fitting:
            return None
        chosen = 0
        if self.options.expandable_segments:
            growable = [gap[0] + gap[3] for gap in fitting]
            while chosen + 1 < len(fitting) and growable[chosen + 1] < growable[chosen]:
                chosen += 1
        available, address, owner, _ = fitting[chosen]
        limit = self.options.max_split_size_bytes
        if limit is not None and size < limit and available >= limit:
            return None
        if limit is not None and size >= limit and available >= size + self.options.max_non_split_rounding_bytes:
            return None
        return owner, address, available

    def grow(self, size: int, stream: int, pool: int, small: bool) -> tuple[Range, int, int] | None:
        if self.counts_lookups():
            self.collect_garbage()
        found = self.take(size, stream, pool, small)
        if found is None and self.release_oversize(size, stream, pool, small):
            found = self.take(size, stream, pool, small)
        if found is None and not self.captures:
            self.release_cached()
            found = self.take(size, stream, pool, small)
        return found

    def driver_free(self) -> int:
        capacity = self.options.capacity_bytes
        return 2**60 if capacity is None else capacity - self.options.outside_bytes - self.reserved

    def take(self, size: int, stream: int, pool: int, small: bool) -> tuple[Range, int, int] | None:
        asked, allowed = self.segment_for(size), self.options.allowed_bytes
        if allowed is not None and self.reserved + asked > allowed:
            return None
        if self.options.expandable_segments:
            return self.map_room(size, stream, pool, small)
        if asked > self.driver_free():
            return None
        segment = Range(self.next_address, asked, stream, pool, small)
        self.next_address += asked
        self.ranges.append(segment)
        return segment, segment.address, asked

    def map_room(self, size: int, stream: int, pool: int, small: bool) -> tuple[Range, int, int] | None:
        owner, start = self.room(size, stream, pool, small)
        while True:
            have, gap = 0, None
            for address, extent, kind in owner.extents():
                if address == start and kind == "free":
                    have = extent
                if address == start + have and kind == "unmapped":
                    gap = extent
            if have >= size:
                return owner, start, have
            assert gap is not None or self.options.capacity_bytes is not None
            pages = -(-min(gap or 0, size - have) // owner.page)
            if pages == 0 or pages * owner.page > self.driver_free():
                return None
            first = (start + have - owner.address) // owner.page
            owner.pages |= set(range(first, first + pages))

    def room(self, size: int, stream: int, pool: int, small: bool) -> tuple[Range, int]:
        for owner in self.ranges:
            if (owner.stream, owner.pool, owner.small) != (stream, pool, small):
                continue
            extents = owner.extents()
            for index, (_, _, kind) in enumerate(extents):
                if kind != "unmapped":
                    continue
                first = index - 1 if index and extents[index - 1][2] == "free" else index
                run = 0
                for _, extent, each in extents[first:]:
                    if each == "held":
                        break
                    run += extent
                if run >= size:
                    return owner, extents[first][0]
        page = 2 * MIB if small else self.options.large_segment_bytes
        capacity = self.options.capacity_bytes
        room = max(2**44, size) if capacity is None else capacity + capacity // 8
        owner = Range(self.next_address, -(-room // page) * page, stream, pool, small, page)
        self.next_address += owner.size
        self.ranges.append(owner)
        return owner, owner.address

    # giving back

    def whole(self, pool: int, small: bool) -> list[Range]:
        """Segments without storages, in the order of the cache: stream, size, address."""
        found = [each for each in self.ranges if not each.page and not each.held and (each.pool, each.small) == (pool, small)]
        return sorted(found, key=lambda each: (each.stream, each.size, each.address))

    def collect_garbage(self) -> None:
        threshold = int(self.options.garbage_collection_threshold * (self.options.allowed_bytes or 0))
        target, reclaimed = self.reserved - threshold, 0
        if target <= 0:
            return
        lookups = self.lookups.get((0, False), 0)
        while reclaimed < target and self.whole(0, False):
            segments = self.whole(0, False)
            mean = sum(lookups - each.freed_at for each in segments) / len(segments)
            for each in segments:
                if lookups - each.freed_at >= mean:
                    reclaimed += each.size
                    self.ranges.remove(each)

    def release_oversize(self, size: int, stream: int, pool: int, small: bool) -> bool:
        limit = self.options.max_split_size_bytes
        if limit is None or self.options.expandable_segments:
            return False
        wanted = max(size, limit)
        oversize = [gap for gap in self.gaps(stream, pool, small) if gap[0] >= limit]
        enough = [gap for gap in oversize if gap[0] >= wanted]
        if enough:
            self.ranges.remove(enough[0][2])
            return True
        released = 0
        for gap in reversed(oversize):
            if released < wanted:
                released += gap[0]
                self.ranges.remove(gap[2])
        return released >= wanted

    def release_cached(self) -> None:
        pools = [pool for pool, users in self.users.items() if users == 0]
        if not self.captures:
            self.finish_waits(everything=True)
            pools.append(0)
        for each in list(self.ranges):
            if each.pool not in pools:
                continue
            if not each.page:
                if not each.held:
                    self.ranges.remove(each)
                continue
            touched = set()
            for held in each.held:
                first = (held.address - each.address) // each.page
                last = (held.address + held.size - 1 - each.address) // each.page
                touched |= set(range(first, last + 1))
            dropped = each.pages - touched
            each.pages &= touched
            if dropped and not each.pages:
                self.ranges.remove(each)

    def failure(self, size: int) -> Failure:
        private = sum(gap_size for each in self.ranges if each.pool for _, gap_size, kind in each.extents() if kind == "free")
        return Failure(
            tried=self.segment_for(size),
            free=max(0, self.driver_free()),
            allocated=self.allocated,
            private=private,
            unallocated=self.reserved - self.allocated - private,
        )
