"""Compute buffers: the graph is drawn with each kind of layer in each of its surroundings once, and played in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from planner.architecture.counts import layer_indices
from planner.architecture.layers import Architecture, Attention, LatentAttention, Layer
from planner.engines.llama_cpp.allocator import Tape
from planner.engines.llama_cpp.context import CELL_BLOCK, Context
from planner.engines.llama_cpp.course import Course, Written
from planner.engines.llama_cpp.families import Family
from planner.engines.llama_cpp.gemma import is_sparse, takes_per_layer
from planner.engines.llama_cpp.model_graph import model_graph
from planner.engines.llama_cpp.placement import Checkpoint, Placement
from planner.engines.llama_cpp.scheduler import scheduled
from planner.engines.llama_cpp.sketch import CopiedWeights, deepstack_layers, placed_layers, rotates, window_of
from planner.engines.llama_cpp.sparse import is_sparse_latent
from planner.memo import remember_by_identity

LEAVES = {
    "attn_q_a": "q_a_proj", "attn_q_b": "q_b_proj", "attn_kv_a_mqa": "kv_a_proj_with_mqa", "indexer.attn_q_b": "wq_b",
    "indexer.attn_k": "indexer_k", "indexer.proj": "weights_proj",
}  # fmt: skip
"""Names of weights in files at hand, by those that graphs are drawn with."""
Itself = tuple[object, ...]
Surroundings = tuple[Itself, Itself, Itself, bool]


def compute_buffers(
    architecture: Architecture, family: Family, context: Context, placement: Placement, checkpoint: Checkpoint | None = None
) -> tuple[int, ...]:
    """Bytes of the compute buffer of each device and, last, of the host.

    ``checkpoint``: asked for only where a device computes with the host's weights, of which it gets copies.
    """
    return course_of(architecture, family, replace(context, cells=0), placement, checkpoint).at(context.cells // CELL_BLOCK)


@remember_by_identity(2048)
def course_of(
    architecture: Architecture, family: Family, context: Context, placement: Placement, checkpoint: Checkpoint | None = None
) -> Course:
    """The same over any number of cells: those of ``context`` are not looked at."""
    layers = architecture.decoder.layers
    around = _surroundings(architecture, placement, family)
    first: dict[Surroundings, int] = {}
    for index, surroundings in enumerate(around):
        first.setdefault(surroundings, index)
    drawn = _with_neighbours(sorted(first.values()), around, layers)
    pieces = {index: number for number, index in enumerate(drawn, 1)}
    order = [0, *(pieces[first[surroundings]] for surroundings in around), len(drawn) + 1]
    copied = copied_weights(architecture, placement, checkpoint) if placement.offloads and checkpoint is not None else None
    placed = placed_layers(architecture, placement, drawn)

    def write(blocks: int) -> Written:
        asked = replace(context, cells=blocks * CELL_BLOCK)
        graph = model_graph(architecture, family, asked, placed, placement, copied)
        if not placement.host:
            return Tape(graph.nodes, graph.leaves, graph.marks), order
        schedule = scheduled(graph, placement.host, pipelined=placement.pipelined, offloads=copied is not None)
        return Tape(schedule.nodes, schedule.leaves, schedule.marks), order

    return Course(write, placement.alignments, bends(layers, context))


def bends(layers: Sequence[Layer], context: Context) -> list[int]:
    """Blocks of cells at which the cache of a window is full, or as many as sparse attention attends to."""
    unbounded = replace(context, cells=1 << 60)
    mixers = [mixer for layer in layers for mixer in layer.sequence]
    windows = set() if context.full_window_cache else {window_of(mixer) for mixer in mixers} - {0}
    kept = {mixer.indexer.top_k // CELL_BLOCK for mixer in mixers if isinstance(mixer, LatentAttention) and mixer.indexer}
    return [*(unbounded.window_cells(window) // CELL_BLOCK for window in windows), *(kept - {0})]


def _surroundings(architecture: Architecture, placement: Placement, family: Family) -> list[Surroundings]:
    """What decides the events of each layer: the layer before, itself, the next device, whether it is the last.

    A layer is told by its identity, its devices, and the inputs that are first or last used in it there; where layers take in
    vectors of their own those are made once the second layer is drawn, and copied between devices for many layers at once. One
    without a sequence mixer leaves the layer before it undrawn as well, so that counts too. After experts that are computed
    elsewhere a run of nodes begins that reaches into the next layer, and copies that one's inputs: then the next layer
    counts as well.
    """
    layers = architecture.decoder.layers
    devices = (*placement.layers, placement.output)
    stacked = deepstack_layers(architecture, family)
    placed = placed_layers(architecture, placement, range(len(layers)))
    told_apart = len(layers) if _layers_divided(placement) or len(set(placement.layers)) > 1 else 2
    turns = _turns(layers, placement, family)
    selves: list[Itself] = [()]
    for index, layer in enumerate(layers):
        itself: Itself = (
            id(layer), devices[index], placement.experts[index], placed[index].cache_device, tuple(turns.get(index, ())),
            _place(layer, index, told_apart, stacked), is_sparse(family, index),
        )  # fmt: skip
        selves.append(itself if layer.sequence else (*itself, selves[-1]))
    ends = len(layers) - 1
    after: list[Itself] = [(device,) for device in devices[1:]]
    if _layers_divided(placement):
        after = [(*itself, index == ends) for index, itself in enumerate(selves[2:], 1)] + [(placement.output,)]
    return [(selves[index], selves[index + 1], after[index], index == ends) for index in range(len(layers))]


def _place(layer: Layer, index: int, told_apart: int, stacked: int) -> int:
    """What a layer's number says of it: all, where every layer has a leaf of its own; how far it is among the first ones."""
    if any(map(is_sparse_latent, layer.sequence)):
        return index
    return min(index, told_apart if takes_per_layer(layer) else stacked)


def _layers_divided(placement: Placement) -> bool:
    """Whether a layer's nodes are on more than one device: its experts, or the attention over caches on the host."""
    return placement.experts != placement.layers or placement.caches_on_host


def _turns(layers: Sequence[Layer], placement: Placement, family: Family) -> dict[int, list[object]]:
    """For each layer the inputs it is the last on its device to read, and the first where copies outlive their reader."""
    has_windows = family.windows and any(window_of(mixer) for layer in layers for mixer in layer.sequence)
    inputs = {id(layer): _inputs_of(layer, family, has_windows=has_windows) for layer in layers}
    first: dict[tuple[int, object], int] = {}
    last: dict[tuple[int, object], int] = {}
    for index, layer in enumerate(layers):
        for used in inputs[id(layer)]:
            first.setdefault((placement.layers[index], used), index)
            last[placement.layers[index], used] = index
    turns: dict[int, list[object]] = {}
    outlive = placement.pipelined or placement.offloads or _layers_divided(placement)
    for when in (first, last) if outlive else (last,):
        for (_, used), index in when.items():
            turns.setdefault(index, []).append((when is first, used))
    return turns


def _inputs_of(layer: Layer, family: Family, *, has_windows: bool) -> tuple[object, ...]:
    """The inputs a layer's mixers read: positions, a cache's mask and rows, states."""
    found: list[object] = []
    for mixer in layer.sequence:
        if isinstance(mixer, Attention):
            found.append(window_of(mixer) if has_windows else 0)
            if rotates(mixer, family, has_windows=has_windows):
                found.append("positions")
            elif family.scales_unrotated:
                found.append("position scale")
            if family.scales_by_position:
                found.append("position scale")
        elif isinstance(mixer, LatentAttention):
            found.extend((0, "positions") if family.rotates_latent else (0,))
            if family.scales_by_position:
                found.append("position scale")
        else:
            found.append("states")
            if mixer.kind == "lightning":
                found.append("decays")
    if takes_per_layer(layer):
        found.append("per layer")
    return tuple(found)


def _with_neighbours(chosen: Sequence[int], around: Sequence[Surroundings], layers: Sequence[Layer]) -> list[int]:
    """The chosen layers, and others between them so that each has neighbours like those it has in the model."""
    drawn: list[int] = []
    for index in chosen:
        if drawn and index > drawn[-1] + 1 and len(around[drawn[-1]][2]) > 1 and around[index][1] != around[drawn[-1] + 1][1]:
            drawn.append(drawn[-1] + 1)
        added = [index]
        while drawn and drawn[-1] != added[0] - 1 and around[drawn[-1]][1] != around[added[0]][0]:
            added.insert(0, added[0] - 1)
            if layers[added[0]].sequence:
                break
        drawn.extend(added)
    return drawn


def copied_weights(architecture: Architecture, placement: Placement, checkpoint: Checkpoint) -> CopiedWeights:
    """Sizes of the weights a device would have copied; of equal layers whose mixes differ, the largest."""
    leaves: dict[int, dict[str, int]] = {}
    by_layer: dict[int, dict[str, int]] = {}
    for tensor in checkpoint.tensors:
        name = tensor.name.removesuffix(".weight")
        leaf = name.split(".", 2)[-1] if tensor.layer >= 0 else name
        leaves.setdefault(tensor.layer, {})[LEAVES.get(leaf, leaf)] = tensor.size_bytes
    for layer, indices in layer_indices(architecture.decoder):
        table = by_layer.setdefault(id(layer), {})
        for index in indices:
            if placement.host in (placement.layers[index], placement.experts[index]):
                for leaf, size in leaves.get(index, {}).items():
                    table[leaf] = max(size, table.get(leaf, 0))
    outside = leaves.get(-1, {})
    by_layer[id(None)] = {"output": outside.get("output", outside.get("token_embd", 0))}
    return by_layer
