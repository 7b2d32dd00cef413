"""Attention written out in classes of their own: XGLM's and GPT-NeoX Japanese's, as transformers 5.23 has them.

Each reads queries, keys and values by name and leaves ``attended`` and ``probabilities``.
"""

from __future__ import annotations

from planner.components.graph import Graph, Node
from planner.components.kernels import Operands
from planner.components.rules import Gradients, passed_on
from planner.components.tape import Size


def eager_bounded(g: Graph, ops: Operands, *, dropout: bool) -> None:
    """XGLM's: scaled queries, masked scores bounded below, a softmax in their dtype.

    Of several sequences what does not lie head by head is copied; the copies live to the end in its place.
    """
    scores, names = g.run.scores(ops.heads, ops.keys), _rows(g, ops)
    g.make("scores", scores, (names["q"], names["k"]), (names["q"], names["k"]))
    g.make("scores masked", scores, ("scores",), (), passed_on)
    g.free("scores")
    g.make("scores bounded", scores, ("scores masked",), ("scores masked",), _bounded_rule)
    g.free("scores masked")
    g.make("probabilities", scores, ("scores bounded",), ("probabilities",))
    g.free("scores bounded")
    weights = _dropped(g, ops, scores, keeps=True) if dropout and g.saving else "probabilities"
    size = g.run.heads(ops.heads, ops.value_head_dim)
    g.make("attended by head", size, (weights, names["v"]), (weights, names["v"]))
    g.make("attended", size, ("attended by head",))
    g.free("attended by head", "probabilities dropped", *(name for part, name in names.items() if name != getattr(ops, part)))


def eager_into_zeros(g: Graph, ops: Operands, *, dropout: bool) -> None:
    """GPT-NeoX Japanese's: the product is added to zeros of the scores' size, which live to the end, as masked scores do."""
    scores, names = g.run.scores(ops.heads, ops.keys), {"q": ops.q, "k": ops.k}
    g.hold("zeros", scores)
    g.make("scores", scores, tuple(names.values()), tuple(names.values()))
    g.make("scores masked", scores, ("scores",), (), passed_on)
    g.free("scores")
    g.make("probabilities", scores, ("scores masked",), ("probabilities",))
    if dropout and g.saving:
        _dropped(g, ops, scores, keeps=False)
    values = ops.v
    if g.run.batch > 1 and not g.run.cached:
        values = "v by head"
        g.make(values, g.run.heads(ops.heads, ops.value_head_dim), (ops.v,))
    size = g.run.heads(ops.heads, ops.value_head_dim)
    g.make("attended by head", size, ("probabilities", values), ("probabilities", values))
    g.free("zeros", "scores masked", "v by head")
    g.make("attended", size, ("attended by head",))
    g.free("attended by head")


def _rows(g: Graph, ops: Operands) -> dict[str, str]:
    """Queries (multiplied by the scale), keys and values with the heads of all sequences in one dimension."""
    run, names = g.run, {"q": ops.q, "k": ops.k, "v": ops.v}
    for part, width in (("q", ops.head_dim), ("k", ops.head_dim), ("v", ops.value_head_dim)):
        if run.batch > 1 and (part == "q" or not run.cached):
            names[part] = f"{part} in rows"
            g.make(names[part], run.heads(ops.heads, width), (getattr(ops, part),))
            g.free(getattr(ops, part))
    return names


def _dropped(g: Graph, ops: Operands, scores: Size, *, keeps: bool) -> str:
    """A dropout of the probabilities, beside them (``keeps``) or in their place; autograd keeps a mask of one byte each."""
    mask = Size(batch=g.run.batch, heads=ops.heads, queries=g.run.sequence, keys=ops.keys, bool_bytes=1)
    g.hold("probabilities mask", mask)
    g.make("probabilities dropped", scores, ("probabilities",), ("probabilities mask",))
    g.free("probabilities mask")
    if keeps:
        return "probabilities dropped"
    g.free("probabilities")
    g.rename("probabilities dropped", "probabilities")
    return "probabilities"


def _bounded_rule(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """``where(x == bound, grad / 2, grad)``, then zero where x was the smaller (derivatives.yaml, ``maximum``)."""
    (tensor,) = node.inputs
    size = g.record.sizes[tensor]
    values = {key: value for key, value in size.values.items() if key != "bytes"}
    moments = [g.held("d equal", node, Size(**values, bool_bytes=1)), g.held("d half", node, size)]  # type: ignore[arg-type]
    made = g.gradient(tensor, node)
    g.consume(*moments)
    return [(tensor, made)]
