"""Dense feed-forward blocks as transformers 5.23 writes them."""

from __future__ import annotations

from planner.architecture.layers import DenseMLP, Norm, Weight
from planner.components.activations import activate
from planner.components.autocast import in_16_bit
from planner.components.fused_kernels import fused_swiglu
from planner.components.graph import Graph
from planner.components.norms import norm_forward
from planner.components.operators import linear, multiply


def mlp_forward(g: Graph, mixer: DenseMLP, source: str, target: str) -> None:
    """down(act(gate) · up), or down(act(up)): reads ``source``, leaves ``target``."""
    with in_16_bit(g):
        _mlp_forward(g, mixer, source, target)


def _mlp_forward(g: Graph, mixer: DenseMLP, source: str, target: str) -> None:
    run, project = g.run, _projections(mixer)
    wide = run.mlp(mixer.intermediate_size)
    if mixer.gated and mixer.fused_gate_up:
        linear(g, "gate and up", source, run.mlp(2 * mixer.intermediate_size), project[0])
        g.parts("gate and up", {"gate": wide, "up": wide})
    else:
        linear(g, "gate", source, wide, project[0])
        if run.code.drops_norm:
            g.free(source)
    if "swiglu" in run.fused:
        linear(g, "up", source, wide, project[1])
        fused_swiglu(g, "product", wide)
        g.free("gate", "up")
        linear(g, target, "product", run.hidden(), project[-1])
        g.free("product")
        return
    activate(g, mixer.activation, "gate", "activated", wide, tuple(weight for weight in mixer.weights if weight.role == "other"))
    if mixer.gated:
        if not mixer.fused_gate_up:
            g.free("gate")
            linear(g, "up", source, wide, project[1])
        multiply(g, "product", wide, "activated", "up")
        g.free("activated")
        if not mixer.fused_gate_up:
            g.free("up")
    else:
        g.free("gate")
        g.rename("activated", "product")
    _norm_product(g, mixer)
    linear(g, target, "product", run.hidden(), project[-1])
    g.free("product")
    if mixer.fused_gate_up:
        g.free("gate", "up", "gate and up")


def _norm_product(g: Graph, mixer: DenseMLP) -> None:
    """A norm before the last linear, where the block has one (BitNet)."""
    weights = tuple(weight for weight in mixer.weights if weight.role == "norm")
    if weights:
        norm_forward(g, Norm("ffn_sub_norm", mixer.intermediate_size, "rms", weights), "product norm", "product")
        g.free("product")
        g.rename("product norm", "product")


def _projections(mixer: DenseMLP) -> list[tuple[Weight, ...]]:
    """Weights and biases of the linears in order: gate, up, down; one of both and down; or up and down."""
    modules: dict[str, list[Weight]] = {}
    for weight in (weight for weight in mixer.weights if weight.role not in ("other", "norm")):
        modules.setdefault(weight.name.rpartition(".")[0], []).append(weight)
    return [tuple(weights) for weights in modules.values()] or [(), (), ()]
