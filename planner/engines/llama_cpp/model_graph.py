"""A whole model as llama.cpp draws it: embeddings, layers, final norm, logits."""

from __future__ import annotations

from collections.abc import Sequence

from planner.architecture.layers import Architecture, Attention, DenseMLP, LatentAttention, Layer, Norm, Recurrent, SequenceMixer
from planner.engines.llama_cpp.attention import attention, latent_attention
from planner.engines.llama_cpp.channels import experts, feed_forward
from planner.engines.llama_cpp.context import Context
from planner.engines.llama_cpp.families import Family
from planner.engines.llama_cpp.gemma import (
    gemma_inputs,
    gemma_layer,
    has_per_layer,
    has_streams,
    merged_streams,
    stream_layer,
)
from planner.engines.llama_cpp.graph import Graph, Tensor, like, made, rows_of, view, weight
from planner.engines.llama_cpp.placement import Placement
from planner.engines.llama_cpp.recurrent import recurrent
from planner.engines.llama_cpp.sketch import CopiedWeights, Placed, Sketch


def model_graph(
    architecture: Architecture,
    family: Family,
    context: Context,
    layers: Sequence[Placed],
    placement: Placement,
    copied_weights: CopiedWeights | None = None,
) -> Graph:
    """The graph that is reserved: ``context.tokens`` tokens against a full cache.

    ``layers``: those to draw. ``copied_weights``: sizes of weights, when the host's are copied to a device to compute.
    """
    sketch = Sketch(architecture, family, context, placement, copied_weights)
    x = embedded = _embedded(sketch, architecture, placement.host)
    if has_per_layer(architecture):
        x = gemma_inputs(sketch, x, placement)
    for placed in layers:
        sketch.enter(placed)
        sketch.graph.marks.append(len(sketch.graph.nodes))
        x = _layer(sketch, placed, x, last=placed is layers[-1])
        if placed.index < sketch.deepstack_layers:
            x = like("add", x, view(embedded, x.ne[:2], (embedded.nb[1],)))
    sketch.enter_head()
    sketch.graph.marks.append(len(sketch.graph.nodes))
    _head(sketch, architecture, x)
    return sketch.graph


def _embedded(sketch: Sketch, architecture: Architecture, host: int) -> Tensor:
    """Rows of the embedding table, with what a family adds or does to them before the first layer."""
    family, shape = sketch.family, (architecture.hidden_size, sketch.context.tokens)
    x = made("get_rows", shape, weight(1, host), sketch.token_ids)
    if sketch.deepstack_layers:
        x = made("pad", sketch.given_embeddings.ne, x)
    sketch.graph.expand(x)
    sketch.graph.expand(sketch.given_embeddings)
    if sketch.deepstack_layers:
        x = sketch.graph.expand(view(x, shape, (x.nb[1],)))
    if family.adds_positions:
        x = like("add", x, made("get_rows", shape, weight(1, host), sketch.positions))
    if family.norms_embeddings:
        x = like("add", like("mul", like("norm", x), weight(1, host)), weight(1, host))
    return like("scale", x) if family.scales_embedding else x


def _layer(sketch: Sketch, placed: Placed, x: Tensor, *, last: bool) -> Tensor:
    """One block: norm, sequence mixer, residual, norm, channel mixer, residual; norms after the mixers where there are."""
    layer = placed.layer
    if has_streams(layer):
        return stream_layer(sketch, placed, x)
    if sketch.family.norms_values:
        return gemma_layer(sketch, layer, x)
    if layer.parallel and len(layer.sequence) == 1:
        return _parallel_layer(sketch, layer, x, last=last)
    return (_normed_layer if sketch.family.keeps_normed else _plain_layer)(sketch, layer, x, last=last)


def _plain_layer(sketch: Sketch, layer: Layer, x: Tensor, *, last: bool) -> Tensor:
    before, after = _norms(layer)
    if not layer.sequence:
        if last and sketch.family.outputs_after == "mixer":
            x = rows_of(x, sketch.output_ids)
        return like("add", _channel(sketch, layer, _normed(sketch, before[0], x)), x)
    if len(layer.sequence) > 1:
        x = _side_by_side(sketch, layer, x, before[0], last=last)
    else:
        x = _after_sequence(sketch, layer, x, (before[:1], after[:1]), last=last)
    if not layer.channel:
        return x
    y = _normed(sketch, before[1], x) if len(before) > 1 else x
    y = _channel(sketch, layer, y)
    if after:
        y = _normed(sketch, after[-1], y)
    return _summed(sketch, y, x, residual_first=sketch.family.residual_first[1])


def _normed_layer(sketch: Sketch, layer: Layer, x: Tensor, *, last: bool) -> Tensor:
    """MiniMax-01's block: mixers are added to their own normed inputs, which are scaled."""
    kept = _normed(sketch, layer.norms[0], x)
    y = _mixed(sketch, layer.sequence[0], kept)
    if last:
        y, kept = rows_of(y, sketch.output_ids), rows_of(kept, sketch.output_ids)
    kept = _normed(sketch, layer.norms[1], like("add", y, like("scale", kept)))
    return like("add", _channel(sketch, layer, kept), like("scale", kept))


def _after_sequence(sketch: Sketch, layer: Layer, x: Tensor, norms: tuple[list[Norm], list[Norm]], *, last: bool) -> Tensor:
    """The hidden states with the sequence mixer's output added; in the last layer only rows that have an output."""
    family, residual, y = sketch.family, x, x
    before, after = norms
    for norm in before:
        y = _normed(sketch, norm, y)
    if family.expands_norm:
        sketch.graph.expand(y)
    y = _mixed(sketch, layer.sequence[0], y)
    for norm in after if family.norms_mixed else ():
        y = _normed(sketch, norm, y)
    if last and family.outputs_after == "mixer":
        y, residual = rows_of(y, sketch.output_ids), rows_of(residual, sketch.output_ids)
    for norm in () if family.norms_mixed else after:
        y = _normed(sketch, norm, y)
    return _summed(sketch, y, residual, residual_first=family.residual_first[0])


def _summed(sketch: Sketch, y: Tensor, residual: Tensor, *, residual_first: bool) -> Tensor:
    if sketch.family.scales_residual:
        y = like("scale", y)
    return like("add", residual, y) if residual_first else like("add", y, residual)


def _parallel_layer(sketch: Sketch, layer: Layer, x: Tensor, *, last: bool) -> Tensor:
    """Mixers that read the same input, normed once or each for itself, and are added to it (GPT-J's block)."""
    residual = x
    first = _normed(sketch, layer.norms[0], x)
    attended = _mixed(sketch, layer.sequence[0], first)
    channel_norm = layer.norms[1] if len(layer.norms) > 1 else None
    early = None if channel_norm is not None and not sketch.family.norms_before_rows else first
    if channel_norm is not None and early is not None:
        early = _normed(sketch, channel_norm, x)
    if last and sketch.family.outputs_after == "mixer":
        attended, residual = rows_of(attended, sketch.output_ids), rows_of(residual, sketch.output_ids)
        early = rows_of(early, sketch.output_ids) if early is not None else None
    if early is None and channel_norm is not None:
        early = _normed(sketch, channel_norm, residual)
    parts = {"attention": attended, "channel": _channel(sketch, layer, early or first), "residual": residual}
    one, two, three = sketch.family.parallel_sum
    return like("add", like("add", parts[one], parts[two]), parts[three])


def _side_by_side(sketch: Sketch, layer: Layer, x: Tensor, norm: Norm, *, last: bool) -> Tensor:
    """Attention and a state-space mixer of one layer (Falcon-H1): each norms the input for itself."""
    mixers = sorted(layer.sequence, key=lambda mixer: not isinstance(mixer, Attention))
    outs = [_mixed(sketch, mixer, _normed(sketch, norm, x)) for mixer in mixers]
    total = like("add", like("add", outs[0], outs[1]), x)
    return rows_of(total, sketch.output_ids) if last else total


def _channel(sketch: Sketch, layer: Layer, x: Tensor) -> Tensor:
    channel = layer.channel[0]
    return feed_forward(sketch, channel, x) if isinstance(channel, DenseMLP) else experts(sketch, channel, x)


def _norms(layer: Layer) -> tuple[list[Norm], list[Norm]]:
    """Norms before the mixers and norms after them."""
    norms = list(layer.norms)
    if len(norms) == 4:
        after = [norm for norm in norms if norm.name in AFTER_MIXERS]
        after = after if len(after) == 2 else norms[1::2]
        return [norm for norm in norms if norm not in after], after
    if norms and "post_feedforward" in norms[-1].name:
        return [], norms
    return norms, []


AFTER_MIXERS = ("post_self_attn_layernorm", "post_mlp_layernorm")
"""GLM-4's names for the second norm of each pair."""


def _normed(sketch: Sketch, norm: Norm, x: Tensor) -> Tensor:
    y = like("rms_norm" if norm.kind == "rms" or sketch.family.only_rms_norms else "norm", x)
    for position in range(len(norm.weights)):
        y = like("add" if position else "mul", y, sketch.parameter(values=x.ne[0]))
    return y


def _mixed(sketch: Sketch, mixer: SequenceMixer, x: Tensor) -> Tensor:
    match mixer:
        case Attention():
            return attention(sketch, mixer, x)
        case LatentAttention():
            return latent_attention(sketch, mixer, x)
        case Recurrent():
            return recurrent(sketch, mixer, x)


def _head(sketch: Sketch, architecture: Architecture, x: Tensor) -> Tensor:
    family = sketch.family
    if x.ne[2] > 1:
        x = merged_streams(sketch, x)
    if family.outputs_after == "layers":
        x.is_output = x.is_output or family.keeps_hidden
        x = rows_of(x, sketch.output_ids)
    if architecture.final_norm is not None:
        x = _normed(sketch, architecture.final_norm, x)
    if family.outputs_after == "final norm":
        x.is_output = family.keeps_hidden
        x = rows_of(x, sketch.output_ids)
    x.is_output = True
    logits = sketch.linear("output", architecture.vocab_size, x)
    if any(found.role == "bias" for found in architecture.head):
        logits = like("add", logits, sketch.parameter())
    if architecture.logit_softcap:
        logits = like("scale", like("unary", like("scale", logits)))
    elif family.scales_logits:
        logits = like("scale", logits)
    logits.is_output = True
    return sketch.graph.expand(logits)
