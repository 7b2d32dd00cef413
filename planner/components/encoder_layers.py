"""Layers of encoders and of decoders beside them, with autograd: forward, backward, and forward again of a checkpointed one.

Layers share tensors that one of them, or another stack, holds: the encoder's output, learnt positions. Each layer adds its part
to their gradients.
"""

from __future__ import annotations

from collections.abc import Mapping

from planner.architecture.counts import layer_weights
from planner.architecture.layers import Layer, Stack
from planner.components.biased import CROSS_POSITIONS, POSITIONS
from planner.components.encoder import INDEX_BYTES, Block
from planner.components.graph import Graph, Record, Stopped
from planner.components.run import Run
from planner.components.tape import Held, Size, Span
from planner.record import record

BUCKETS = "buckets made again"


@record
class Stage:
    """A stack at work. ``shared``: what its layers read of others; ``leaves``: those of it that get a gradient."""

    stack: Stack
    run: Run
    block: Block
    shared: Mapping[str, Size]
    leaves: Mapping[str, Size]
    recomputed: bool

    def constants(self, *, reads_frozen: bool) -> tuple[str, ...]:
        """What a layer reads that gets no gradient; ``reads_frozen``: its input is made of frozen embeddings."""
        shared = tuple(name for name in (POSITIONS, CROSS_POSITIONS) if name not in self.leaves)
        return ("x", *shared) if reads_frozen else shared


@record
class LaidLayer:
    """One kind of layer at its places: what its forward does, and what the backward needs."""

    layer: Layer
    places: tuple[int, ...]
    span: Span
    record: Record
    reads_frozen: bool = False
    """Whether the layer's input needs no gradient."""


def layer_forward(stage: Stage, layer: Layer, places: tuple[int, ...], reads_frozen: bool = False) -> LaidLayer:  # noqa: FBT001, FBT002
    """From ``x`` to its output, which takes its place; a layer to be made again keeps its input alone."""
    g = _graph(stage, {"x": Held(stage.run.hidden(), "workspace")}, saving=not stage.recomputed, reads_frozen=reads_frozen)
    stage.block(g, layer)
    if stage.recomputed:
        g.consume("x")
        g.hold("checkpoint", stage.run.hidden(), "activations")
    elif g.is_saved("x"):
        g.rename("x", "layer input")
    else:
        g.free("x")
    g.rename("y", "x")
    return LaidLayer(layer, places, g.span(), g.record, reads_frozen)


def layer_back(stage: Stage, laid: LaidLayer, *, first: bool) -> Span:
    """From the gradient of the output, ``d``, to that of the input. ``first``: no layer has made the shared gradients yet."""
    start = {name: held for name, held in laid.span.live.items() if held.component == "activations"}
    g = _graph(stage, start | _gradients(stage, first=first), saving=False, reads_frozen=laid.reads_frozen)
    return _finish(g, stage, laid.record, _begun(stage, first=first))


def layer_recomputed(stage: Stage, laid: LaidLayer, *, first: bool) -> Span:
    """Backward of a checkpointed layer: forward again until everything saved is back, then backward."""
    kept = {"x": Held(stage.run.hidden(), "activations")}
    again = _graph(stage, kept, saving=True)
    stage.block(again, laid.layer)
    looks_up = makes_positions(laid.layer)
    own = {POSITIONS: Held(stage.shared[POSITIONS], "workspace")} if looks_up else {}
    g = _graph(stage, kept | own | _gradients(stage, first=first), saving=True, stop_after=again.record.saves)
    begun = _begun(stage, first=first)
    record = g.begin_backward(again.record, begun)
    kept_for_table = (BUCKETS,) if looks_up and stage.run.trainable else ()
    for name in kept_for_table:
        g.hold(name, buckets(stage.run), "activations")
    try:
        stage.block(g, laid.layer)
    except Stopped:
        g.release_unsaved("x", *begun.values(), *own, *kept_for_table)
    g.consume(*own)
    return _finish(g, stage, record, begun, *kept_for_table)


def buckets(run: Run) -> Size:
    """Which of the learnt positions each pair of tokens takes; autograd keeps it for their table's gradient."""
    return Size(queries=run.sequence, keys=run.sequence, int64_bytes=INDEX_BYTES)


def makes_positions(layer: Layer) -> bool:
    """Whether a layer looks positions up for all of its stack, as T5's first does: it makes them again, and zeros across."""
    return any("relative_attention_bias" in weight.name for weight in layer_weights(layer))


def _begun(stage: Stage, *, first: bool) -> dict[str, str]:
    """Gradients that are there when a layer's backward begins: its output's, and what later layers left of the shared ones."""
    return {"y": "d"} | ({} if first else {leaf: f"d {leaf}" for leaf in stage.leaves})


def _finish(g: Graph, stage: Stage, forward: Record, begun: dict[str, str], *saved: str) -> Span:
    made = g.backward(forward, begun)
    if stage.recomputed:
        g.consume("x", *saved)
    for leaf, name in (("x", "d"), *((leaf, f"d {leaf}") for leaf in stage.leaves)):
        if made.get(leaf, name) != name:
            g.rename(made[leaf], name)
    return g.span()


def _gradients(stage: Stage, *, first: bool) -> dict[str, Held]:
    shared = {} if first else {f"d {leaf}": Held(size, "workspace") for leaf, size in stage.leaves.items()}
    return {"d": Held(stage.run.hidden(), "workspace")} | shared


def _graph(
    stage: Stage, start: Mapping[str, Held], *, saving: bool, stop_after: int | None = None, reads_frozen: bool = False
) -> Graph:
    """A graph that knows the shared tensors' sizes; others hold them."""
    constants = stage.constants(reads_frozen=reads_frozen)
    g = Graph(stage.run, saving=saving, start=start, stop_after=stop_after, constants=constants)
    g.record.sizes.update(stage.shared)
    return g
