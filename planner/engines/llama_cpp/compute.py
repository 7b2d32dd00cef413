"""Compute buffers: the graph is drawn with each kind of layer in each of its surroundings once, and played in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.architecture.layers import Architecture, Attention, LatentAttention, Layer
from planner.engines.llama_cpp.allocator import Tape, played
from planner.engines.llama_cpp.context import Context
from planner.engines.llama_cpp.families import Family
from planner.engines.llama_cpp.model_graph import model_graph
from planner.engines.llama_cpp.scheduler import scheduled

Surroundings = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """Which device holds what: ``devices`` numbered from 0, the host after the last.

    ``layers``: the device of each layer; ``output``: of final norm and head; ``alignments``: of every buffer, the host's last.
    """

    layers: tuple[int, ...]
    output: int
    alignments: tuple[int, ...]
    pipelined: bool = False

    @property
    def host(self) -> int:
        """The number of the host."""
        return len(self.alignments) - 1


def compute_buffers(architecture: Architecture, family: Family, context: Context, placement: Placement) -> tuple[int, ...]:
    """Bytes of the compute buffer of each device and, last, of the host."""
    layers = architecture.decoder.layers
    around = _surroundings(layers, placement, family)
    first: dict[Surroundings, int] = {}
    for index, surroundings in enumerate(around):
        first.setdefault(surroundings, index)
    drawn = _with_neighbours(sorted(first.values()), around)
    graph = model_graph(
        architecture,
        family,
        context,
        [(layers[index], placement.layers[index], placement.layers[index]) for index in drawn],
        placement.output,
        placement.host,
    )
    if placement.host:
        schedule = scheduled(graph, placement.host, pipelined=placement.pipelined)
        tape = Tape(schedule.nodes, schedule.leaves, schedule.marks)
    else:
        tape = Tape(graph.nodes, graph.leaves, graph.marks)
    pieces = {index: number for number, index in enumerate(drawn, 1)}
    order = [0, *(pieces[first[surroundings]] for surroundings in around), len(drawn) + 1]
    return played(tape, order, placement.alignments)


def _surroundings(layers: Sequence[Layer], placement: Placement, family: Family) -> list[Surroundings]:
    """What decides the events of each layer: the layer before, itself, the next device, whether it is the last.

    A layer is told by its identity, its device, and the inputs that are first or last used in it there.
    """
    devices = (*placement.layers, placement.output)
    inputs = {id(layer): _inputs_of(layer, family) for layer in layers}
    first: dict[tuple[int, object], int] = {}
    last: dict[tuple[int, object], int] = {}
    for index, layer in enumerate(layers):
        for used in inputs[id(layer)]:
            first.setdefault((devices[index], used), index)
            last[devices[index], used] = index
    turns: dict[int, list[object]] = {}
    for when in (first, last) if placement.host else (last,):
        for (_, used), index in when.items():
            turns.setdefault(index, []).append((when is first, used))
    around: list[Surroundings] = []
    before: Surroundings = ()
    for index, layer in enumerate(layers):
        itself = (id(layer), devices[index], tuple(turns.get(index, ())))
        around.append((before, itself, devices[index + 1], index == len(layers) - 1))
        before = itself
    return around


def _inputs_of(layer: Layer, family: Family) -> tuple[object, ...]:
    """The inputs a layer's mixers read: positions, a cache's mask and rows, states."""
    found: list[object] = []
    for mixer in layer.sequence:
        if isinstance(mixer, Attention):
            found.append((mixer.window_tokens or mixer.chunk_tokens or 0) if family.windows else 0)
            if mixer.rotary_dim:
                found.append("positions")
        elif isinstance(mixer, LatentAttention):
            found.extend((0, "positions"))
        else:
            found.append("states")
    return tuple(found)


def _with_neighbours(chosen: Sequence[int], around: Sequence[Surroundings]) -> list[int]:
    """The chosen layers, and others between them so that each has a layer before it like the one it has in the model."""
    drawn: list[int] = []
    for index in chosen:
        if drawn and drawn[-1] != index - 1 and around[drawn[-1]][1] != around[index][0]:
            drawn.append(index - 1)
        drawn.append(index)
    return drawn
