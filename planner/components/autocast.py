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

from planner.architecture.implementation import implementation_of
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
    code = implementation_of(architecture.model_type)
    if code is None or not all(_is_plain(layer, masters=masters) for layer in architecture.decoder.layers):
        raise NotModelled(f"{architecture.model_class}: mixed precision is modelled for blocks like Llama's")
    kernels = ("sdpa",) if masters else ("sdpa", "eager")
    if code.attention not in kernels or code.masked or (masters and (code.placement != "pre" or code.rotary != "halves")):
        raise NotModelled(f"{architecture.model_class}: mixed precision of this attention has no closed form yet")
    if prepared and (code.rotary not in ("halves", "joined", "wide") or (checkpointed and code.placement != "pre")):
        raise NotModelled(f"{architecture.model_class}: mixed precision of these blocks over fp32 norms has no closed form yet")


def _is_plain(layer: Layer, *, masters: bool) -> bool:
    """RMS norms, causal attention with a whole rotation, a dense feed-forward block with an activation of one kernel."""
    mixers = [mixer for mixer in layer.sequence if isinstance(mixer, Attention)]
    channels = [channel for channel in layer.channel if isinstance(channel, DenseMLP)]
    if len(mixers) != len(layer.sequence) or len(channels) != len(layer.channel) or layer.parallel or layer.weights:
        return False
    if any(norm.kind != "rms" for norm in layer.norms) or any(c.activation not in PLAIN_ACTIVATIONS for c in channels):
        return False
    rotated = all(mixer.rotary_dim == mixer.head_dim and mixer.kv == "own" for mixer in mixers)
    return not masters or (rotated and not any(mixer.output_gate or mixer.qk_norm == "full_width" for mixer in mixers))


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
    half = Size(out_features=outputs, in_features=inputs, bytes=HALF_BYTES)
    g.hold(cast, half)
    if g.saving:
        moment = size if copies else None
        g.make(name, size, (read,), (cast,), _cast_rule, component=component, weights=weights, moment=moment, for_weights=(read,))
        g.free(cast)
    else:
        g.hold(name, size, component)
    if wide:
        g.free(read)


def _cast_rule(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """The weight's gradient in 16 bit and the input's; then the weight's own in fp32."""
    copied = [g.held(f"d {node.out} by token", node, node.moment)] if node.moment is not None else []
    weight = node.weights[0]
    outputs, inputs = weight.shape
    half = [g.held(f"d {node.out} weight", node, Size(out_features=outputs, in_features=inputs, bytes=HALF_BYTES))]
    made = [(tensor, g.gradient(tensor, node)) for tensor in node.wanted]
    g.consume(*copied, *(storage.name for storage in node.saves[:1]))
    g.weight_gradients(node)
    g.consume(*half)
    g.settle_weight_gradients(node)
    return made
