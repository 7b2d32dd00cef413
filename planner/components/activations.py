"""Activation functions that transformers computes in several tensors (activations.py); the others are one kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planner.architecture.layers import Weight
from planner.components.autocast import is_wide, widened
from planner.components.graph import Graph, Node
from planner.components.operators import add, multiply
from planner.components.rules import Gradients, passed_on, power, weighted
from planner.components.tape import Size
from planner.modelled import NotModelled


def activate(g: Graph, activation: str, source: str, target: str, size: Size, learned: Sequence[Weight] = ()) -> None:
    """``target`` = activation(``source``), which its owner frees. ``learned``: parameters of the activation itself."""
    if activation == "xielu":
        _xielu(g, source, target, size, learned)
        return
    written = {"gelu_new": _gelu_new, "bloom_gelu": _bloom_gelu, "relu2": _relu_squared, "quick_gelu": _quick_gelu}
    if activation in written:
        written[activation](g, source, target, size)
    else:
        saved = target if activation == "relu" else source
        g.make(target, size, (source,), (saved,))


def _gelu_new(g: Graph, source: str, target: str, size: Size) -> None:
    """0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))) (``NewGELUActivation``).

    Powers are on autocast's fp32 list, and what follows of them is fp32 too.
    """
    multiply(g, "half of x", size, source)
    narrow, base = size, source
    if g.run.autocast and not is_wide(g.size_of(source)):
        base, size = "x fp32", widened(size)
        g.make(base, size, (source,))
    g.make("x cubed", size, (base,), (base,), power)
    g.free("x fp32")
    _replace(g, "x cubed", "x cubed scaled", size)
    add(g, "x and cubed", size, source, "x cubed scaled")
    g.free("x cubed scaled")
    _replace(g, "x and cubed", "inside", size)
    g.make("tanh", size, ("inside",), ("tanh",))
    g.free("inside")
    g.make("one and tanh", size, ("tanh",), (), passed_on)
    g.free("tanh")
    both = ("half of x", "one and tanh")
    g.make(target, size, both, both, None if size is narrow else in_the_widest)
    g.free(*both)


def in_the_widest(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """Of the product of a 16-bit and an fp32 tensor both gradients are made in fp32."""
    return [(tensor, g.held(f"d {tensor}", node, g.record.sizes[node.out])) for tensor in node.wanted]


def _bloom_gelu(g: Graph, source: str, target: str, size: Size) -> None:
    """The same polynomial in products (``bloom_gelu_forward``); its own backward keeps x alone."""
    for name in ("half of x", "x scaled", "x small"):
        g.hold(name, size)
    g.hold("x squared", size)
    g.free("x small")
    g.hold("one and squared", size)
    g.free("x squared")
    g.hold("inside", size)
    g.free("x scaled", "one and squared")
    g.hold("tanh", size)
    g.free("inside")
    g.hold("one and tanh", size)
    g.free("tanh")
    g.make(target, size, (source,), (source,))
    g.free("half of x", "one and tanh")


def _relu_squared(g: Graph, source: str, target: str, size: Size) -> None:
    g.make("relu", size, (source,), ("relu",))
    g.make(target, size, ("relu",), ("relu",), power)
    g.free("relu")


def _quick_gelu(g: Graph, source: str, target: str, size: Size) -> None:
    """x · sigmoid(1.702 x)."""
    multiply(g, "x scaled", size, source)
    g.make("sigmoid", size, ("x scaled",), ("sigmoid",))
    g.free("x scaled")
    multiply(g, target, size, source, "sigmoid")
    g.free("sigmoid")


def _xielu(g: Graph, source: str, target: str, size: Size, learned: Sequence[Weight]) -> None:
    """α₊ x² + βx above zero, (eˣ − 1 − x) α₋ + βx below (``XIELUActivation._xielu_python``), both computed everywhere."""
    if g.run.autocast:
        raise NotModelled("training.precision: xIELU under autocast has no closed form yet")
    above, below = ([weight for weight in learned if weight.name.endswith(name)] for name in ("alpha_p", "alpha_n"))
    g.hold("x above zero", _mask_of(size))
    g.make("x weighed", size, (source,), (), weighted, weights=above, for_weights=(source,))
    multiply(g, "x squared", size, "x weighed", source)
    g.free("x weighed")
    multiply(g, "x scaled", size, source)
    add(g, "upper", size, "x squared", "x scaled")
    g.free("x squared", "x scaled")
    g.make("x at most zero", size, (source,), (source,), _smaller)
    g.make("exponential", size, ("x at most zero",), ("exponential",), _less_one)
    g.free("x at most zero")
    g.make("exponential less x", size, ("exponential", source), (), _less)
    g.free("exponential")
    g.make("x curved", size, ("exponential less x",), (), weighted, weights=below, for_weights=("exponential less x",))
    g.free("exponential less x")
    multiply(g, "x scaled", size, source)
    add(g, "lower", size, "x curved", "x scaled")
    g.free("x curved", "x scaled")
    g.make(target, size, ("upper", "lower"), ("x above zero",))
    g.free("upper", "lower", "x above zero")


def _mask_of(size: Size) -> Size:
    """A boolean for every value of a tensor."""
    values: dict[str, Any] = {**size.values, "bytes": 1}
    return Size(**values)


def _smaller(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """``where(x == bound, grad / 2, grad)``, then zero where x was the larger (derivatives.yaml, ``minimum``)."""
    (tensor,) = node.inputs
    size = g.record.sizes[tensor]
    moments = [g.held("d equal", node, _mask_of(size)), g.held("d half", node, size)]
    made = g.gradient(tensor, node)
    g.consume(*moments)
    return [(tensor, made)]


def _less_one(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """grad · (result + 1)."""
    (tensor,) = node.inputs
    moment = g.held(f"{node.out} and one", node, g.record.sizes[tensor])
    made = g.gradient(tensor, node)
    g.consume(moment)
    return [(tensor, made)]


def _less(g: Graph, node: Node, gradient: str) -> Gradients:
    """A difference: the gradient itself, and its negative."""
    first, second = node.inputs
    return [(first, g.share(gradient)), (second, g.gradient(second, node))]


def _replace(g: Graph, old: str, new: str, size: Size) -> None:
    multiply(g, new, size, old)
    g.free(old)
