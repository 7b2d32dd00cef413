"""A whole layer of a decoder, forward, backward and recomputed, laid from its blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

from planner.architecture.counts import layer_groups, waits_for_images
from planner.architecture.implementation import LLAMA, Implementation, implementation_of
from planner.architecture.layers import (
    Architecture,
    Attention,
    ChannelMixer,
    DenseMLP,
    LatentAttention,
    Layer,
    MixtureOfExperts,
    Norm,
    Recurrent,
    SequenceMixer,
)
from planner.components.attention import attention_forward
from planner.components.autocast import is_wide
from planner.components.autocast import narrowed as narrowed_size
from planner.components.beside import dense_beside_experts, is_dense_beside_experts, per_layer_input
from planner.components.cache import cache_component, cached_tensors
from planner.components.compressed import hyper_layer, streams_of
from planner.components.graph import KEPT, Graph, Record, Stopped
from planner.components.latent import latent_forward
from planner.components.mlp import mlp_forward
from planner.components.moe import moe_forward
from planner.components.norms import norm_forward
from planner.components.operators import add, multiply
from planner.components.recompute import as_checkpoint
from planner.components.recurrent import recurrent_forward, unmodelled_recurrent
from planner.components.recurrent.arrangements import (
    is_shared_before,
    is_side_by_side,
    normed_residual,
    shared_before,
    side_by_side,
)
from planner.components.run import FP32_BYTES, Run
from planner.components.tape import Held, Size, Span
from planner.modelled import NotModelled
from planner.record import record

CHECKPOINT = "checkpoint"
SHARED = ("k rotated", "v")
"""What a layer without keys and values of its own reads of another."""


@record
class Laid:
    """A layer's forward: what it does to memory, and what its backward needs."""

    span: Span
    record: Record
    live: Mapping[str, Held]


def require_modelled(architecture: Architecture, *, eager: bool = False, static: bool = False) -> Implementation:
    """How the family is written. Raises :class:`NotModelled` for layers, or a choice, without a closed form."""
    if architecture.kind != "decoder":
        raise NotModelled(f"{architecture.model_class}: activations are modelled for decoders")
    code = implementation_of(architecture)
    if code is None:
        code = LLAMA
        if architecture.verified or not all(is_plain(layer) for layer, _ in layer_groups(architecture.decoder)):
            raise NotModelled(
                f"{architecture.model_class}: what its blocks hold while they compute has no closed form; a rehearsal tells"
            )
    for layer, _ in layer_groups(architecture.decoder):
        reason = _unmodelled(layer, code, eager=eager)
        if reason:
            raise NotModelled(f"{architecture.model_class}: activations of {reason} are not modelled")
    mixers = [mixer for layer in architecture.decoder.layers for mixer in layer.sequence]
    if static and not all(isinstance(mixer, Attention) and mixer.kv == "own" for mixer in mixers):
        raise NotModelled(f"{architecture.model_class}: a static cache is modelled for keys and values of every head alone")
    return code


def is_plain(layer: Layer) -> bool:
    """Whether a layer is built as Llama's are: two RMS norms, causal attention, a gated feed-forward, one after the other."""
    if layer.parallel or len(layer.sequence) != 1 or len(layer.channel) != 1 or len(layer.norms) != 2:
        return False
    mixer, channel = layer.sequence[0], layer.channel[0]
    if not isinstance(mixer, Attention) or not isinstance(channel, DenseMLP) or any(norm.kind != "rms" for norm in layer.norms):
        return False
    variants = (mixer.fused_qkv, mixer.output_gate, mixer.has_sinks, mixer.logit_softcap, channel.fused_gate_up, not channel.gated)
    return mixer.kv == "own" and mixer.qk_norm != "full_width" and not any(variants) and not layer.weights


def _unmodelled(layer: Layer, code: Implementation, *, eager: bool) -> str:
    """What of a layer has no closed form, in words; empty when all has."""
    arranged = is_side_by_side(layer) or is_shared_before(layer)
    if (len(layer.sequence) > 1 and not arranged) or (len(layer.channel) > 1 and not is_dense_beside_experts(layer)):
        return "layers with several mixers side by side"
    reasons = [_unmodelled_sequence(mixer, code, eager=eager) for mixer in layer.sequence]
    if len(layer.norms) != _expected_norms(layer, code) and not layer.parallel and not is_shared_before(layer):
        reasons.append("this arrangement of norms")
    return next((reason for reason in reasons if reason), "")


def _unmodelled_sequence(mixer: SequenceMixer, code: Implementation, *, eager: bool) -> str:
    if isinstance(mixer, Recurrent):
        return unmodelled_recurrent(mixer)
    if isinstance(mixer, LatentAttention):
        reasons = {
            "latent attention computed eagerly": eager,
        }
    else:
        reasons = {
            "attention that reads other sequences": not mixer.causal,
            "attention without rotary embeddings": code.rotates_always and not mixer.rotary_dim,
            "norms of queries and keys that nobody read": mixer.qk_norm == "none" and bool(_HEAD_NORMS & modules_of(mixer)),
            "eager attention in a class of its own code": eager and code.masked,
        }
    return next((reason for reason, holds in reasons.items() if holds), "")


_HEAD_NORMS = frozenset(("q_norm", "k_norm", "q_layernorm", "k_layernorm"))


def modules_of(mixer: Attention) -> set[str]:
    """Names of the modules that hold a mixer's weights, and of those that these are in."""
    return {module for weight in mixer.weights for module in weight.name.split(".")[:-1]}


def _expected_norms(layer: Layer, code: Implementation) -> int:
    if is_dense_beside_experts(layer):
        return 7
    return (len(layer.sequence) + len(layer.channel)) * (2 if code.placement == "sandwich" else 1)


def layer_forward(layer: Layer, run: Run, *, saving: bool, keeps_input: bool = False) -> Laid:
    """One layer from its input ``x`` to its output, which takes the input's place.

    ``saving``: autograd is on. ``keeps_input``: the input outlives the layer (it is a checkpoint) and counts as an
    activation.
    """
    start = {"x": Held(run.entering(), "workspace")}
    for name, size in cached_tensors(layer, run).items():
        start[name] = Held(size, cache_component(name))
    if not saving:
        start |= {name: Held(size, "workspace") for name, size in outliving(layer, run).items()}
    g = Graph(run, saving=saving, start=start, constants=run.constants, keeping=not saving and bool(run.keeps))
    if waits_for_images(layer):
        span = g.span()
        return Laid(span, g.record, span.live)
    _forward(g, layer)
    g.name_results()
    if keeps_input:
        g.consume("x")
        g.hold(CHECKPOINT, run.entering(), "activations")
    elif g.is_saved("x"):
        g.rename("x", "layer input")
    else:
        g.free("x")
    g.rename("y", "x")
    span = g.span()
    return Laid(span, g.record, span.live)


def outliving(layer: Layer, run: Run) -> dict[str, Size]:
    """What a layer of the same kind before this one leaves alive: its attention's probabilities, in some families."""
    mixer = layer.sequence[0] if layer.sequence else None
    if not run.code.keeps_probabilities or not isinstance(mixer, Attention):
        return {}
    scores = run.scores(mixer.num_heads, run.past_cells(mixer) + run.sequence)
    return {"earlier probabilities": narrowed_size(scores) if run.autocast else scores}


def layer_backward(run: Run, laid: Laid) -> Span:
    """From the gradient of the output, ``d``, to that of the input, with everything the forward saved used up."""
    start = {name: held for name, held in laid.live.items() if held.component == "activations"}
    g = Graph(run, start=start | {"d": Held(run.stream(), "workspace")})
    return _finish(g, laid.record, {"y": "d"}) if laid.record.nodes else g.span()


def layer_recomputed(layer: Layer, run: Run, laid: Laid, *, offloaded: bool = False) -> Span:
    """Backward of a checkpointed layer: forward again until the last saved tensor, then backward.

    ``torch.utils.checkpoint`` (non-reentrant) begins the second forward when the backward first reads something saved, and
    stops it as soon as everything saved is back. ``laid``: the first forward, whose kept results are not made again;
    ``offloaded``: the layer's input comes back from the host.
    """
    if waits_for_images(layer):
        return Graph(run).span()
    run = replace(run, cached=False)
    first = Graph(run, saving=True, start={"x": Held(run.entering(), "activations")}, constants=run.constants)
    _forward(first, layer)
    kept = {name: held for name, held in laid.live.items() if name.startswith(KEPT)}
    again = kept | _checkpointed(run, offloaded=offloaded)
    g = Graph(run, saving=True, start=again, stop_after=first.record.saves, constants=run.constants, kept=list(kept))
    gradients = {"y": "d"}
    record = g.begin_backward(first.record, gradients)
    g.bring("x", run.entering(), "" if offloaded else CHECKPOINT)
    try:
        _forward(g, layer)
    except Stopped:
        g.release_unsaved(*(() if offloaded else ("x",)), *gradients.values(), *kept)
    return _finish(g, record, gradients, "x", *kept)


def layer_recomputed_whole(layer: Layer, run: Run, *, offloaded: bool = False) -> Span:
    """As :func:`layer_recomputed` by ``CheckpointFunction`` (reentrant).

    The second forward runs to its end; its result and the gradient that came are held until the backward inside is over.
    """
    if waits_for_images(layer):
        return Graph(run).span()
    run = replace(run, cached=False)
    g = Graph(run, saving=True, start=_checkpointed(run, offloaded=offloaded), constants=run.constants)
    g.bring("x", run.entering(), "" if offloaded else CHECKPOINT)
    _forward(g, layer)
    return _finish(g, g.record, {"y": g.share("d")}, "x", "y", "d")


def _checkpointed(run: Run, *, offloaded: bool) -> dict[str, Held]:
    """What the backward of a checkpointed layer starts with."""
    kept = {} if offloaded else {CHECKPOINT: Held(run.entering(), "activations")}
    return kept | {"d": Held(run.stream(), "workspace")}


def _finish(g: Graph, record: Record, gradients: dict[str, str], *gone: str) -> Span:
    """Run the backward; the gradient of the input takes the place of the output's. ``gone``: what goes with the layer."""
    gradients = g.backward(record, gradients)
    g.consume(*(name for name in gone if name not in gradients.values()))
    g.consume(*(gradient for leaf, gradient in gradients.items() if leaf in SHARED))
    if "x" in gradients:
        g.rename(gradients["x"], "d")
    return g.span()


def _name_shared(g: Graph, layer: Layer) -> None:
    """Keys and values of another layer, which holds them: this layer's part of their gradients goes into one sum for all."""
    for mixer in layer.sequence:
        if g.saving and isinstance(mixer, Attention) and mixer.kv == "shared":
            widths = zip(SHARED, (mixer.head_dim, mixer.value_head_dim), strict=True)
            g.record.sizes.update({name: g.run.heads(mixer.num_kv_heads, width) for name, width in widths})


def sequence_forward(g: Graph, mixer: SequenceMixer, source: str, target: str) -> None:
    """A sequence mixer by its kind: reads the live tensor ``source`` (which its owner frees), leaves ``target``."""
    forward = partial(_sequence_forward, mixer=mixer, source=source, target=target)
    if g.saving and g.run.recomputes == "attention":
        as_checkpoint(g, forward, source, target)
    else:
        forward(g)


def _sequence_forward(g: Graph, mixer: SequenceMixer, source: str, target: str) -> None:
    match mixer:
        case Attention():
            attention_forward(g, mixer, source, target)
        case LatentAttention():
            latent_forward(g, mixer, source, target)
        case Recurrent():
            recurrent_forward(g, mixer, source, target)


def channel_forward(g: Graph, mixer: ChannelMixer, source: str, target: str) -> None:
    """A channel mixer by its kind, as :func:`sequence_forward`."""
    forward = partial(_channel_forward, mixer=mixer, source=source, target=target)
    if g.saving and g.run.recomputes == "mlp":
        as_checkpoint(g, forward, source, target)
    else:
        forward(g)


def _channel_forward(g: Graph, mixer: ChannelMixer, source: str, target: str) -> None:
    match mixer:
        case DenseMLP():
            mlp_forward(g, mixer, source, target)
        case MixtureOfExperts():
            moe_forward(g, mixer, source, target)


def _forward(g: Graph, layer: Layer) -> None:
    """``x`` to ``y``; ``x`` stays, its owner frees it."""
    _name_shared(g, layer)
    placement = g.run.code.recurrent_placement
    if placement is not None and any(isinstance(mixer, Recurrent) for mixer in layer.sequence):
        g.run = replace(g.run, code=replace(g.run.code, placement=placement))
    if streams_of(layer) > 1:
        hyper_layer(g, layer)
    elif is_side_by_side(layer):
        side_by_side(g, layer)
    elif is_shared_before(layer):
        shared_before(g, layer)
    elif layer.parallel:
        _parallel(g, layer)
    elif g.run.code.placement == "normed_residual":
        normed_residual(g, layer)
    else:
        _in_sequence(g, layer)
    g.free("earlier probabilities")
    if g.run.code.keeps_probabilities and not g.saving:
        g.rename("probabilities", "earlier probabilities")
    g.free("probabilities")


def _in_sequence(g: Graph, layer: Layer) -> None:
    """Mixer after mixer, each with its norms and its residual."""
    norms, stream = iter(layer.norms), "x"
    for mixer in layer.sequence:
        stream = _branch(g, layer, norms, stream, "attention", partial(sequence_forward, g, mixer, target="attention"))
    if is_dense_beside_experts(layer):
        stream = dense_beside_experts(g, layer, norms, stream)
    elif layer.channel:
        stream = _branch(g, layer, norms, stream, "mlp", partial(channel_forward, g, layer.channel[0], target="mlp"))
    g.free("attention", "attention norm")
    stream = per_layer_input(g, layer, stream)
    g.rename(stream, "y")


def _branch(g: Graph, layer: Layer, norms: Iterator[Norm], stream: str, name: str, forward: Callable[[str], None]) -> str:
    """One mixer between its norms, added to the residual ``stream``; returns the sum's name."""
    code, source, branch = g.run.code, stream, name
    if code.placement not in ("post", "after"):
        source = f"{name} norm"
        read = narrowed(g, layer, stream)
        norm_forward(g, next(norms), source, read)
        g.free("narrowed")
    forward(source)
    if code.placement not in ("post", "after") and not (name == "attention" and code.keeps_norm):
        g.free(source)
    if code.placement not in ("pre", "after"):
        branch = f"{name} normed"
        norm_forward(g, next(norms), branch, name)
        g.free(name)
    if layer.dropout and g.saving:
        dropped(g, branch)
    out, added = f"residual after {name}", branch
    if code.scales_branches:
        added = f"{branch} scaled"
        multiply(g, added, g.size_of(branch), branch)
    add(g, out, _sum_size(g, stream, added), stream, added)
    if added != branch:
        g.free(added)
    if name != "attention" or not code.keeps_attention:
        g.free(branch)
    if stream != "x":
        g.free(stream)
    if code.placement == "after":
        norm_forward(g, next(norms), f"{out} normed", out)
        g.free(out)
        return f"{out} normed"
    return out


def _sum_size(g: Graph, *inputs: str) -> Size:
    """The residual stream's, in 16 bit as long as nothing wider was added (the first layer behind embeddings in 16 bit)."""
    if g.run.narrow_input and not any(is_wide(g.size_of(name)) for name in inputs):
        return g.run.entering()
    return g.run.stream()


def narrowed(g: Graph, layer: Layer, stream: str) -> str:
    """A residual that the layer keeps in fp32 is cast to the norm's dtype first (``MambaBlock.forward``)."""
    if not layer.residual_in_fp32 or g.run.dtype_bytes == FP32_BYTES:
        return stream
    g.make("narrowed", g.run.hidden(), (stream,))
    return "narrowed"


def dropped(g: Graph, name: str) -> None:
    """A dropout in the place of its input; autograd keeps a mask of one byte an element."""
    g.make("dropped", g.size_of(name), (name,))
    g.hold(f"{name} mask", g.run.dropout_mask())
    g.save_for_last(f"{name} mask")
    g.free(f"{name} mask", name)
    g.rename("dropped", name)


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
    if layer.dropout and g.saving:
        dropped(g, "attention")
        dropped(g, "mlp")
    if run.code.sums_in_place:
        add(g, "y", run.hidden(), "mlp", "attention", "x")
    else:
        add(g, "both", g.size_of("mlp") if run.autocast else run.hidden(), "attention", "mlp")
        add(g, "y", run.hidden(), "both", "x")
    g.free("attention norm", "mlp norm", "both", "attention", "mlp")
