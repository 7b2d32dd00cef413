"""Automatic mixed precision: which tensors ``torch.autocast`` makes beside those of the model's dtype.

Sources: torch 2.13 ``aten/src/ATen/autocast_mode.cpp`` (matrix products and attention run in 16 bit; casts of trained fp32
leaves are cached until autocast ends, those of activations are not) and ``autocast_mode.h`` (the lists of operators). Norms and
the residual stream of an fp32 model stay fp32; a product of a 16-bit with an fp32 tensor is fp32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from planner.architecture.implementation import Implementation, implementation_of
from planner.architecture.layers import (
    Architecture,
    Attention,
    DenseMLP,
    LatentAttention,
    Layer,
    MixtureOfExperts,
    Recurrent,
    SequenceMixer,
    Weight,
)
from planner.components.tape import Size
from planner.modelled import NotModelled

if TYPE_CHECKING:
    from planner.components.graph import Graph, Node
    from planner.components.rules import Gradients

HALF_BYTES = 2
FP32_BYTES = 4
CACHED = "in 16 bit"
"""How names of cast weights end."""
PLAIN_ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu", "gelu_fast_tanh")
"""One kernel that runs in the dtype of its input."""


READ_RECURRENCES = ("mamba2", "short_conv", "gated_delta_net")
READ = ("sdpa", "eager", "eager_wide", "alibi")
"""Ways of computing attention whose tensors under autocast are derived."""


def require_autocast(
    architecture: Architecture,
    *,
    eager: bool = False,
    quantised: bool = False,
    prepared: bool = False,
    checkpointed: bool = False,
    narrow_ends: bool = False,
    masters: bool = False,
) -> None:
    """Raise :class:`NotModelled` for families whose tensors under autocast nobody has read.

    ``eager``: that was asked for; ``quantised``: over quantised weights, ``prepared``: with all others in fp32;
    ``checkpointed``: recomputed; ``narrow_ends``: with embeddings and head in 16 bit; ``masters``: over fp32 weights.
    Encoders, which are laid apart, say for themselves what of them is derived.
    """
    if architecture.kind != "decoder":
        return
    code, layers = implementation_of(architecture), architecture.decoder.layers
    if code is None or not all(_is_read(layer, masters=masters) for layer in layers):
        raise NotModelled(f"{architecture.model_class}: mixed precision of {_unread(layers)} has no closed form yet")
    mixers = [mixer for layer in layers for mixer in layer.sequence if isinstance(mixer, Attention)]
    if (
        code.attention not in READ
        or code.copies_parts
        or (eager and code.attention != "eager")
        or any(mixer.kv != "own" for mixer in mixers)
    ):
        raise NotModelled(f"{architecture.model_class}: mixed precision of this attention has no closed form yet")
    if code.norm == "added" and has_wide_norms(architecture):
        raise NotModelled(f"{architecture.model_class}: mixed precision of these layer norms has no closed form yet")
    if narrow_ends and (code.norm != "cast" or code.placement != "pre"):
        raise NotModelled(f"{architecture.model_class}: embeddings in 16 bit beside these norms have no closed form yet")
    widened_by_norms = quantised and has_wide_norms(architecture)
    if widened_by_norms and any(isinstance(channel, MixtureOfExperts) for layer in layers for channel in layer.channel):
        raise NotModelled(f"{architecture.model_class}: mixed precision of experts behind layer norms has no closed form yet")
    if prepared and widened_by_norms:
        raise NotModelled(f"{architecture.model_class}: mixed precision over layer norms cast to fp32 has no closed form yet")
    if (prepared or widened_by_norms) and not _is_read_prepared(layers, code, checkpointed=checkpointed):
        raise NotModelled(f"{architecture.model_class}: mixed precision of these blocks over fp32 norms has no closed form yet")


def has_wide_norms(architecture: Architecture) -> bool:
    """Whether norms are ``torch.nn.LayerNorm``, which is on autocast's fp32 list.

    A 4-bit linear (``Linear4bit``) gives its result in the dtype of what it reads, so that feed-forward blocks, and with them
    the residual stream, are in fp32 then.
    """
    code = implementation_of(architecture)
    plain = code is not None and code.norm != "centred"
    return plain and any(norm.kind != "rms" for layer in architecture.decoder.layers for norm in layer.norms)


def _is_read(layer: Layer, *, masters: bool) -> bool:
    """Attention and a feed-forward block or experts, nothing beside them; over fp32 weights no sparse attention's indexer."""
    if masters and any(isinstance(mixer, LatentAttention) and mixer.indexer is not None for mixer in layer.sequence):
        return False
    mixers = [mixer for mixer in layer.sequence if isinstance(mixer, Attention | LatentAttention) or _is_read_recurrence(mixer)]
    channels = [channel for channel in layer.channel if isinstance(channel, DenseMLP | MixtureOfExperts)]
    return len(mixers) == len(layer.sequence) and len(channels) == len(layer.channel) and not layer.weights


def _is_read_prepared(layers: Sequence[Layer], code: Implementation, *, checkpointed: bool) -> bool:
    """One block after the other, an activation of one kernel."""
    channels = [channel for layer in layers for channel in layer.channel if isinstance(channel, DenseMLP)]
    if any(channel.activation not in PLAIN_ACTIVATIONS for channel in channels) or any(layer.parallel for layer in layers):
        return False
    if (
        code.norm == "centred"
        or code.attention not in ("sdpa", "eager")
        or code.masked
        or code.normed_after_rotation
        or checkpointed > (code.placement == "pre")
    ):
        return False
    return code.rotary in ("halves", "joined", "wide")


def _unread(layers: Sequence[Layer]) -> str:
    """What stands in the layers that nobody has read under autocast, in the field's words."""
    kinds = {mixer.kind for layer in layers for mixer in layer.sequence if isinstance(mixer, Recurrent)}
    found = sorted(kind.replace("_", " ") for kind in kinds if kind not in READ_RECURRENCES)
    return f"{' and '.join(found)} mixers" if found else "these blocks"


def _is_read_recurrence(mixer: SequenceMixer) -> bool:
    """Short convolutions, delta nets, and Mamba-2 whose projections are not multiplied (Falcon-H1's are)."""
    return isinstance(mixer, Recurrent) and mixer.kind in READ_RECURRENCES and not mixer.scaled_input


@contextmanager
def in_16_bit(g: Graph) -> Iterator[None]:
    """Inside a mixer of an fp32 model under autocast, what products make is in 16 bit."""
    run = g.run
    if run.autocast and run.parameter_bytes and run.dtype_bytes == FP32_BYTES:
        g.run = replace(run, dtype_bytes=HALF_BYTES)
    yield
    g.run = run


@contextmanager
def of_16_bit(g: Graph) -> Iterator[None]:
    """Attention's kernels are on autocast's 16-bit list, whatever they read."""
    run = g.run
    if run.autocast:
        g.run = replace(run, dtype_bytes=HALF_BYTES)
    yield
    g.run = run


@contextmanager
def as_wide_as(g: Graph, source: str) -> Iterator[None]:
    """Norms are written for the dtype of what they read: under autocast a mixer's result is in 16 bit, rotated queries in fp32."""
    run = g.run
    if run.autocast:
        bytes_ = FP32_BYTES if is_wide(g.size_of(source)) else HALF_BYTES
        g.run = run if bytes_ == run.dtype_bytes else replace(run, dtype_bytes=bytes_)
    yield
    g.run = run


def is_wide(size: Size) -> bool:
    """Whether a tensor's values are fp32."""
    return size.values.get("bytes") == FP32_BYTES or "fp32_bytes" in size.values


def narrowed(size: Size) -> Size:
    """The same number of values in 16 bit."""
    values = {key: value for key, value in size.values.items() if key not in ("bytes", "fp32_bytes")}
    return Size(**values, bytes=HALF_BYTES)  # type: ignore[arg-type]


def widened(size: Size) -> Size:
    """The same number of values in fp32."""
    values = {key: value for key, value in size.values.items() if key not in ("bytes", "fp32_bytes")}
    return Size(**values, bytes=FP32_BYTES)  # type: ignore[arg-type]


def cast_product(g: Graph, name: str, source: str, size: Size, weights: Sequence[Weight], component: str, *, copies: bool) -> None:
    """A linear over fp32 weights: its input is cast (each time), and its weight.

    Of a trained weight the cast stays in autocast's cache, of a frozen one (and of a view of one, as classes of linears of their
    own multiply with) it goes with the product; autograd keeps it where the input needs a gradient.
    """
    read, cast = source, f"{name} weight {CACHED}"
    wide, trains = is_wide(g.size_of(source)), g.run.trains(weights)
    if wide:
        read = f"{name} input {CACHED}"
        g.make(read, narrowed(g.size_of(source)), (source,))
    outputs, inputs = weights[0].shape
    rows = {"num_experts": weights[0].count} if weights[0].count > 1 else {}
    outputs = sum(weight.shape[0] for weight in weights if weight.role != "bias") if rows else outputs
    whole, moment = Size(**rows, out_features=outputs, in_features=inputs, bytes=HALF_BYTES), size if copies else None
    if trains and g.saving:
        g.make(cast, whole, (), (), _widened_gradient, weights=weights)
        with g.operator("mm"):
            g.make(name, size, (read, cast), (read, cast), _cast_rule, component=component, moment=moment)
    else:
        g.hold(cast, whole)
        with g.operator("mm"):
            g.make(name, size, (read,), (cast,), _cast_rule, component=component, moment=moment)
    if not trains or g.run.code.own_linears or g.is_saved(cast):
        g.free(cast)
    if wide:
        g.free(read)


def _widened_gradient(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """What was made for the weight's cast, in fp32."""
    g.weight_gradients(node)
    g.settle_weight_gradients(node)
    return []


def _cast_rule(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """The weight's gradient in 16 bit, then the input's."""
    copied = [g.held(f"d {node.out} by token", node, node.moment)] if node.moment is not None else []
    made = [(tensor, g.gradient(tensor, node)) for tensor in reversed(node.wanted)]
    g.consume(*copied)
    return made
