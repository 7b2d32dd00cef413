"""What Gemma 4 adds to a layer: experts beside the dense block, and an input of each layer's own."""

from __future__ import annotations

from collections.abc import Iterator

from planner.architecture.layers import DenseMLP, Layer, MixtureOfExperts, Norm, Stack, Weight
from planner.components.activations import activate
from planner.components.graph import Graph
from planner.components.mlp import mlp_forward
from planner.components.moe import moe_forward
from planner.components.norms import norm_forward
from planner.components.operators import add, linear, multiply
from planner.components.rules import weighted
from planner.components.run import Run
from planner.components.tape import Span


def is_dense_beside_experts(layer: Layer) -> bool:
    """Whether the layer has a dense block and routed experts, each with norms of its own."""
    return [type(channel) for channel in layer.channel] == [DenseMLP, MixtureOfExperts]


def dense_beside_experts(g: Graph, layer: Layer, norms: Iterator[Norm], stream: str) -> str:
    """Both read the residual ``stream``, are normed apart, added, and normed again (``Gemma4TextDecoderLayer.forward``)."""
    run, (dense, experts) = g.run, layer.channel
    before, after, after_dense, after_experts, before_experts = norms
    norm_forward(g, before, "mlp norm", stream)
    assert isinstance(dense, DenseMLP)  # noqa: S101  is_dense_beside_experts has looked
    assert isinstance(experts, MixtureOfExperts)  # noqa: S101
    mlp_forward(g, dense, "mlp norm", "mlp")
    g.free("mlp norm")
    norm_forward(g, after_dense, "mlp normed", "mlp")
    _router_input(g, layer, stream)
    norm_forward(g, before_experts, "experts norm", stream)
    moe_forward(g, experts, "experts norm", "experts", "router input")
    g.free("experts norm")
    norm_forward(g, after_experts, "experts normed", "experts")
    g.free("experts")
    add(g, "both", run.hidden(), "mlp normed", "experts normed")
    g.free("mlp")
    norm_forward(g, after, "both normed", "both")
    g.free("both")
    add(g, "residual after both", run.hidden(), stream, "both normed")
    g.free("both normed", "mlp normed", "experts normed")
    if stream != "x":
        g.free(stream)
    return "residual after both"


def _router_input(g: Graph, layer: Layer, stream: str) -> None:
    """The residual normed without a weight, then scaled twice (``Gemma4TextRouter.forward``)."""
    run = g.run
    scale = tuple(weight for channel in layer.channel for weight in channel.weights if weight.name == "router.scale")
    norm_forward(g, Norm("router.norm", run.hidden_size, "rms", ()), "router norm", stream, variant="none")
    g.make("router scaled", run.hidden(), ("router norm",), ("router norm",), weighted, weights=scale)
    multiply(g, "router input", run.hidden(), "router scaled")
    g.free("router norm", "router scaled")


def per_layer_width(layer: Layer) -> int:
    """Width of the layer's own input, 0 without one."""
    return next((weight.shape[0] for weight in layer.weights if weight.name.startswith("per_layer_input_gate.")), 0)


OF_OWN_INPUTS = ("per_layer_model_projection", "per_layer_projection_norm")
"""Modules outside the layers that make their own inputs."""
OWN_INPUTS = ("looked up for each layer", "inputs of each layer", "embeddings with placeholders")


def own_inputs(stack: Stack, run: Run) -> Span | None:
    """The layers' own inputs being made: looked up, projected from the embeddings, normed, added; None without them.

    In a model of text and images what was looked up stays, and so do the embeddings made of ids that stand for images and
    sounds (``Gemma4Model.forward``); a model of text alone forgets both (``Gemma4TextModel.project_per_layer_inputs``).
    """
    width, layers = per_layer_width(stack.layers[0]), len(stack.layers)
    if not width:
        return None
    looked_up, made, placeholders = OWN_INPUTS
    g, size = Graph(run), run.rows(width, layers)
    composite = "language_model." in stack.name
    if composite:
        g.hold(placeholders, run.hidden())
    g.hold(looked_up, size)
    g.hold("projected", size)
    g.hold("projected and scaled", size)
    g.free("projected")
    norm_forward(g, Norm("per_layer_projection_norm", width, "rms", ()), "projected normed", "projected and scaled", layers)
    g.free("projected and scaled")
    g.hold("sum of both", size)
    g.hold(made, size)
    g.free("sum of both", "projected normed", *(() if composite else (looked_up,)))
    return g.span()


def per_layer_input(g: Graph, layer: Layer, stream: str) -> str:
    """The layer's own input, gated by the residual ``stream``, projected, normed and added to it."""
    run, width = g.run, per_layer_width(layer)
    if not width:
        return stream
    size = run.rows(width)
    linear(g, "own gate", stream, size, _of(layer, "per_layer_input_gate."))
    activate(g, "gelu", "own gate", "own activated", size)
    g.free("own gate")
    # The other factor is the layer's own input, a view of what all layers' were made in.
    g.make("own gated", size, ("own activated",), ("own activated",))
    g.free("own activated")
    linear(g, "own", "own gated", run.hidden(), _of(layer, "per_layer_projection."))
    g.free("own gated")
    weights = _of(layer, "post_per_layer_input_norm.")
    norm_forward(g, Norm("post_per_layer_input_norm", run.hidden_size, "rms", weights), "own normed", "own")
    g.free("own")
    add(g, "residual and own", run.hidden(), stream, "own normed")
    g.free("own normed", stream)
    multiply(g, "scaled", run.hidden(), "residual and own")
    g.free("residual and own")
    return "scaled"


def _of(layer: Layer, module: str) -> tuple[Weight, ...]:
    return tuple(weight for weight in layer.weights if weight.name.startswith(module))
