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
from planner.architecture.layers import Architecture, Attention, DenseMLP, Layer, Weight
from planner.components.tape import Size
from planner.modelled import NotModelled

if TYPE_CHECKING:
    from planner.components.graph import Gradients, Graph, Node

HALF_BYTES = 2
FP32_BYTES = 4
CACHED = "in 16 bit"
"""How names of cast weights end."""
PLAIN_ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu", "gelu_fast_tanh")
"""One kernel that runs in the dtype of its input."""


def require_autocast(architecture: Architecture, *, masters: bool, prepared: bool = False, checkpointed: bool = False) -> None:
    """Raise :class:`NotModelled` for families whose tensors under autocast nobody has read.

    ``masters``: over fp32 weights; ``prepared``: over quantised ones with all others in fp32; ``checkpointed``: recomputed.
    """
    code, layers = implementation_of(architecture), architecture.decoder.layers
    if code is None or not all(_is_dense(layer) and (masters or _is_plain(layer)) for layer in layers):
        raise NotModelled(
            f"{architecture.model_class}: mixed precision is modelled for dense blocks, of a frozen model for Llama's"
        )
    if code.attention not in (("sdpa",) if masters else ("sdpa", "eager")) or code.masked:
        raise NotModelled(f"{architecture.model_class}: mixed precision of this attention has no closed form yet")
    if masters and not all(_is_read(layer, code, checkpointed=checkpointed) for layer in layers):
        raise NotModelled(
            f"{architecture.model_class}: mixed precision of these norms, rotations or activations has no closed form yet"
        )
    if prepared and (
        code.normed_after_rotation or code.rotary not in ("halves", "joined", "wide") or (checkpointed and code.placement != "pre")
    ):
        raise NotModelled(f"{architecture.model_class}: mixed precision of these blocks over fp32 norms has no closed form yet")


def _is_dense(layer: Layer) -> bool:
    """Attention and a dense feed-forward block, nothing beside them."""
    mixers = [mixer for mixer in layer.sequence if isinstance(mixer, Attention)]
    channels = [channel for channel in layer.channel if isinstance(channel, DenseMLP)]
    return len(mixers) == len(layer.sequence) and len(channels) == len(layer.channel) and not layer.weights


def _is_plain(layer: Layer) -> bool:
    """RMS norms, one block after the other, an activation of one kernel."""
    channels = [channel for channel in layer.channel if isinstance(channel, DenseMLP)]
    one_kernel = all(channel.activation in PLAIN_ACTIVATIONS for channel in channels)
    return one_kernel and not layer.parallel and all(norm.kind == "rms" for norm in layer.norms)


def _is_read(layer: Layer, code: Implementation, *, checkpointed: bool) -> bool:
    """Over fp32 weights: what was compared with the model's own run, with whole layers recomputed or without."""
    mixers = [mixer for mixer in layer.sequence if isinstance(mixer, Attention)]
    activations = {channel.activation for channel in layer.channel if isinstance(channel, DenseMLP)}
    if code.normed_after_rotation or any(mixer.output_gate or mixer.kv != "own" or mixer.has_sinks for mixer in mixers):
        return False
    whole = all(mixer.rotary_dim in (0, mixer.head_dim) for mixer in mixers)
    known_whole = ("halves", "wide", "pairs_wide") if checkpointed else ("halves", "wide", "pairs_wide", "joined")
    known_partial = ("halves",) if all(mixer.fused_qkv for mixer in mixers) and not checkpointed else ()
    if code.rotary not in (known_whole if whole else known_partial):
        return False
    known = {*PLAIN_ACTIVATIONS} - {"relu"} if checkpointed else {*PLAIN_ACTIVATIONS, "gelu_new"}
    return activations <= known and (code.placement == "pre" or all(norm.kind == "rms" for norm in layer.norms))


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
    """Norms are written for the dtype of what they read: of a mixer's result under autocast that is 16 bit."""
    run = g.run
    if run.autocast and run.dtype_bytes == FP32_BYTES and not is_wide(g.size_of(source)):
        g.run = replace(run, dtype_bytes=HALF_BYTES)
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
    """A linear over fp32 weights: its input is cast (each time), and its weight (once), which autograd keeps in 16 bit.

    Without autograd the cast weight stays in autocast's cache.
    """
    read, cast = source, f"{name} weight {CACHED}"
    wide = is_wide(g.size_of(source))
    if wide:
        read = f"{name} input {CACHED}"
        g.make(read, narrowed(g.size_of(source)), (source,))
    outputs, inputs = weights[0].shape
    g.make(cast, Size(out_features=outputs, in_features=inputs, bytes=HALF_BYTES), (), (), _widened_gradient, weights=weights)
    if g.saving:
        moment = size if copies else None
        g.make(name, size, (read, cast), (read, cast), _cast_rule, component=component, moment=moment)
        g.free(cast)
    else:
        g.hold(name, size, component)
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
