"""A whole layer of a pre-norm decoder, forward, backward and recomputed, laid from its blocks."""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.counts import layer_groups
from planner.architecture.layers import Architecture, Attention, ChannelMixer, DenseMLP, Layer, SequenceMixer
from planner.components.attention import attention_backward, attention_forward
from planner.components.mlp import mlp_backward, mlp_forward
from planner.components.norms import norm_backward, norm_forward
from planner.components.run import Run
from planner.components.tape import Held, Size, Span, Tape


class NotModelled(Exception):
    """No closed form yet for something the scenario asks; the message says what."""


def require_modelled(architecture: Architecture) -> None:
    """Raise :class:`NotModelled` unless every layer is a pre-norm block of causal attention and a dense feed-forward."""
    if architecture.kind != "decoder" or architecture.towers:
        raise NotModelled(f"{architecture.model_class}: activations are modelled for decoder-only text models")
    for layer, _ in layer_groups(architecture.decoder):
        reason = _unmodelled(layer)
        if reason:
            raise NotModelled(f"{architecture.model_class}: activations of {reason} are not modelled")


def _unmodelled(layer: Layer) -> str:
    if len(layer.sequence) != 1 or len(layer.channel) != 1:
        return "layers with several mixers side by side"
    mixer, channel = layer.sequence[0], layer.channel[0]
    if not isinstance(mixer, Attention) or mixer.kv != "own" or not mixer.causal:
        return "layers without plain causal attention"
    if mixer.fused_qkv or mixer.output_gate or mixer.has_sinks or mixer.logit_softcap or mixer.qk_norm == "full_width":
        return "this attention variant"
    if not isinstance(channel, DenseMLP) or channel.fused_gate_up or not channel.gated:
        return "this feed-forward variant"
    if layer.parallel or len(layer.norms) != 2 or any(norm.kind != "rms" for norm in layer.norms):
        return "this arrangement of norms"
    return ""


def layer_forward(layer: Layer, run: Run, *, saving: bool, keeps_input: bool = False) -> Span:
    """One layer from its input ``x`` to its output, which takes the input's place.

    ``saving``: autograd is on. ``keeps_input``: the input outlives the layer (it is a checkpoint) and counts as an
    activation.
    """
    start = {"x": Held(run.hidden(), "workspace")}
    for name, size in _past(layer, run).items():
        start[name] = Held(size, "kv_cache")
    tape = Tape(saving=saving, start=start)
    _forward(tape, layer, run, whole=True)
    if keeps_input:
        tape.consume("x")
        tape.hold("checkpoint", run.hidden(), "activations")
    else:
        tape.free("x")
    tape.rename("out", "x")
    return tape.span()


def layer_backward(layer: Layer, run: Run, saved: dict[str, Held]) -> Span:
    """From the gradient of the output, ``d``, to that of the input, with everything the forward saved used up."""
    start = {name: held for name, held in saved.items() if held.saved}
    tape = Tape(start=start | {"d": Held(run.hidden(), "workspace")})
    _backward(tape, layer, run)
    return tape.span()


def layer_recomputed(layer: Layer, run: Run) -> Span:
    """Backward of a checkpointed layer: forward again until the last saved tensor, then backward.

    ``torch.utils.checkpoint`` (non-reentrant) stops the second forward as soon as everything saved is back.
    """
    run = replace(run, cached=False)
    start = {"checkpoint": Held(run.hidden(), "activations"), "d": Held(run.hidden(), "workspace")}
    tape = Tape(saving=True, start=start)
    _forward(tape, layer, run, whole=False)
    _backward(tape, layer, run)
    tape.consume("checkpoint")
    return tape.span()


def sequence_forward(tape: Tape, run: Run, mixer: SequenceMixer, source: str, target: str) -> None:
    """A sequence mixer by its kind: reads the live tensor ``source`` (which its owner frees), leaves ``target``."""
    match mixer:
        case Attention():
            attention_forward(tape, run, mixer, source, target)
        case _:
            raise NotModelled(f"a {type(mixer).__name__} mixer has no closed form yet")


def sequence_backward(tape: Tape, run: Run, mixer: SequenceMixer, source: str, target: str) -> None:
    """Its backward: from ``d``, the gradient of ``target`` (which the residual keeps), to ``{source} d``.

    Uses up what the forward saved, ``source`` too at its last reader.
    """
    match mixer:
        case Attention():
            attention_backward(tape, run, mixer, source, target)
        case _:
            raise NotModelled(f"the backward of a {type(mixer).__name__} mixer has no closed form yet")


def channel_forward(tape: Tape, run: Run, mixer: ChannelMixer, source: str, target: str, *, whole: bool = True) -> None:
    """A channel mixer by its kind, as :func:`sequence_forward`; without ``whole`` it ends at its last saved tensor."""
    match mixer:
        case DenseMLP():
            mlp_forward(tape, run, mixer, source, target, whole=whole)
        case _:
            raise NotModelled(f"a {type(mixer).__name__} has no closed form yet")


def channel_backward(tape: Tape, run: Run, mixer: ChannelMixer, source: str, target: str) -> None:
    """Its backward, as :func:`sequence_backward`."""
    match mixer:
        case DenseMLP():
            mlp_backward(tape, run, mixer, source, target)
        case _:
            raise NotModelled(f"the backward of a {type(mixer).__name__} has no closed form yet")


def _forward(tape: Tape, layer: Layer, run: Run, *, whole: bool) -> None:
    norm_forward(tape, run, layer.norms[0], "attention norm", "x")
    sequence_forward(tape, run, layer.sequence[0], "attention norm", "attention")
    tape.free("attention norm")
    tape.hold("residual", run.hidden())
    tape.free("attention")
    norm_forward(tape, run, layer.norms[1], "mlp norm", "residual")
    channel_forward(tape, run, layer.channel[0], "mlp norm", "mlp", whole=whole)
    tape.free("mlp norm")
    if whole:
        tape.hold("out", run.hidden())
        tape.free("mlp")
    tape.free("residual")


def _backward(tape: Tape, layer: Layer, run: Run) -> None:
    channel_backward(tape, run, layer.channel[0], "mlp norm", "mlp")
    norm_backward(tape, run, layer.norms[1], "mlp norm", "mlp norm d", "residual")
    _add_residual(tape, run, "mlp norm dx")
    sequence_backward(tape, run, layer.sequence[0], "attention norm", "attention")
    norm_backward(tape, run, layer.norms[0], "attention norm", "attention norm d", "x")
    _add_residual(tape, run, "attention norm dx")


def _add_residual(tape: Tape, run: Run, branch: str) -> None:
    tape.hold("d sum", run.hidden())
    tape.consume("d", branch)
    tape.rename("d sum", "d")


def _past(layer: Layer, run: Run) -> dict[str, Size]:
    mixer = layer.sequence[0]
    if not run.cached or not run.past_tokens or not isinstance(mixer, Attention):
        return {}
    return {f"{name} past": run.cache(mixer, name, run.past_tokens) for name in ("k", "v")}
