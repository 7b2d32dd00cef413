"""The causal depthwise convolution in front of a recurrence, with the last inputs kept as its state."""

from __future__ import annotations

from planner.architecture.layers import Recurrent, Weight
from planner.components.autocast import narrowed, widened
from planner.components.graph import Graph, Node
from planner.components.recurrent.states import CONV_STATE, conv_state
from planner.components.rules import Gradients, sliced
from planner.components.tape import Size


def causal_convolution(g: Graph, mixer: Recurrent, target: str, source: str = "") -> None:
    """``target`` = silu(conv(x)) for every channel (``causal_conv1d_fn`` and ``_update`` where the kernels are missing).

    The first forward of a sequence makes the state; it is padded on both sides and the surplus is a view away. One
    token later the state and the token are joined. Sizes: (batch, channels, sequence).
    """
    run, kernel = g.run, mixer.conv_kernel
    one = {"batch": run.batch, "channels": mixer.conv_channels, "bytes": run.dtype_bytes}
    steps = bool(run.past_tokens) and run.sequence == 1
    if steps:
        g.hold("conv input", Size(**one, tokens=kernel + 1))
        g.hold("convolved", Size(**one, tokens=2))
    else:
        if run.cached:
            g.hold(CONV_STATE, conv_state(mixer, run), "recurrent_state")
        inputs = _cast(g, source) if source else ()
        g.make(
            "convolved", Size(**one, tokens=run.sequence + kernel - 1), inputs, inputs, convolution_rule, weights=_weights(mixer)
        )
        g.free("conv in fp32", "conv in cast")
    size = Size(**one, tokens=run.sequence)
    g.view("convolved tokens", "convolved", sliced)
    g.make(target, size, ("convolved tokens",), ("convolved tokens",))
    g.free("convolved tokens", "convolved", "conv input")


def _cast(g: Graph, source: str) -> tuple[str, ...]:
    """What the convolution reads: beside fp32 weights it is cast to their dtype, and by autocast back."""
    if not g.run.autocast or not g.run.parameter_bytes:
        return (source,)
    g.make("conv in fp32", widened(g.size_of(source)), (source,))
    g.make("conv in cast", narrowed(g.size_of(source)), ("conv in fp32",))
    return ("conv in cast",)


def _weights(mixer: Recurrent) -> tuple[Weight, ...]:
    return tuple(weight for weight in mixer.weights if ".conv1d." in weight.name)


def convolution_rule(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """``convolution_backward``: the input's gradient, the weight's and the bias's."""
    made = [(tensor, g.gradient(tensor, node)) for tensor in node.inputs]
    g.weight_gradients(node)
    g.settle_weight_gradients(node)
    return made
