"""Rules of the backward: which gradients an operator's node makes of the gradient of its result, and what it holds meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.components.graph import Graph, Node

Gradients = list[tuple[str, str]]
"""For each input that gets one: the input, and the name its gradient is held by."""


Rule = Callable[["Graph", "Node", str], Gradients]


def elementwise(graph: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001  every rule's
    """A gradient for each input, the last input's first (derivatives.yaml's order in generated code)."""
    return [(tensor, graph.gradient(tensor, node)) for tensor in reversed(node.wanted)]


def passed_on(graph: Graph, node: Node, gradient: str) -> Gradients:
    """Sums and views: the gradient itself is every input's."""
    return [(tensor, graph.share(gradient)) for tensor in node.wanted]


def joined(graph: Graph, node: Node, gradient: str, others: Sequence[str]) -> Gradients:  # noqa: ARG001
    """All parts' gradients in one tensor (``split_backward``)."""
    (tensor,) = node.inputs
    made = graph.gradient(tensor, node)
    for other in others:
        graph.drop(graph.gradients.pop(other, ""))
    return [(tensor, made)]


def sliced(graph: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """A part of a tensor: zeros of the whole, into which the gradient is copied (``slice_backward``)."""
    return [(tensor, graph.gradient(tensor, node)) for tensor in node.inputs]


def broadcast(graph: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """A product whose second input was expanded: its gradient is as large as the result until it is summed."""
    first, second = node.inputs
    size = graph.record.sizes[node.out]
    rows = graph.held(f"d {second} rows", node, size)
    made = [(first, graph.held(f"d {first}", node, size))]
    made.append((second, graph.gradient(second, node)))
    graph.consume(rows)
    return made


def gathered(graph: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """Rows picked by an index: zeros of the whole, and the sum of the rows' gradients in a tensor of its own (``index_put``)."""
    (tensor,) = node.inputs
    zeros = graph.held(f"{node.out} zeros", node, graph.record.sizes[tensor])
    made = graph.gradient(tensor, node)
    graph.consume(zeros)
    return [(tensor, made)]


def power(graph: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """``pow_backward``: grad · (exponent · xⁿ⁻¹), three tensors."""
    (tensor,) = node.inputs
    size = graph.record.sizes[tensor]
    moments = [graph.held(f"{node.out} {moment}", node, size) for moment in ("power", "times")]
    made = graph.gradient(tensor, node)
    graph.consume(*moments)
    return [(tensor, made)]


def weighted(graph: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """A product with a weight: the weight's gradient is as large as the result until it is summed."""
    (tensor,) = node.inputs
    made = graph.gradient(tensor, node)
    if node.trains:
        rows = graph.held(f"{node.out} d_weight rows", node, graph.record.sizes[node.out])
        graph.weight_gradients(node)
        graph.consume(rows)
        graph.settle_weight_gradients(node)
    return [(tensor, made)]


def linear_rule(graph: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """Gradients of weight and bias, then of the input. ``node.moment``: a copy of the gradient, token by token."""
    copied = graph.held(f"d {node.out} by token", node, node.moment) if node.moment is not None else None
    graph.weight_gradients(node)
    made = [(tensor, graph.gradient(tensor, node)) for tensor in node.wanted]
    if copied is not None:
        graph.consume(copied)
    graph.settle_weight_gradients(node)
    return made
