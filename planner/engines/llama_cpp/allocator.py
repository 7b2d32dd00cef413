"""ggml's graph allocator: a best-fit free list per buffer, walked in node order; a buffer is as large as its highest address.

Source: ggml ``ggml-alloc.c`` (0.25.3): leaves first, then each node takes over a source's memory where it may, or the
smallest free block that fits; a source is freed after its last use.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.engines.llama_cpp.graph import IN_PLACE, Tensor

ENDLESS = 1 << 62


class FreeList:
    """The free blocks of one buffer by address; the last one is endless. ``peak``: the highest address handed out."""

    __slots__ = ("alignment", "peak", "sizes", "starts")

    def __init__(self, alignment: int) -> None:
        self.alignment = alignment
        self.starts, self.sizes = [0], [ENDLESS]
        self.peak = 0

    def take(self, size_bytes: int) -> int:
        """The address of a new block: in the smallest hole that fits (the later of equals), else at the end."""
        size = -(-size_bytes // self.alignment) * self.alignment
        sizes = self.sizes
        best, best_size = len(sizes) - 1, ENDLESS
        for index in range(best):
            if size <= sizes[index] <= best_size:
                best, best_size = index, sizes[index]
        start = self.starts[best]
        self.starts[best] += size
        sizes[best] -= size
        if not sizes[best]:
            del self.starts[best], sizes[best]
        self.peak = max(self.peak, start + size)
        return start

    def give(self, start: int, size_bytes: int) -> None:
        """Return a block; it grows together with its neighbours."""
        size = -(-size_bytes // self.alignment) * self.alignment
        starts, sizes = self.starts, self.sizes
        for index in range(len(starts)):
            if starts[index] + sizes[index] == start:
                sizes[index] += size
                if index + 1 < len(starts) and starts[index] + sizes[index] == starts[index + 1]:
                    sizes[index] += sizes[index + 1]
                    del starts[index + 1], sizes[index + 1]
                return
            if start + size == starts[index]:
                starts[index], sizes[index] = start, sizes[index] + size
                if index and starts[index - 1] + sizes[index - 1] == start:
                    sizes[index - 1] += sizes[index]
                    del starts[index], sizes[index]
                return
        place = next((index for index, other in enumerate(starts) if other >= start), len(starts))
        starts.insert(place, start)
        sizes.insert(place, size)


def buffer_bytes(nodes: Sequence[Tensor], leaves: Sequence[Tensor], alignments: Sequence[int]) -> tuple[int, ...]:
    """The size of each device's compute buffer for a graph whose tensors know their device. A graph is walked once.

    ``alignments``: bytes that addresses are a multiple of, one for each device.
    """
    lists = [FreeList(alignment) for alignment in alignments]
    for leaf in leaves:
        _place(leaf, lists)
    for node in nodes:
        if node.root is not None and node.op != "none":
            node.root.views += 1
        if node.is_input:
            _place(node, lists)
        for source in node.sources:
            source.children += 1
            if source.is_input:
                _place(source, lists)
    for node in nodes:
        _place(node, lists)
        for source in node.sources:
            _release(source, lists)
    return tuple(found.peak for found in lists)


def _place(tensor: Tensor, lists: Sequence[FreeList]) -> None:
    """Give a tensor its address, a source's when the operation works in place and nobody else needs the source."""
    if tensor.owned or tensor.external or tensor.root is not None:
        return
    tensor.owned = True
    if tensor.op in IN_PLACE:
        for source in tensor.sources:
            if source.owned and not source.is_output and source.children == 1 and not source.views and _same_layout(tensor, source):
                tensor.device, tensor.place, source.owned = source.device, source.place, False
                return
    tensor.place = lists[tensor.device or 0].take(tensor.size_bytes)


def _same_layout(first: Tensor, second: Tensor) -> bool:
    return first.ne == second.ne and first.element_bytes == second.element_bytes


def _release(source: Tensor, lists: Sequence[FreeList]) -> None:
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
    if holder.owned and not holder.is_output:
        lists[holder.device or 0].give(holder.place, holder.size_bytes)
        holder.owned = False
