"""ggml's graph allocator: a best-fit free list per buffer, walked in node order; a buffer is as large as its highest address.

Source: ggml ``ggml-alloc.c`` (0.25.3): leaves first, then each node takes over a source's memory where it may, or the
smallest free block that fits; a source is freed after its last use. Who takes over what, and when memory is freed, follows
from the graph alone: it is written down once as a tape, piece by piece, and equal layers play one piece.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from planner.engines.llama_cpp.graph import IN_PLACE, Tensor

ENDLESS = 1 << 62
GIVE = -1


class FreeList:
    """The free blocks of one buffer by address; the last one is endless. ``peak``: the highest address handed out."""

    __slots__ = ("alignment", "peak", "sizes", "starts")

    def __init__(self, alignment: int) -> None:
        self.alignment = alignment
        self.starts: list[Any] = [0]
        self.sizes: list[Any] = [ENDLESS]
        self.peak: Any = 0

    def take(self, size_bytes: Any) -> Any:
        """The address of a new block: in the smallest hole that fits (the later of equals), else at the end."""
        size = -(-size_bytes // self.alignment) * self.alignment
        sizes = self.sizes
        last = best = len(sizes) - 1
        best_size: Any = ENDLESS
        for index in range(last):
            if size <= sizes[index] <= best_size:
                best, best_size = index, sizes[index]
        start = self.starts[best]
        self.starts[best] += size
        sizes[best] -= size
        if not sizes[best]:
            del self.starts[best], sizes[best]
        self.peak = max(self.peak, start + size)
        return start

    def give(self, start: Any, size_bytes: Any) -> None:
        """Return a block; it grows together with its neighbours."""
        size = -(-size_bytes // self.alignment) * self.alignment
        starts, sizes = self.starts, self.sizes
        for index, begin in enumerate(starts):
            if begin + sizes[index] == start:
                sizes[index] += size
                if index + 1 < len(starts) and start + size == starts[index + 1]:
                    sizes[index] += sizes[index + 1]
                    del starts[index + 1], sizes[index + 1]
                return
            if start + size == begin:
                starts[index], sizes[index] = start, sizes[index] + size
                if index and starts[index - 1] + sizes[index - 1] == start:
                    sizes[index - 1] += sizes[index]
                    del starts[index], sizes[index]
                return
        place = next((index for index, begin in enumerate(starts) if begin >= start), len(starts))
        starts.insert(place, start)
        sizes.insert(place, size)


Event = tuple[int, int, int]
"""(slot, bytes, device): the slot's memory is taken; or (slot, GIVE, device): it is given back."""


@dataclass(slots=True)
class Piece:
    """The events of one layer, and the slots (inputs apart) that are alive when it begins and when it ends."""

    events: list[Event] = field(default_factory=list)
    entry: tuple[int, ...] = ()
    exit: tuple[int, ...] = ()


class Tape:
    """Writes the events of a graph whose tensors know their device."""

    def __init__(self, nodes: Sequence[Tensor], leaves: Sequence[Tensor], marks: Sequence[int]) -> None:
        self.pieces = [Piece()]
        self._events = self.pieces[0].events
        self.sizes: list[int] = []
        self._passing: dict[int, None] = {}
        self._inputs(nodes, leaves)
        begins = Counter(marks)
        for index, node in enumerate(nodes):
            for _ in range(begins[index]):
                self._turn_page()
            self._place(node)
            for source in node.sources:
                self._release(source)

    def _inputs(self, nodes: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
        """Leaves and explicit inputs come first, while uses are counted."""
        for leaf in leaves:
            self._place(leaf)
        for node in nodes:
            if node.root is not None and node.op != "none":
                node.root.views += 1
            if node.is_input:
                self._place(node)
            for source in node.sources:
                source.children += 1
                if source.is_input:
                    self._place(source)

    def _turn_page(self) -> None:
        passing = tuple(self._passing)
        self.pieces[-1].exit = passing
        self.pieces.append(Piece(entry=passing))
        self._events = self.pieces[-1].events

    def _place(self, tensor: Tensor) -> None:
        """A tensor gets a slot: a source's when the operation works in place and nobody else needs the source."""
        if tensor.lives or tensor.external or tensor.root is not None:
            return
        tensor.lives = True
        if tensor.op in IN_PLACE:
            for source in tensor.sources:
                if (
                    source.lives
                    and not source.is_output
                    and source.children == 1
                    and not source.views
                    and _same_layout(tensor, source)
                ):
                    tensor.device, tensor.slot, source.lives = source.device, source.slot, False
                    return
        tensor.slot = len(self.sizes)
        self.sizes.append(tensor.size_bytes)
        self._events.append((tensor.slot, tensor.size_bytes, tensor.device or 0))
        if not tensor.lasting and (tensor.children or tensor.views):  # what nothing reads is never given back
            self._passing[tensor.slot] = None

    def _release(self, source: Tensor) -> None:
        """One use less; after the last one the memory is free. A view's last use is one view less of what it shows."""
        source.children -= 1
        if source.children or source.views:
            return
        holder = source
        if source.root is not None:
            holder = source.root
            holder.views -= 1
            if holder.views or holder.children:
                return
        if holder.lives and not holder.is_output:
            self._events.append((holder.slot, GIVE, holder.device or 0))
            holder.lives = False
            self._passing.pop(holder.slot, None)


def _same_layout(first: Tensor, second: Tensor) -> bool:
    return first.ne == second.ne and first.element_bytes == second.element_bytes


State = tuple[tuple[tuple[Any, ...], tuple[Any, ...]], ...]


def played(tape: Tape, order: Sequence[int], alignments: Sequence[int], sizes: Sequence[Any] | None = None) -> tuple[Any, ...]:
    """The size of each device's compute buffer after playing the tape's pieces in ``order``.

    ``alignments``: bytes that addresses are a multiple of, one for each device. ``sizes``: those of the slots, where they are
    :class:`~planner.engines.llama_cpp.course.Line` instead of the tape's own. A piece that begins in a state it has begun in
    before ends as it did then.
    """
    lists = [FreeList(alignment) for alignment in alignments]
    places: dict[int, Any] = {}
    passing: tuple[Any, ...] = ()
    known: dict[object, tuple[State, tuple[Any, ...]]] = {}
    for number in order:
        piece = tape.pieces[number]
        state = _state(lists)
        key = (number, state, passing) if sizes is None else (number, repr((state, passing)))
        found = known.get(key)
        if found is None:
            places.update(zip(piece.entry, passing, strict=True))
            _play(piece.events, tape.sizes if sizes is None else sizes, places, lists)
            passing = tuple(places[slot] for slot in piece.exit)
            known[key] = _state(lists), passing
        else:
            state, passing = found
            for free, (starts, holes) in zip(lists, state, strict=True):
                free.starts, free.sizes = list(starts), list(holes)
    return tuple(free.peak for free in lists)


def _play(events: Sequence[Event], sizes: Sequence[Any], places: dict[int, Any], lists: Sequence[FreeList]) -> None:
    for slot, size, device in events:
        if size == GIVE:
            lists[device].give(places[slot], sizes[slot])
        else:
            places[slot] = lists[device].take(sizes[slot])


def _state(lists: Sequence[FreeList]) -> State:
    return tuple((tuple(free.starts), tuple(free.sizes)) for free in lists)
