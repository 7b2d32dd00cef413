"""Gemma 3n and 4 in llama.cpp's graphs: inputs of every layer's own, residual streams side by side, experts beside a dense block.

Source: llama.cpp ``src/models/gemma3n.cpp`` and ``gemma4.cpp`` (0.5.0-dev). The order of statements is the order of nodes.
"""

from __future__ import annotations

from planner.architecture.layers import Architecture, Attention, DenseMLP, Layer, MixtureOfExperts, Norm
from planner.engines.llama_cpp.attention import attention
from planner.engines.llama_cpp.channels import feed_forward, routed
from planner.engines.llama_cpp.families import Family
from planner.engines.llama_cpp.graph import (
    Tensor,
    given,
    like,
    made,
    packed,
    permute,
    product,
    reshape,
    transpose,
    view,
    weight,
)
from planner.engines.llama_cpp.placement import Placement
from planner.engines.llama_cpp.sketch import Placed, Sketch

SPARSE_LAYERS = 10
"""``n_layer_sparsity``: so many first layers of Gemma 3n keep the largest activations of their gates alone."""


def takes_per_layer(layer: Layer) -> bool:
    """Whether a layer takes in a vector of its own."""
    return any(found.name.startswith("per_layer_input_gate") for found in layer.weights)


def has_per_layer(architecture: Architecture) -> bool:
    """Whether the layers of a model do."""
    return any(map(takes_per_layer, architecture.decoder.layers))


def has_streams(layer: Layer) -> bool:
    """Whether a layer keeps several residual streams (AltUp)."""
    return any(found.name.startswith("altup.") for found in layer.weights)


def is_sparse(family: Family, index: int) -> bool:
    """Whether a layer's gates are cut to their largest activations."""
    return family.file == "gemma3n.cpp" and index < SPARSE_LAYERS


def gemma_inputs(sketch: Sketch, x: Tensor, placement: Placement) -> Tensor:
    """What every layer takes in of its own, and the embeddings, spread over the streams where there are several."""
    architecture, tokens = sketch.architecture, sketch.context.tokens
    layers = len(architecture.decoder.layers)
    gate = next(found for found in architecture.decoder.layers[0].weights if found.name.startswith("per_layer_input_gate"))
    width = gate.shape[0]
    own = made("get_rows", (width * layers, tokens), weight(1, placement.host), given(tokens))
    own = sketch.graph.expand(like("scale", reshape(own, width, layers, tokens)))
    first = placement.layers[0]
    projected = like("scale", product(weight(width * layers, first), x))
    projected = like("rms_norm", reshape(projected, width, layers, tokens))
    both = like("scale", like("add", like("mul", projected, weight(1, first)), own))
    sketch.per_layer = packed(permute(both, 0, 2, 1, 3))
    return _spread(sketch, x, placement.output) if has_streams(architecture.decoder.layers[0]) else x


def gemma_layer(sketch: Sketch, layer: Layer, x: Tensor) -> Tensor:
    """A block of Gemma 4: norms around the mixers; experts beside the dense block; an input of its own; a scale at its end."""
    norms = {norm.name: norm for norm in layer.norms}
    attended = attention(sketch, _attention_of(layer), _normed(sketch, norms["input_layernorm"], x))
    x = like("add", _normed(sketch, norms["post_attention_layernorm"], attended), x)
    y = _feed_forward(sketch, layer, norms, x)
    x = like("add", _normed(sketch, norms["post_feedforward_layernorm"], y), x)
    if takes_per_layer(layer):
        x = like("add", x, _own_input(sketch, x, x))
    if any(found.name == "layer_scalar" for found in layer.weights):
        x = like("mul", x, sketch.parameter())
    return x


def _feed_forward(sketch: Sketch, layer: Layer, norms: dict[str, Norm], x: Tensor) -> Tensor:
    dense = next(channel for channel in layer.channel if isinstance(channel, DenseMLP))
    y = feed_forward(sketch, dense, _normed(sketch, norms["pre_feedforward_layernorm"], x))
    for sparse in layer.channel:
        if isinstance(sparse, MixtureOfExperts):
            y = _normed(sketch, norms["post_feedforward_layernorm_1"], y)
            inner = _normed(sketch, norms["pre_feedforward_layernorm_2"], x)
            seen = like("mul", like("scale", like("rms_norm", x)), sketch.parameter(values=x.ne[0]))
            logits = sketch.linear("ffn_gate_inp", sparse.num_experts, seen)
            chosen = _normed(sketch, norms["post_feedforward_layernorm_2"], routed(sketch, sparse, inner, logits))
            y = like("add", y, chosen)
    return y


def stream_layer(sketch: Sketch, placed: Placed, x: Tensor) -> Tensor:
    """A block of Gemma 3n: it predicts every stream, runs the active one, and corrects all of them by what came of it."""
    layer = placed.layer
    norms = {norm.name: norm for norm in layer.norms}
    predictions = _predicted(sketch, x)
    active = _slice(predictions)
    y = _normed(sketch, norms["input_layernorm"], active)
    side = sketch.rms_norm(sketch.linear("laurel_r", x.ne[0], sketch.linear("laurel_l", _laurel_rank(layer), y)))
    side = like("add", side, y)
    y = attention(sketch, _attention_of(layer), y)
    y = like("add", _normed(sketch, norms["post_attention_layernorm"], y), active)
    attended = like("scale", like("add", y, side))
    y = _sparse_feed_forward(sketch, placed, _normed(sketch, norms["pre_feedforward_layernorm"], attended))
    y = like("add", _normed(sketch, norms["post_feedforward_layernorm"], y), attended)
    corrected = _corrected(sketch, predictions, y)
    first = _own_input(sketch, like("mul", _slice(corrected), sketch.parameter(values=x.ne[0])), active)
    rest = view(corrected, (x.ne[0], x.ne[1], x.ne[2] - 1), corrected.nb[1:3])
    return _stacked(_slice(corrected), like("add", rest, first))


def merged_streams(sketch: Sketch, x: Tensor) -> Tensor:
    """The streams taken back to the size of the active one, and their mean."""
    hidden, tokens, streams = x.ne[:3]
    target = _magnitude(_slice(x))
    others = product(sketch.parameter(hidden), view(x, (hidden, tokens, streams - 1), x.nb[1:3]))
    others = like("div", like("mul", others, target), _magnitude(others))
    total = _slice(x)
    for _ in range(streams - 1):
        total = like("add", total, _slice(others))
    return like("scale", total)


def _spread(sketch: Sketch, x: Tensor, device: int) -> Tensor:
    """Embeddings, and projections of them of the same size for the idle streams."""
    hidden, tokens = x.ne[:2]
    others = _streams(sketch) - 1
    target = _magnitude(x)
    added = product(weight(hidden, device), made("repeat", (hidden, tokens, others), x))
    added = like("div", like("mul", added, target), _magnitude(added))
    return _stacked(x, added)


def _predicted(sketch: Sketch, x: Tensor) -> Tensor:
    tokens, streams = x.ne[1], x.ne[2]
    coefficients = sketch.linear("altup_predict_coef", streams * streams, _modalities(sketch, _slice(x), streams))
    coefficients = reshape(coefficients, streams, streams, tokens)
    mixed = product(packed(permute(x, 1, 2, 0, 3)), coefficients)
    return like("add", packed(permute(mixed, 0, 2, 1, 3)), x)


def _corrected(sketch: Sketch, predictions: Tensor, activated: Tensor) -> Tensor:
    tokens, streams = predictions.ne[1], predictions.ne[2]
    modalities = _modalities(sketch, activated, streams)
    innovation = like("sub", activated, _slice(predictions))
    coefficients = like("scale", sketch.linear("altup_correct_coef", streams, modalities))
    coefficients = packed(transpose(coefficients), 1, tokens, streams)
    spread = made("repeat", predictions.ne, innovation)
    return like("add", like("mul", spread, coefficients), predictions)


def _modalities(sketch: Sketch, x: Tensor, streams: int) -> Tensor:
    return like("unary", sketch.linear("altup_router", streams, like("scale", sketch.rms_norm(x))))


def _sparse_feed_forward(sketch: Sketch, placed: Placed, x: Tensor) -> Tensor:
    width = next(channel.intermediate_size for channel in placed.layer.channel if isinstance(channel, DenseMLP))
    up = sketch.linear("ffn_up", width, x)
    gate = sketch.linear("ffn_gate", width, x)
    if is_sparse(sketch.family, placed.index):
        gate = _largest(gate)
    return sketch.linear("ffn_down", x.ne[0], like("mul", up, like("unary", gate)))


def _largest(x: Tensor) -> Tensor:
    """Activations above a quantile of the normal distribution that fits them."""
    row = (1, x.ne[1])
    mean = made("mean", row, x)
    deviation = like("sqr", like("scale", made("sum_rows", row, like("sqr", like("sub", x, mean)))))
    return like("unary", like("sub", x, like("add", mean, like("scale", deviation))))


def _own_input(sketch: Sketch, x: Tensor, shape: Tensor) -> Tensor:
    """A gate on the layer's own vector, projected back and normed."""
    assert sketch.per_layer is not None  # noqa: S101  made before the first layer
    width, tokens = sketch.per_layer.ne[:2]
    opened = like("unary", sketch.linear("inp_gate", width, x))
    taken = like("mul", opened, view(sketch.per_layer, (width, tokens)))
    return sketch.rms_norm(sketch.linear("proj", shape.ne[0], taken))


def _attention_of(layer: Layer) -> Attention:
    return next(mixer for mixer in layer.sequence if isinstance(mixer, Attention))


def _laurel_rank(layer: Layer) -> int:
    return next(found.shape[0] for found in layer.weights if found.name.startswith("laurel.linear_left"))


def _streams(sketch: Sketch) -> int:
    weights = sketch.architecture.decoder.layers[0].weights
    return next(found.shape[0] for found in weights if found.name.startswith("altup.modality_router"))


def _normed(sketch: Sketch, norm: Norm, x: Tensor) -> Tensor:
    return sketch.rms_norm(x) if norm.weights else like("rms_norm", x)


def _slice(x: Tensor) -> Tensor:
    return view(x, x.ne[:2], (x.nb[1],))


def _stacked(first: Tensor, rest: Tensor) -> Tensor:
    """``ggml_concat`` along the streams."""
    return made("concat", (first.ne[0], first.ne[1], 1 + rest.ne[2]), first, rest)


def _magnitude(x: Tensor) -> Tensor:
    """The length of every vector; a root is taken in place, as a square is."""
    return like("sqr", made("sum_rows", (1, *x.ne[1:]), like("sqr", x)))
