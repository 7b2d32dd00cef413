"""Layers that arrange their mixers otherwise than one after another: Falcon-H1's, MiniMax's and Zamba2's."""

from __future__ import annotations

from planner.architecture.layers import Attention, DenseMLP, Layer, MixtureOfExperts, Norm, Recurrent, SequenceMixer
from planner.components.activations import activate
from planner.components.attention import attention_forward
from planner.components.graph import Graph
from planner.components.mlp import mlp_forward
from planner.components.moe import moe_forward
from planner.components.norms import norm_forward
from planner.components.operators import add, linear, multiply
from planner.components.recurrent import recurrent_forward
from planner.modelled import NotModelled


def is_side_by_side(layer: Layer) -> bool:
    """Whether attention and a recurrence read the same input and are added."""
    return layer.parallel and [type(mixer) for mixer in layer.sequence] == [Attention, Recurrent]


def is_shared_before(layer: Layer) -> bool:
    """Whether a transformer block, whose weights serve several layers, adds to what a recurrence reads (Zamba2)."""
    return not layer.parallel and [type(mixer) for mixer in layer.sequence] == [Attention, Recurrent]


def shared_before(g: Graph, layer: Layer) -> None:
    """The block over the residual and the embeddings, a linear of the layer's own, then the recurrence (``Zamba2HybridLayer``)."""
    if g.saving:
        raise NotModelled("training of layers behind a shared transformer block has no closed form yet")
    if g.run.quantised is not None:
        raise NotModelled("weights: quantised weights that serve several layers have no closed form yet")
    run, (attention, recurrent), channel = g.run, layer.sequence, layer.channel[0]
    assert isinstance(channel, DenseMLP)  # noqa: S101  the block has no experts
    g.hold("both", run.rows(2 * run.hidden_size))
    norm_forward(g, Norm("input_layernorm", 2 * run.hidden_size, "rms", ()), "attention norm", "both")
    g.free("both")
    _forward(g, attention, "attention norm", "attention")
    g.free("attention norm")
    norm_forward(g, Norm("pre_ff_layernorm", run.hidden_size, "rms", ()), "mlp norm", "attention")
    g.free("attention")
    _adapted_mlp(g, channel, "mlp norm", "mlp")
    g.free("mlp norm", "probabilities")
    linear(g, "shared", "mlp", run.hidden(), tuple(weight for weight in layer.weights if weight.name.startswith("linear.")))
    g.free("mlp")
    add(g, "recurrent in", run.hidden(), "x", "shared")
    norm_forward(g, layer.norms[0], "recurrent norm", "recurrent in")
    g.free("recurrent in")
    _forward(g, recurrent, "recurrent norm", "recurrent")
    g.free("recurrent norm")
    add(g, "y", run.hidden(), "x", "recurrent")
    g.free("recurrent", "shared")


def _adapted_mlp(g: Graph, mixer: DenseMLP, source: str, target: str) -> None:
    """A gated block; what the layer's low-rank pair makes is added to gate and up (``Zamba2MLP``)."""
    run, wide = g.run, g.run.mlp(mixer.intermediate_size)
    both = run.mlp(2 * mixer.intermediate_size)
    linear(g, "gate and up", source, both, ())
    g.hold("adapted", both)
    g.hold("gate and up adapted", both)
    g.free("gate and up", "adapted")
    activate(g, mixer.activation, "gate and up adapted", "activated", wide)
    g.hold("product", wide)
    g.free("activated")
    linear(g, target, "product", run.hidden(), ())
    g.free("product", "gate and up adapted")


def side_by_side(g: Graph, layer: Layer) -> None:
    """The recurrence, then attention, each output scaled; then the feed-forward block (``FalconH1DecoderLayer``)."""
    run, (attention, recurrent), channel = g.run, layer.sequence, layer.channel[0]
    norm_forward(g, layer.norms[0], "mixers norm", "x")
    _forward(g, recurrent, "mixers norm", "recurrent")
    _scaled(g, "recurrent")
    multiply(g, "attention input", run.hidden(), "mixers norm")
    _forward(g, attention, "attention input", "attention")
    g.free("attention input")
    _scaled(g, "attention")
    add(g, "both", run.hidden(), "recurrent", "attention")
    g.free("mixers norm")
    add(g, "residual", run.hidden(), "x", "both")
    g.free("both")
    norm_forward(g, layer.norms[1], "mlp norm", "residual")
    assert isinstance(channel, DenseMLP)  # noqa: S101  Falcon-H1 has no experts
    mlp_forward(g, channel, "mlp norm", "mlp")
    _scaled(g, "mlp")
    g.free("mlp norm")
    add(g, "y", run.hidden(), "residual", "mlp")
    g.free("mlp", "residual", "recurrent", "attention")


def normed_residual(g: Graph, layer: Layer) -> None:
    """The norm's result is what runs on beside the mixer; both are scaled before they are added (``MiniMaxDecoderLayer``)."""
    sequence, channel = layer.sequence[0], layer.channel[0]
    norm_forward(g, layer.norms[0], "attention norm", "x")
    _forward(g, sequence, "attention norm", "attention")
    _weighted_sum(g, "residual", "attention norm", "attention")
    norm_forward(g, layer.norms[1], "mlp norm", "residual")
    g.free("residual", "attention norm")
    assert isinstance(channel, MixtureOfExperts)  # noqa: S101  every layer of MiniMax-Text-01 has experts
    moe_forward(g, channel, "mlp norm", "mlp")
    _weighted_sum(g, "y", "mlp norm", "mlp")
    g.free("mlp norm")


def _forward(g: Graph, mixer: SequenceMixer, source: str, target: str) -> None:
    if isinstance(mixer, Recurrent):
        recurrent_forward(g, mixer, source, target)
    else:
        assert isinstance(mixer, Attention)  # noqa: S101  no family has latent attention here
        attention_forward(g, mixer, source, target)


def _scaled(g: Graph, name: str) -> None:
    """The tensor times a constant, under the same name."""
    multiply(g, "scaled", g.run.hidden(), name)
    g.free(name)
    g.rename("scaled", name)


def _weighted_sum(g: Graph, name: str, residual: str, branch: str) -> None:
    """residual · α + branch · β; the branch goes."""
    size = g.run.hidden()
    multiply(g, "weighted residual", size, residual)
    multiply(g, "weighted branch", size, branch)
    add(g, name, size, "weighted residual", "weighted branch")
    g.free("weighted residual", "weighted branch", branch)
