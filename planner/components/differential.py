"""Differential attention (Ye et al. 2024) as transformers 5.23 writes DiffLlama's: two calls over halves of the values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from planner.architecture.layers import Attention, Norm
from planner.components.graph import Graph, Node
from planner.components.kernels import Operands, summed_heads
from planner.components.norms import norm_forward
from planner.components.rules import Gradients, elementwise, passed_on
from planner.components.tape import Size
from planner.modelled import NotModelled

KEPT = ("v first", "v second", "both", "kept", "taken")
"""What lives until the output projection is over."""


def is_differential(mixer: Attention) -> bool:
    """Whether vectors of the mixer weigh one softmax against another."""
    return any("lambda_q1" in weight.name for weight in mixer.weights)


def attend_twice(g: Graph, mixer: Attention, ops: Operands, attend: Callable[[Operands], None]) -> None:
    """Each half of the values, copied to all key heads, is attended to; half of the heads less λ times the other, normed, scaled.

    λ comes of the mixer's vectors. ``attend`` leaves ``attended``, as this does.
    """
    run, weights = g.run, tuple(weight for weight in mixer.weights if "lambda_" in weight.name)
    if run.eager or run.autocast:
        raise NotModelled("differential attention computed eagerly or in two precisions has no closed form yet")
    values = Size(batch=run.batch, keys=ops.keys, heads=ops.kv_heads, head_dim=ops.value_head_dim, bytes=run.dtype_bytes)
    for name in ("first", "second"):
        g.make(f"v {name}", values, (ops.v,), (), summed_heads)
    for name in ("first", "second"):
        attend(replace(ops, v=f"v {name}"))
        g.rename("attended", f"attended {name}")
    size = run.heads(ops.heads, ops.value_head_dim)
    g.make("both", run.heads(2 * ops.heads, ops.value_head_dim), ("attended first", "attended second"), (), passed_on)
    g.free("attended first", "attended second")
    g.parts("both", {"kept": size, "taken": size})
    trains = run.trains(weights)
    g.make("taken weighed", size, ("taken",), ("taken",) if trains else (), _weighed_by_one if trains else elementwise)
    g.make("difference", size, ("kept", "taken weighed"), (), _less)
    g.free("taken weighed")
    pairs = max(ops.heads // 2, 1)
    norm_forward(g, Norm("groupnorm", 2 * ops.value_head_dim, "rms", ()), "normed", "difference", pairs, "none")
    g.make("attended", size, ("normed",), (), elementwise)
    g.free("normed", "difference")


def _weighed_by_one(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """λ · x: λ's gradient is as large as x until it is summed."""
    (tensor,) = node.inputs
    rows = g.held(f"{node.out} rows", node, g.record.sizes[tensor])
    made = g.gradient(tensor, node)
    g.consume(rows)
    return [(tensor, made)]


def _less(g: Graph, node: Node, gradient: str) -> Gradients:
    """A difference: the gradient itself, and its negative."""
    first, second = node.inputs
    return [(first, g.share(gradient)), (second, g.gradient(second, node))]
