"""Experts that are linears of their own and compute one after another, as transformers did before it stacked them.

Source: transformers 4.45 to 4.57 ``modeling_mixtral.py`` (``MixtralSparseMoeBlock.forward``) and the families copied from it.
Routing is taken as balanced.
"""

from __future__ import annotations

from planner.architecture.counts import is_routed
from planner.architecture.layers import MixtureOfExperts, Weight
from planner.components.activations import activate
from planner.components.autocast import is_wide
from planner.components.graph import Graph, Node
from planner.components.operators import multiply, product
from planner.components.rules import Gradients
from planner.components.run import FP32_BYTES
from planner.components.tape import Size
from planner.modelled import NotModelled

FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")
"""Whose blocks are written so."""
INDEX_BYTES = 8


def experts_in_turn(g: Graph, mixer: MixtureOfExperts, source: str, target: str) -> None:
    """Each expert's tokens are picked, go through its three linears, are weighed, and added to zeros of all tokens."""
    weights = [weight for weight in mixer.weights if is_routed(weight)]
    _require_frozen(g, weights)
    tokens = g.run.batch * g.run.sequence
    chosen = -(-tokens * mixer.experts_per_token // mixer.num_experts)
    width = FP32_BYTES if is_wide(g.size_of(source)) else g.run.dtype_bytes
    g.hold("expert mask", Size(experts=mixer.num_experts, chosen=mixer.experts_per_token, tokens=tokens, int64_bytes=INDEX_BYTES))
    total = "sum of no expert"
    g.hold(total, _whole(g, width))
    if g.saving:
        g.record.sizes[total] = _whole(g, width)
        g.constants.add(total)
    for expert in range(mixer.num_experts):
        weighed = _one(g, mixer, weights, source, f"of expert {expert}", chosen, width)
        total = _added(g, total, weighed, f"sum to expert {expert}")
    g.rename(total, target)
    g.free("expert mask")


def _require_frozen(g: Graph, weights: list[Weight]) -> None:
    adapters = g.run.adapters
    if g.run.trains(weights) or (adapters is not None and adapters.changes(weights)):
        raise NotModelled(
            "training.engine_options.version: experts that train one after another have no closed form; name a release since 5.0"
        )


def _whole(g: Graph, width: int) -> Size:
    return Size(batch=g.run.batch, sequence=g.run.sequence, hidden_size=g.run.hidden_size, bytes=width)


def _one(g: Graph, mixer: MixtureOfExperts, weights: list[Weight], source: str, of: str, tokens: int, width: int) -> str:
    """down(act(gate(x)) · up(x)) · routing weight, of the tokens that chose the expert."""
    names = ("selected", "gate", "activated", "up", "product", "output", "weighed")
    selected, gate, activated, up, made, output, weighed = (f"{name} {of}" for name in names)
    rows = Size(tokens=tokens, hidden_size=g.run.hidden_size, bytes=width)
    wide = Size(tokens=tokens, intermediate_size=mixer.intermediate_size, bytes=width)
    g.make(selected, rows, (source,), (), _picked)
    product(g, gate, selected, wide, _named(weights, "gate_proj"))
    activate(g, mixer.activation, gate, activated, wide)
    g.free(gate)
    product(g, up, selected, wide, _named(weights, "up_proj"))
    multiply(g, made, wide, activated, up)
    g.free(activated, up)
    product(g, output, made, rows, _named(weights, "down_proj"))
    g.free(made)
    g.make(weighed, rows, (output, "router scores"), (output,), _weighed)
    g.free(output, selected)
    return weighed


def _named(weights: list[Weight], name: str) -> tuple[Weight, ...]:
    return tuple(weight for weight in weights if name in weight.name)


def _added(g: Graph, total: str, rows: str, name: str) -> str:
    """``index_add_``: in place; the rows' gradient is picked from the sum's."""
    g.take_over(total, rows, name, _rows_of)
    g.free(rows)
    return name


def _rows_of(g: Graph, node: Node, gradient: str) -> Gradients:
    total, rows = node.inputs
    made = [(rows, g.gradient(rows, node))]
    return made if total in node.constants else [*made, (total, g.share(gradient))]


def _picked(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001  every rule's
    """Zeros of all tokens, into which the gradient is put (``index_backward``)."""
    return [(tensor, g.gradient(tensor, node)) for tensor in node.wanted]


def _weighed(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001  every rule's
    """Output · routing weight: both gradients are as large as the result; then the weights' is summed."""
    output, scores = node.inputs
    size, made = g.record.sizes[node.out], []
    if scores not in node.constants:
        rows = g.held("d routing weight rows", node, size)
        made.append((scores, g.gradient(scores, node)))
        g.consume(rows)
    if output not in node.constants:
        made.append((output, g.held(f"d {output}", node, size)))
    return made
