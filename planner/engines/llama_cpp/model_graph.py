"""A whole model as llama.cpp draws it: embeddings, layers, final norm, logits."""

from __future__ import annotations

from collections.abc import Sequence

from planner.architecture.layers import Architecture, Attention, DenseMLP, LatentAttention, Layer, Norm
from planner.engines.llama_cpp.channels import experts, feed_forward
from planner.engines.llama_cpp.context import Context
from planner.engines.llama_cpp.families import Family
from planner.engines.llama_cpp.graph import Graph, Tensor, like, made, rows_of, weight
from planner.engines.llama_cpp.mixers import attention, latent_attention, recurrent
from planner.engines.llama_cpp.placement import Placement
from planner.engines.llama_cpp.sketch import CopiedWeights, Sketch


def model_graph(
    architecture: Architecture,
    family: Family,
    context: Context,
    layers: Sequence[tuple[Layer, int, int]],
    placement: Placement,
    copied_weights: CopiedWeights | None = None,
) -> Graph:
    """The graph that is reserved: ``context.tokens`` tokens against a full cache.

    ``layers``: those to draw, each with the device of its weights and that of its routed experts. ``copied_weights``: sizes
    of weights, when the host's are copied to a device to compute.
    """
    sketch = Sketch(architecture, family, context, placement, copied_weights)
    x = made("get_rows", (architecture.hidden_size, context.tokens), weight(1, placement.host), sketch.token_ids)
    sketch.graph.expand(x)
    sketch.graph.expand(sketch.given_embeddings)
    if family.scales_embedding:
        x = like("scale", x)
    for index, (layer, device, experts_device) in enumerate(layers):
        sketch.enter(layer, device, experts_device)
        sketch.graph.marks.append(len(sketch.graph.nodes))
        x = _layer(sketch, layer, x, last=index == len(layers) - 1)
    sketch.enter(None, placement.output, placement.output)
    sketch.graph.marks.append(len(sketch.graph.nodes))
    _head(sketch, architecture, x)
    return sketch.graph


def _layer(sketch: Sketch, layer: Layer, x: Tensor, *, last: bool) -> Tensor:
    """One block: norm, sequence mixer, residual, norm, channel mixer, residual; norms after the mixers where there are."""
    family = sketch.family
    residual = x
    before, after = _norms(layer)
    y = _normed(sketch, before.pop(0), x) if before else x
    if family.expands_norm:
        sketch.graph.expand(y)
    y = _mixed(sketch, layer, y)
    if last and family.outputs_after == "mixer":
        y, residual = rows_of(y, sketch.output_ids), rows_of(residual, sketch.output_ids)
    if after:
        y = _normed(sketch, after.pop(0), y)
    if family.scales_residual:
        y = like("scale", y)
    y = like("add", residual, y) if family.residual_first[0] else like("add", y, residual)
    if not layer.channel:
        return y
    residual = y
    if before:
        y = _normed(sketch, before.pop(0), y)
    channel = layer.channel[0]
    y = feed_forward(sketch, channel, y) if isinstance(channel, DenseMLP) else experts(sketch, channel, y)
    if after:
        y = _normed(sketch, after.pop(0), y)
    if family.scales_residual:
        y = like("scale", y)
    return like("add", residual, y) if family.residual_first[1] else like("add", y, residual)


def _norms(layer: Layer) -> tuple[list[Norm], list[Norm]]:
    """Norms before the mixers and norms after them: four are two of each, in turns."""
    norms = list(layer.norms)
    if len(norms) == 4:
        return norms[::2], norms[1::2]
    if norms and "post_feedforward" in norms[-1].name:
        return [], norms
    return norms, []


def _normed(sketch: Sketch, norm: Norm, x: Tensor) -> Tensor:
    y = like("rms_norm" if norm.kind == "rms" else "norm", x)
    for position in range(len(norm.weights)):
        y = like("add" if position else "mul", y, sketch.parameter())
    return y


def _mixed(sketch: Sketch, layer: Layer, x: Tensor) -> Tensor:
    mixer = layer.sequence[0]
    match mixer:
        case Attention():
            return attention(sketch, mixer, x)
        case LatentAttention():
            return latent_attention(sketch, mixer, x)
        case _:
            return recurrent(sketch, mixer, x)


def _head(sketch: Sketch, architecture: Architecture, x: Tensor) -> Tensor:
    family = sketch.family
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
    if architecture.logit_softcap:
        logits = like("scale", like("unary", like("scale", logits)))
    elif family.scales_logits:
        logits = like("scale", logits)
    logits.is_output = True
    return sketch.graph.expand(logits)
