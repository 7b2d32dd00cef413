"""ggml's scheduler: which device computes each node, and what is copied between devices.

Source: ggml ``ggml-backend.cpp`` (``ggml_backend_sched_split_graph``, 0.25.3). Devices are numbered from 0, the host last.
Nodes go where their weights or their cache are; what has neither follows its neighbours, devices before the host. A run
of nodes on one device is a split; what it reads from elsewhere is copied when the split begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from planner.engines.llama_cpp.graph import VIEWS, Graph, Tensor

OFFLOADED_BATCH = 32
"""``GGML_OP_OFFLOAD_MIN_BATCH``, the CUDA backend's default."""
PIPELINE_COPIES = 4
"""``GGML_SCHED_MAX_COPIES``: copies of every input when devices work on several batches at a time."""


@dataclass(slots=True)
class _Split:
    device: int
    start: int
    end: int = 0
    inputs: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A graph ready to be allocated: nodes and leaves with the copies between devices among them."""

    nodes: list[Tensor]
    leaves: list[Tensor]
    marks: list[int]
    """Where each layer and the head begin among the nodes."""


def scheduled(graph: Graph, host: int, *, pipelined: bool = False, offloads: bool = False) -> Schedule:
    """``graph`` spread over devices 0 … ``host`` − 1 and the host.

    ``pipelined``: several devices hold the whole model between them, so inputs are kept four times. ``offloads``: the first
    device computes large batches even where the weights are on the host, and has them copied (``op_offload``).
    """
    _assign(graph, host, offloads=offloads)
    copies = PIPELINE_COPIES if pipelined else 1
    splits = _split(graph.nodes, copies)
    nodes: list[Tensor] = []
    marks: list[int] = []
    for split in splits:
        begin, brought = len(nodes) - split.start, 2 * len(split.inputs)
        inside = (mark for mark in graph.marks if split.start <= mark < split.end)
        marks.extend(begin + mark + (brought if mark > split.start else 0) for mark in inside)
        for source in split.inputs:
            nodes.append(_dependency(source))
            nodes.append(_copy_of(source, split.device))
        nodes.extend(graph.nodes[split.start : split.end])
    return Schedule(nodes, [*(_pipelined_leaves(graph, splits) if pipelined else ()), *graph.leaves], marks)


def _assign(graph: Graph, host: int, *, offloads: bool) -> None:
    """Give every tensor its device: by memory, input, weight; then by neighbours, devices first."""
    for leaf in graph.leaves:
        if leaf.is_input:
            leaf.device = host
    computed = [node for node in graph.nodes if node.op not in VIEWS]
    for node in graph.nodes:
        node.device = _own_device(node, host, offloads=offloads)
    for nodes, devices_only in ((computed, True), (computed[::-1], True), (computed, False), (computed[::-1], False)):
        _spread(nodes, host, devices_only=devices_only)
    for node in graph.nodes:
        if node.device is None and node.root is not None:
            node.device = node.root.device
        for source in node.sources:
            if source.device is None:
                source.device = node.device if source.root is None else source.root.device


def _own_device(node: Tensor, host: int, *, offloads: bool) -> int | None:
    if node.device is not None:
        return node.device
    if node.root is not None and node.root.external:
        return node.root.device
    if node.op in ("rope", "flash_attn"):
        return None
    device = next((source.device for source in node.sources if source.is_weight), None)
    return 0 if offloads and device == host and _batch(node) >= OFFLOADED_BATCH else device


def _batch(node: Tensor) -> int:
    """How many columns an operation works on (``get_op_batch_size`` of the CUDA backend)."""
    match node.op:
        case "get_rows":
            return 0
        case "mul_mat":
            return node.ne[1]
        case "mul_mat_id":
            return node.ne[2]
        case _:
            return node.ne[1] * node.ne[2] * node.ne[3]


def _spread(nodes: Sequence[Tensor], host: int, *, devices_only: bool) -> None:
    current: int | None = None
    for node in nodes:
        if node.device is not None:
            current = None if devices_only and node.device == host else node.device
        elif current is not None:
            node.device = current


def _split(nodes: Sequence[Tensor], copies: int) -> list[_Split]:
    first = next(node for node in nodes if node.op not in VIEWS)
    splits = [_Split(first.device or 0, 0)]
    for index, node in enumerate(nodes):
        if node.op in VIEWS:
            continue
        device = node.device or 0
        if device != splits[-1].device or (splits[-1].inputs and _reads_foreign_weight(node, device)):
            splits[-1].end = index
            splits.append(_Split(device, index))
        if any(source.device != device for source in node.sources):
            node.sources = tuple(_brought(source, splits[-1], copies) for source in node.sources)
    splits[-1].end = len(nodes)
    return splits


def _reads_foreign_weight(node: Tensor, device: int) -> bool:
    """A new split begins at each copied weight, so that the copies follow one another in the same memory."""
    return any(source.is_weight and source.device != device for source in node.sources)


def _brought(source: Tensor, split: _Split, copies: int) -> Tensor:
    """``source`` as the split's device sees it: itself, or its copy, made when a split of that device first reads it."""
    if source.device == split.device:
        return source
    if source.copies is None:
        source.copies = {}
    if split.device not in source.copies:
        source.copies[split.device] = [_duplicate(source, split.device, kept=copies > 1) for _ in range(copies)]
        split.inputs.append(source)
    return source.copies[split.device][0]


def _duplicate(source: Tensor, device: int, *, kept: bool) -> Tensor:
    """A tensor of the same layout on another device; one that is ``kept`` is never overwritten."""
    copy = Tensor("none", source.ne, source.element_bytes, (), source.nb)
    copy.size_bytes = _extent(source)
    copy.device = device
    copy.is_input = copy.is_output = kept
    copy.lasting = kept or (source.root or source).lasting
    return copy


def _extent(tensor: Tensor) -> int:
    """``ggml_nbytes``: from the first byte of a view to its last; of a cache, all of it."""
    holder = tensor.root or tensor
    if holder.external:
        return holder.size_bytes
    if 0 in tensor.ne:
        return 0
    return tensor.element_bytes + sum((extent - 1) * stride for extent, stride in zip(tensor.ne, tensor.nb, strict=True))


def _dependency(source: Tensor) -> Tensor:
    """Keeps a source alive until its copy is made."""
    return Tensor("none", source.ne, source.element_bytes, (source,), source.nb, source.root or source)


def _copy_of(source: Tensor, device: int) -> Tensor:
    assert source.copies is not None  # noqa: S101  made when the split was
    return source.copies[device][0]


def _pipelined_leaves(graph: Graph, splits: Sequence[_Split]) -> list[Tensor]:
    """The copies of every input: allocated first, never freed."""
    leaves: list[Tensor] = []
    for leaf in graph.leaves:
        if leaf.is_input:
            leaf.is_output = True
            others = [_duplicate(leaf, leaf.device or 0, kept=True) for _ in range(PIPELINE_COPIES - 1)]
            leaves.extend((leaf, *others))
    for split in splits:
        for source in split.inputs:
            leaves.extend((source.copies or {})[split.device])
    return leaves
