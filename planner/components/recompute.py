"""Checkpoints inside a layer: a part that keeps its input alone and runs again before its backward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from planner.components.autocast import CACHED
from planner.components.graph import Graph, Node, Record, Stopped
from planner.components.rules import Gradients

Forward = Callable[[Graph], None]


def as_checkpoint(g: Graph, forward: Forward, source: str, target: str) -> None:
    """Lay ``forward``, which makes ``target`` of ``source``, as a checkpoint of its own."""
    before = set(g.live)
    g.saving = False
    forward(g)
    g.saving = True
    g.free(*(name for name in list(g.live) if name not in before and name != target and not name.endswith(CACHED)))
    again = Graph(g.run, saving=True, start={source: g.live[source]}, constants=g.constants)
    forward(again)
    if target in again.constants:
        g.record.sizes[target] = again.record.sizes[target]
        g.constants.add(target)
        return
    for node in again.record.nodes:
        node.saves = [storage for storage in node.saves if storage.name != source]
    g.adopt(
        Node(target, (source,), rule=partial(_again, forward=forward, record=again.record, constants={source} & g.constants)),
        g.live[target].size,
    )


def _again(graph: Graph, node: Node, gradient: str, *, forward: Forward, record: Record, constants: set[str]) -> Gradients:
    """The part runs again until everything saved is back, and then its backward."""
    outer, gradients, before = graph.record, graph.gradients, set(graph.live)
    (source,), saves = node.inputs, node.saves[0].saves
    graph.record, graph.saving = Record(sizes={source: outer.sizes[source]}), True
    graph.constants |= constants
    try:
        with graph.stopping_after(record.saves):
            forward(graph)
    except Stopped:
        graph.release_unsaved(*before)
        _give_up_names(graph, record)
    made = graph.backward(record, {node.out: graph.share(gradient)})
    node.saves[0].saves = saves
    graph.record, graph.gradients = outer, gradients
    return [(source, made[source])] if source in made and not node.constants else []


def _give_up_names(graph: Graph, record: Record) -> None:
    """Behind the last saved tensor the whole forward went on, and gave names of saved tensors to others."""
    for name in {storage.name for node in record.nodes for storage in node.saves}:
        earlier = name.rstrip("'").removesuffix(" before")
        if name not in graph.live and graph.is_saved(earlier):
            graph.give_up(earlier)
