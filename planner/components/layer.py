"""A whole layer of a decoder, forward, backward and recomputed, laid from its blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from planner.architecture.counts import layer_groups
from planner.architecture.implementation import Implementation, implementation_of
from planner.architecture.layers import (
    Architecture,
    Attention,
    ChannelMixer,
    DenseMLP,
    LatentAttention,
    Layer,
    MixtureOfExperts,
    SequenceMixer,
)
from planner.components.attention import attention_forward
from planner.components.cache import cached_tensors
from planner.components.graph import Graph, Record, Stopped, add
from planner.components.latent import latent_forward
from planner.components.mlp import mlp_forward
from planner.components.moe import moe_forward
from planner.components.norms import norm_forward
from planner.components.run import Run
from planner.components.tape import Held, Span
from planner.record import record


class NotModelled(Exception):
    """No closed form yet for something the scenario asks; the message says what."""


@record
class Laid:
    """A layer's forward: what it does to memory, and what its backward needs."""

    span: Span
    record: Record
    live: Mapping[str, Held]


def require_modelled(architecture: Architecture, *, training: bool = False, eager: bool = False) -> Implementation:
    """How the family is written. Raises :class:`NotModelled` for layers, or a training, without a closed form."""
    if architecture.kind != "decoder":
        raise NotModelled(f"{architecture.model_class}: activations are modelled for decoders")
    code = implementation_of(architecture.model_type)
    if code is None:
        raise NotModelled(f"{architecture.model_class}: nobody has read yet in which order transformers makes its tensors")
    for layer, _ in layer_groups(architecture.decoder):
        reason = _unmodelled(layer, code, training=training, eager=eager)
        if reason:
            raise NotModelled(f"{architecture.model_class}: activations of {reason} are not modelled")
    if training and architecture.towers:
        raise NotModelled(f"{architecture.model_class}: training a model with towers is not modelled")
    return code


def _unmodelled(layer: Layer, code: Implementation, *, training: bool, eager: bool) -> str:
    """What of a layer has no closed form, in words; empty when all has."""
    if len(layer.sequence) > 1 or len(layer.channel) > 1:
        return "layers with several mixers side by side"
    reasons = [_unmodelled_sequence(mixer, code, training=training, eager=eager) for mixer in layer.sequence]
    if training and any(isinstance(channel, MixtureOfExperts) for channel in layer.channel):
        reasons.append("mixtures of experts in training")
    if len(layer.norms) != _expected_norms(layer, code) and not layer.parallel:
        reasons.append("this arrangement of norms")
    return next((reason for reason in reasons if reason), "")


def _unmodelled_sequence(mixer: SequenceMixer, code: Implementation, *, training: bool, eager: bool) -> str:
    match mixer:
        case Attention():
            if mixer.kv != "own" or not mixer.causal or mixer.compression is not None:
                return "attention that reads other layers, other sequences or compressed entries"
            return "eager attention in a class of its own code" if eager and code.masked else ""
        case LatentAttention():
            if training or eager:
                return "latent attention in training or computed eagerly"
            return "sparse attention with an indexer" if mixer.indexer is not None else ""
        case _:
            return "recurrent mixers"


def _expected_norms(layer: Layer, code: Implementation) -> int:
    return (len(layer.sequence) + len(layer.channel)) * (2 if code.placement == "sandwich" else 1)


def layer_forward(layer: Layer, run: Run, *, saving: bool, keeps_input: bool = False) -> Laid:
    """One layer from its input ``x`` to its output, which takes the input's place.

    ``saving``: autograd is on. ``keeps_input``: the input outlives the layer (it is a checkpoint) and counts as an
    activation.
    """
    start = {"x": Held(run.hidden(), "workspace")}
    for name, size in cached_tensors(layer, run).items():
        start[name] = Held(size, "kv_cache")
    g = Graph(run, saving=saving, start=start)
    _forward(g, layer)
    if keeps_input:
        g.consume("x")
        g.hold("checkpoint", run.hidden(), "activations")
    elif g.is_saved("x"):
        g.rename("x", "layer input")
    else:
        g.free("x")
    g.rename("y", "x")
    span = g.span()
    return Laid(span, g.record, span.live)


def layer_backward(run: Run, laid: Laid) -> Span:
    """From the gradient of the output, ``d``, to that of the input, with everything the forward saved used up."""
    start = {name: held for name, held in laid.live.items() if held.component == "activations"}
    g = Graph(run, start=start | {"d": Held(run.hidden(), "workspace")})
    return _finish(g, laid.record)


def layer_recomputed(layer: Layer, run: Run) -> Span:
    """Backward of a checkpointed layer: forward again until the last saved tensor, then backward.

    ``torch.utils.checkpoint`` (non-reentrant) stops the second forward as soon as everything saved is back.
    """
    run = replace(run, cached=False)
    first = Graph(run, saving=True, start={"x": Held(run.hidden(), "activations")})
    _forward(first, layer)
    again = {"x": Held(run.hidden(), "activations"), "d": Held(run.hidden(), "workspace")}
    g = Graph(run, saving=True, start=again, stop_after=first.record.saves)
    try:
        _forward(g, layer)
    except Stopped:
        g.release_unsaved("x", "d")
    return _finish(g, first.record, checkpoint=True)


def _finish(g: Graph, record: Record, *, checkpoint: bool = False) -> Span:
    """Run the backward; the gradient of the input takes the place of the output's."""
    gradients = g.backward(record, {"y": "d"})
    if checkpoint:
        g.consume("x")
    g.rename(gradients["x"], "d")
    return g.span()


def sequence_forward(g: Graph, mixer: SequenceMixer, source: str, target: str) -> None:
    """A sequence mixer by its kind: reads the live tensor ``source`` (which its owner frees), leaves ``target``."""
    match mixer:
        case Attention():
            attention_forward(g, mixer, source, target)
        case LatentAttention():
            latent_forward(g, mixer, source, target)
        case _:
            raise NotModelled(f"a {type(mixer).__name__} mixer has no closed form yet")


def channel_forward(g: Graph, mixer: ChannelMixer, source: str, target: str) -> None:
    """A channel mixer by its kind, as :func:`sequence_forward`."""
    match mixer:
        case DenseMLP():
            mlp_forward(g, mixer, source, target)
        case MixtureOfExperts():
            moe_forward(g, mixer, source, target)


def _forward(g: Graph, layer: Layer) -> None:
    """``x`` to ``y``; ``x`` stays, its owner frees it."""
    if layer.parallel:
        _parallel(g, layer)
    else:
        _in_sequence(g, layer)
    g.free("probabilities")


def _in_sequence(g: Graph, layer: Layer) -> None:
    """Mixer after mixer, each with its norms and its residual."""
    norms, stream, run = iter(layer.norms), "x", g.run
    mixers = [("attention", mixer, sequence_forward) for mixer in layer.sequence]
    mixers += [("mlp", mixer, channel_forward) for mixer in layer.channel]  # type: ignore[misc]
    for index, (name, mixer, forward) in enumerate(mixers):
        source, out = stream, "y" if index == len(mixers) - 1 else f"residual {index}"
        if run.code.placement != "post":
            source = f"{name} norm"
            norm_forward(g, next(norms), source, stream)
        forward(g, mixer, source, name)
        if run.code.placement != "post":
            g.free(source)
        branch = name
        if run.code.placement != "pre":
            branch = f"{name} normed"
            norm_forward(g, next(norms), branch, name)
            g.free(name)
        add(g, out, run.hidden(), stream, branch)
        g.free(branch)
        if stream != "x":
            g.free(stream)
        stream = out


def _parallel(g: Graph, layer: Layer) -> None:
    """Both mixers read the layer's input, by one norm or by one each, and are added to it."""
    run, two = g.run, len(layer.norms) > 1
    attention, channel = layer.sequence[0], layer.channel[0]
    norm_forward(g, layer.norms[0], "attention norm", "x")
    if two and run.code.norms_first:
        norm_forward(g, layer.norms[1], "mlp norm", "x")
    sequence_forward(g, attention, "attention norm", "attention")
    if two and not run.code.norms_first:
        g.free("attention norm")
        norm_forward(g, layer.norms[1], "mlp norm", "x")
    channel_forward(g, channel, "mlp norm" if two else "attention norm", "mlp")
    if two and not run.code.norms_first:
        g.free("mlp norm")
    if run.code.sums_in_place:
        add(g, "y", run.hidden(), "mlp", "attention", "x")
    else:
        add(g, "both", run.hidden(), "attention", "mlp")
        add(g, "y", run.hidden(), "both", "x")
    g.free("attention norm", "mlp norm", "both", "attention", "mlp")
