"""Kernels that are put in place of transformers' own code, as Liger-Kernel, Unsloth and fms-acceleration bring them.

Sources: linkedin/Liger-Kernel ``ops/rms_norm.py``, ``ops/rope.py``, ``ops/swiglu.py``; unslothai/unsloth ``kernels/`` and, taken
from it, foundation-model-stack/fms-acceleration ``fms_acceleration_foak/kernels/unsloth`` and ``fused_ops/unsloth_lora/bnb``.
Each is one autograd function, whose backward writes over what it has read.

Compiled layers (``torch.compile``) keep the same of norms, rotations and SwiGLU: torch 2.13 ``_functorch/partitioners.py`` computes
pointwise operators again unless a product reads what they make, so that a norm's input with one number a row stays, gate and up do,
and what products read; their gradients lie in memory of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from planner.architecture.implementation import LLAMA, Implementation, implementation_of
from planner.architecture.layers import Architecture, Attention, DenseMLP, Layer, Norm
from planner.components.graph import Graph, Node
from planner.components.rules import Gradients, elementwise, passed_on
from planner.components.tape import Size
from planner.modelled import NotModelled

OPTION = "training.engine_options.fused_kernels"
KERNELS = ("rms_norm", "rope", "swiglu", "lora", "cross_entropy")
MULTIPROCESSORS = 132
"""Of an H100 (an A100 has 108): Liger's norm sums its weight's gradient in as many rows, 2 MB of Llama's, at no highest moment."""
COMPILE = "compile"
COMPILED = ("rms_norm", "rope", "swiglu", COMPILE)
"""What compiled layers of Llama's kind amount to."""


def fused_kernels_of(options: Mapping[str, object]) -> tuple[str, ...]:
    """The kernels that a training names, separated by commas. Raises :class:`NotModelled` for one that nobody has read."""
    if options.get(COMPILE):
        if options.get("fused_kernels"):
            raise NotModelled(f"{OPTION}: kernels inside compiled layers have no closed form; choose one of both")
        return COMPILED
    names = tuple(name.strip() for name in str(options.get("fused_kernels", "")).split(",") if name.strip())
    if set(names) - set(KERNELS):
        raise NotModelled(f"{OPTION}: choose of {', '.join(KERNELS)}")
    return names


def require_fusable(
    architecture: Architecture, names: tuple[str, ...], *, loss: str, masters: bool = False
) -> None:  # fmt: skip
    """Raise :class:`NotModelled` where a kernel stands for other code than that of the model's class.

    ``masters``: weights are in fp32, which autocast casts.
    """
    option = f"training.engine_options.{COMPILE}" if COMPILE in names else OPTION
    if COMPILE in names and masters:
        raise NotModelled(f"{option}: compiled layers over fp32 weights have no closed form; choose precision bf16")
    code, layers = implementation_of(architecture), architecture.decoder.layers
    reasons = {
        "rms_norm": "norms of another kind than Llama's" if not _norms_fit(architecture, code) else "",
        "rope": "another rotation than Llama's" if not all(_rotates_plainly(layer, code) for layer in layers) else "",
        "swiglu": "feed-forward blocks that are no SwiGLU" if not all(map(_is_swiglu, layers)) else "",
        "cross_entropy": "a loss that is not the model's own" if loss != "default" else "",
    }  # fmt: skip
    for name in names:
        if reasons.get(name):
            raise NotModelled(f"{option}: {name} is derived for Llama's code, and {architecture.model_class} has {reasons[name]}")


def _norms_fit(architecture: Architecture, code: Implementation | None) -> bool:
    norms = [norm for layer in architecture.decoder.layers for norm in layer.norms]
    plain = code is not None and (code.norm, code.qk_norm) == (LLAMA.norm, LLAMA.qk_norm)
    return plain and all(norm.kind == "rms" for norm in norms)


def _rotates_plainly(layer: Layer, code: Implementation | None) -> bool:
    mixers = layer.sequence
    plain = code is not None and code.rotary == LLAMA.rotary and not code.keeps_unrotated and not code.rotates_each
    return plain and all(isinstance(mixer, Attention) and mixer.rotary_dim == mixer.head_dim for mixer in mixers)


def _is_swiglu(layer: Layer) -> bool:
    return all(
        isinstance(channel, DenseMLP)
        and channel.gated
        and channel.activation == "silu"
        and not channel.fused_gate_up
        and not any(weight.role == "norm" for weight in channel.weights)
        for channel in layer.channel
    )


def fused_rms_norm(g: Graph, norm: Norm, name: str, source: str, rows: int) -> None:
    """One kernel that keeps its input and a reciprocal root for each row; the gradient is written over the one that came."""
    g.hold(f"{name} root", g.run.row(rows))
    partial_sums = Size(multiprocessors=0 if COMPILE in g.run.fused else MULTIPROCESSORS, features=norm.width, fp32_bytes=4)
    rule = partial(_over_gradient, partial_sums=partial_sums)
    g.make(name, g.run.rows(norm.width, rows), (source,), (source, f"{name} root"), rule, weights=norm.weights)
    g.free(f"{name} root")


def _over_gradient(g: Graph, node: Node, gradient: str, partial_sums: Size) -> Gradients:
    """The input's gradient over that of the result; a trained weight has a row of sums for each multiprocessor, then its own."""
    if node.trains:
        sums = g.held(f"{node.out} sums of d_weight", node, partial_sums)
        g.weight_gradients(node)
        g.settle_weight_gradients(node)
        g.consume(sums)
    return passed_on(g, node, gradient)


def fused_swiglu(g: Graph, name: str, size: Size) -> None:
    """silu(``gate``) · ``up`` in one kernel that keeps both, and writes their gradients over them (compiled: beside them)."""
    rule = elementwise if COMPILE in g.run.fused else partial(_over_inputs, size=size)
    g.make(name, size, ("gate", "up"), ("gate", "up"), rule)


def _over_inputs(g: Graph, node: Node, gradient: str, size: Size) -> Gradients:  # noqa: ARG001
    """The gradients of what was saved, in the place of it."""
    for storage in node.saves:
        g.consume(storage.name)
    return [(tensor, g.held(f"d {tensor}", node, size)) for tensor in reversed(node.wanted)]
