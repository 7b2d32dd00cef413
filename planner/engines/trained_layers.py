"""Which layers of a stack do the same to memory in training: of one kind, alike in what trains and in what gradients reach.

A tensor requires a gradient once something that trains has made it. Before the first trained parameter a layer saves
nothing and has no backward; the layer of that parameter sends no gradient to its input.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from planner.architecture.counts import layer_weights
from planner.architecture.layers import Architecture, Layer, Weight
from planner.components.run import Run
from planner.record import record


@record
class TrainedLayers:
    """Layers at ``places`` of the stack that are alike, and the run that lays them."""

    layer: Layer
    run: Run
    places: tuple[int, ...]


@record
class Reached:
    """What gradients reach: the stack's layers, grouped, and whether the embeddings, the final norm and the head train.

    ``input``: what the embeddings make requires a gradient; ``before_norm``: the last layer's output does; ``before_head``:
    the final norm's does.
    """

    layers: tuple[TrainedLayers, ...]
    embeddings: bool
    input: bool
    before_norm: bool
    before_head: bool
    head: bool


def reached_by_gradients(architecture: Architecture, run: Run, *, input_requires: bool = False, prefixed: bool = False) -> Reached:
    """Walk from the embeddings to the head, and note where the first trained parameter stands.

    ``input_requires``: what the embeddings make requires a gradient although they are frozen: trained vectors stand before
    it, or checkpointing asks for it (transformers ``enable_input_require_grads``). ``prefixed``: keys and values of every layer
    stand behind trained ones.
    """
    outside = replace(run, path="")
    stack = architecture.decoder
    embeddings = _trains(outside, (*architecture.embeddings, *stack.weights))
    needs, groups = embeddings or input_requires, dict[object, tuple[TrainedLayers, list[int]]]()
    for index, layer in enumerate(stack.layers):
        own = replace(run, path=f"{stack.name}.{index}.", constant_input=not needs) if run.names else run
        weights = list(layer_weights(layer)) if run.names or not needs else []
        named = frozenset(weight.name for weight in weights if own.trains((weight,))) if run.names else None
        first = (run.narrow_ends or run.float8 is not None) and not index
        key = (id(layer), needs, named, first)
        if key not in groups:
            own = own if run.names else replace(run, constant_input=not needs, narrow_input=first and run.narrow_ends)
            own = own if run.float8 is None else replace(own, float8=run.float8.at(index))
            groups[key] = (TrainedLayers(layer, own, ()), [])
        groups[key][1].append(index)
        needs = needs or bool(named) or prefixed or _changes(run, weights)
    final = architecture.final_norm.weights if architecture.final_norm is not None else ()
    before_head = needs or _trains(outside, final)
    head = _trains(outside, architecture.head or (architecture.embeddings[:1] if architecture.tied_head else ()))
    layers = tuple(TrainedLayers(found.layer, found.run, tuple(places)) for found, places in groups.values())
    return Reached(layers, embeddings, embeddings or input_requires, needs, before_head, head)


def _trains(run: Run, weights: Iterable[Weight]) -> bool:
    return run.trainable and any(run.trains((weight,)) for weight in weights)


def _changes(run: Run, weights: Iterable[Weight]) -> bool:
    """Whether anything of a layer trains: its own weights, or adapters beside them."""
    if run.adapters is not None:
        return run.adapters.changes(tuple(weights))
    return run.trainable and not run.names
