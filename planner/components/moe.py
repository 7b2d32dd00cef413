"""Mixtures of experts as transformers 5.23 computes them (integrations/moe.py): one grouped product for all experts."""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.counts import is_routed
from planner.architecture.layers import DenseMLP, MixtureOfExperts, Norm, Weight
from planner.components.activations import activate
from planner.components.autocast import in_16_bit, is_wide, narrowed
from planner.components.expert_adapters import begin_experts, summed_experts, summed_router, times
from planner.components.experts_in_turn import experts_in_turn
from planner.components.graph import Graph, Node
from planner.components.mlp import mlp_forward
from planner.components.norms import norm_forward
from planner.components.operators import add, linear, multiply
from planner.components.quantised import hold_from_host
from planner.components.rules import Gradients, broadcast, gathered, passed_on, sliced
from planner.components.run import FP32_BYTES
from planner.components.tape import Size

TWO_LINEARS = 2
"""Of a gated block: gate and up come from one of them (Granite)."""


def moe_forward(g: Graph, mixer: MixtureOfExperts, source: str, target: str, router_source: str = "") -> None:
    """Router, routed experts, shared experts: reads ``source`` (the router what it is given), leaves ``target``."""
    shared, opening = _shared(mixer), tuple(weight for weight in mixer.weights if "shared_expert_gate" in weight.name)
    if shared is not None and (opening or g.run.code.shared_first):
        mlp_forward(g, shared, source, "shared output" if opening else "shared")
    _router(g, mixer, router_source or source)
    g.free(router_source)
    if g.run.experts_in_turn:
        experts_in_turn(g, mixer, source, "routed")
    elif g.run.code.experts == "dense":
        _dense_experts(g, mixer, source, "routed")
    else:
        _grouped_experts(g, mixer, source, "routed")
    if shared is None:
        g.rename("routed", target)
    else:
        if opening:
            with in_16_bit(g):
                _opened(g, source, opening)
        elif not g.run.code.shared_first:
            mlp_forward(g, shared, source, "shared")
        (_combined_wide if g.run.code.combines == "fp32" else _combined)(g, target)
    _normed_after(g, mixer, target)
    g.free("router logits", "router scores", "selected")


def _combined(g: Graph, target: str) -> None:
    add(g, target, g.run.hidden(), "routed", "shared")
    g.free("routed", "shared")


def _combined_wide(g: Graph, target: str) -> None:
    """Routed and shared experts' outputs added in fp32, the sum cast back (Hunyuan 3)."""
    wide = g.run.upcast(g.run.hidden_size)
    g.make("routed fp32", wide, ("routed",))
    g.make("shared fp32", wide, ("shared",))
    g.free("shared")
    add(g, "sum fp32", wide, "routed fp32", "shared fp32")
    g.free("routed fp32", "shared fp32")
    g.make(target, g.run.hidden(), ("sum fp32",))
    g.free("sum fp32", "routed")


def _normed_after(g: Graph, mixer: MixtureOfExperts, target: str) -> None:
    """A norm of the block's own behind its sum (A.X K1)."""
    weights = tuple(weight for weight in mixer.weights if weight.role == "norm")
    if weights:
        g.rename(target, "experts' sum")
        norm_forward(g, Norm("post_mlp_layernorm", g.run.hidden_size, "rms", weights), target, "experts' sum")
        g.free("experts' sum")


def _opened(g: Graph, source: str, weights: tuple[Weight, ...]) -> None:
    """``sigmoid(gate(x)) · shared``, one gate a token (``Qwen2MoeSparseMoeBlock``)."""
    one = g.run.rows(1)
    linear(g, "shared gate", source, one, weights)
    g.make("shared open", one, ("shared gate",), ("shared open",))
    g.free("shared gate")
    inputs = ("shared open", "shared output")
    g.make("shared", g.run.hidden(), inputs, inputs, _opened_rule)
    g.free("shared open", "shared output")


def _opened_rule(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """The shared experts' gradient, and the gate's, as large until it is summed."""
    size, made = g.record.sizes[node.out], Gradients()
    for tensor in reversed(node.wanted):
        if g.record.sizes[tensor].bytes == size.bytes:
            made.append((tensor, g.gradient(tensor, node)))
        else:
            rows = g.held(f"{node.out} rows", node, size)
            made.append((tensor, g.gradient(tensor, node)))
            g.consume(rows)
    return made


def _router(g: Graph, mixer: MixtureOfExperts, source: str) -> None:
    """Scores of all experts. DeepSeek's kind multiplies in fp32: copies of what it reads and of its weight."""
    run, code = g.run, g.run.code
    wide = Size(batch=run.batch, sequence=run.sequence, num_experts=mixer.num_experts, fp32_bytes=4)
    weights = tuple(weight for weight in mixer.weights if weight.role == "router" and "shared" not in weight.name)
    summed = summed_router(g, mixer)
    upcasts = code.router in ("sigmoid_fp32", "softmax_fp32")
    if upcasts and run.dtype_bytes != FP32_BYTES:
        _wide_router(g, mixer, source, weights, wide, summed)
    elif any(weight.dtype == "fp32" for weight in weights) and run.dtype_bytes != FP32_BYTES:
        _router_in_fp32(g, source, weights, wide)
    else:
        with in_16_bit(g):
            if summed:
                times(g, "router logits", g.run.rows(mixer.num_experts), source, summed)
            else:
                linear(g, "router logits", source, g.run.rows(mixer.num_experts), weights)
    if (upcasts and (code.router == "sigmoid_fp32" or not run.autocast)) or is_wide(g.size_of("router logits")):
        g.make("router scores", g.size_of("router logits"), ("router logits",), ("router scores",))
    else:
        g.make("router scores fp32", wide, ("router logits",))
        g.make("router scores", wide, ("router scores fp32",), ("router scores",))
    g.free("router scores fp32", "router change", summed)


def _router_in_fp32(g: Graph, source: str, weights: tuple[Weight, ...], wide: Size) -> None:
    """A router whose weight is fp32 whatever the others are reads a copy in fp32 (Hunyuan)."""
    run = g.run
    g.make("router input fp32", run.upcast(run.hidden_size), (source,))
    g.run = replace(run, dtype_bytes=FP32_BYTES)
    linear(g, "router logits", "router input fp32", wide, weights)
    g.run = run
    g.free("router input fp32")


def _wide_router(g: Graph, mixer: MixtureOfExperts, source: str, weights: tuple[Weight, ...], wide: Size, summed: str) -> None:
    """``F.linear(x.float(), weight.float())`` of 16-bit tensors; autocast casts both back."""
    run = g.run
    g.make("router input fp32", run.upcast(run.hidden_size), (source,))
    weight = Size(num_experts=mixer.num_experts, hidden_size=run.hidden_size, fp32_bytes=4)
    if summed:
        g.make("router weight fp32", weight, (summed,))
        times(g, "router logits", wide, "router input fp32", "router weight fp32")
    else:
        g.hold("router weight fp32", weight)
        linear(g, "router logits", "router input fp32", narrowed(wide) if run.autocast else wide, weights)
        g.save_for_last("router weight fp32")
    g.free("router input fp32", "router weight fp32")


def _grouped_experts(g: Graph, mixer: MixtureOfExperts, source: str, target: str) -> None:
    """``grouped_mm_experts_forward``: each token's vector once for each of its experts, sorted by expert; then back."""
    run, (ups, downs) = g.run, _expert_weights(mixer)
    scheme = run.quantised.scheme(downs) if run.quantised is not None else None
    if scheme is not None and scheme.dtype == "mxfp4":
        _fused_experts(g, mixer, target)
        return
    # Autocast multiplies in 16 bit what sigmoids read.
    turned = run.code.routing == "fp32" and scheme is None and not (run.autocast and run.code.router == "sigmoid_fp32")
    routing = FP32_BYTES if turned else run.dtype_bytes
    narrow, weighed = _routed(g, mixer, run.hidden_size), _routed(g, mixer, run.hidden_size, routing)
    fetched = (*hold_from_host(g, (*ups, *downs)), *begin_experts(g, mixer))
    g.make("selected", narrow, (source,), (), gathered)
    (_clamped if g.run.code.router == "topk" else _gated)(g, mixer, ups)
    _product(g, mixer, "expert output", "expert product", narrow, downs)
    g.free("expert product")
    g.make("weighed", weighed, ("expert output", "router scores"), ("expert output",), _weighed_rule, moment=weighed)
    g.make("weighed in order", weighed, ("weighed",), (), gathered)
    g.free("weighed")
    if routing == run.dtype_bytes and (not run.autocast or run.dtype_bytes == FP32_BYTES):  # autocast sums in fp32
        g.make(target, run.hidden(), ("weighed in order",))
    else:
        g.make("summed", run.upcast(run.hidden_size), ("weighed in order",))
        g.make(target, run.hidden(), ("summed",))
    g.free("selected", "expert output", "weighed in order", "summed", "down bias", "up summed", "down summed", *fetched)


def _product(g: Graph, mixer: MixtureOfExperts, name: str, source: str, size: Size, weights: tuple[Weight, ...]) -> None:
    """One product for all experts; with adapters the weights are a sum, which gets a gradient."""
    summed = summed_experts(g, mixer, "down" if name == "expert output" else "up")
    if summed:
        times(g, name, size, source, summed)
    else:
        linear(g, name, source, size, weights)


def _fused_experts(g: Graph, mixer: MixtureOfExperts, target: str) -> None:
    """``Mxfp4GptOssExperts.forward_routed``: gathered and gated inside the first product, added up from the second's rows."""
    g.hold("expert product", _routed(g, mixer, mixer.intermediate_size))
    g.hold("expert output", _routed(g, mixer, g.run.hidden_size))
    g.hold(target, g.run.hidden())
    g.free("expert product", "expert output")


def _weighed_rule(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """Output · routing weight: both gradients are as large as the result; then the weights' is summed, the output's cast."""
    tensor, scores = node.inputs
    size = node.moment or g.record.sizes[tensor]
    rows = g.held("d routing weight rows", node, size)
    if size.bytes == g.record.sizes[tensor].bytes:
        made, chosen = g.gradient(tensor, node), g.gradient(scores, node)
        g.consume(rows)
        return [(tensor, made), (scores, chosen)]
    wide, chosen = g.held(f"d {tensor} wide", node, size), g.gradient(scores, node)
    g.consume(rows)
    made = g.gradient(tensor, node)
    g.consume(wide)
    return [(tensor, made), (scores, chosen)]


def _gated(g: Graph, mixer: MixtureOfExperts, ups: tuple[Weight, ...]) -> None:
    size = _routed(g, mixer, mixer.intermediate_size)
    rows = 2 if mixer.gated else 1
    _product(g, mixer, "expert gate and up", "selected", _routed(g, mixer, rows * mixer.intermediate_size), ups)
    if not mixer.gated:
        activate(g, mixer.activation, "expert gate and up", "expert product", size)
        g.free("expert gate and up")
        return
    if g.run.code.router == "softplus":  # DeepSeek-V4 clamps both
        g.hold("expert gate clamped", size)
        g.hold("expert up clamped", size)
    g.parts("expert gate and up", {"expert gate": size, "expert up": size})
    activate(g, mixer.activation, "expert gate", "expert activated", size)
    multiply(g, "expert product", size, "expert activated", "expert up")
    g.free("expert activated", "expert gate", "expert up", "expert gate and up", "expert gate clamped", "expert up clamped")


def _expert_weights(mixer: MixtureOfExperts) -> tuple[tuple[Weight, ...], tuple[Weight, ...]]:
    """Weights (and biases) of the experts' first linears, and of their last."""
    experts = [weight for weight in mixer.weights if is_routed(weight)]
    downs = tuple(weight for weight in experts if "down_proj" in weight.name or ".w2" in weight.name)
    return tuple(weight for weight in experts if weight not in downs), downs


def _clamped(g: Graph, mixer: MixtureOfExperts, ups: tuple[Weight, ...]) -> None:
    """gpt-oss: biases gathered for every row, gate and up clamped, gate · sigmoid(α · gate) · (up + 1)."""
    size, both = _routed(g, mixer, mixer.intermediate_size), _routed(g, mixer, 2 * mixer.intermediate_size)
    g.hold("up bias", both)
    linear(g, "expert gate and up", "selected", both, ups)
    for name in ("expert gate", "expert up"):
        g.view(f"{name} part", "expert gate and up", sliced, size)
        g.make(name, size, (f"{name} part",), (f"{name} part",))
    multiply(g, "expert scaled", size, "expert gate")
    g.make("expert open", size, ("expert scaled",), ("expert open",))
    g.free("expert scaled")
    multiply(g, "expert glu", size, "expert gate", "expert open")
    g.free("expert open")
    g.make("expert up and one", size, ("expert up",), (), passed_on)
    multiply(g, "expert product", size, "expert up and one", "expert glu")
    g.free(
        "expert up and one", "expert gate", "expert up", "expert glu", "expert gate part", "expert up part", "expert gate and up"
    )
    g.hold("down bias", _routed(g, mixer, g.run.hidden_size))
    g.free("up bias")


def _dense_experts(g: Graph, mixer: MixtureOfExperts, source: str, target: str) -> None:
    """Llama 4: every expert computes every token, weighed beforehand, zero where it was not chosen."""
    narrow, (ups, downs) = _every(g, mixer, g.run.hidden_size), _expert_weights(mixer)
    g.make("repeated", narrow, (source,))
    inputs = ("repeated", "router scores")
    g.make("selected", narrow, inputs, inputs, broadcast)
    g.free("repeated")
    with in_16_bit(g):
        _dense_products(g, mixer, ups, downs)
    g.rename("expert output", target)


def _dense_products(g: Graph, mixer: MixtureOfExperts, ups: tuple[Weight, ...], downs: tuple[Weight, ...]) -> None:
    size = _every(g, mixer, mixer.intermediate_size)
    linear(g, "expert gate and up", "selected", _every(g, mixer, 2 * mixer.intermediate_size), ups)
    g.parts("expert gate and up", {"expert gate": size, "expert up": size})
    activate(g, mixer.activation, "expert gate", "expert activated", size)
    multiply(g, "expert product", size, "expert up", "expert activated")
    g.free("expert activated")
    linear(g, "expert output", "expert product", _every(g, mixer, g.run.hidden_size), downs, copies=True)
    g.free("expert product", "expert gate", "expert up", "expert gate and up")


def _routed(g: Graph, mixer: MixtureOfExperts, width: int, bytes_: int = 0) -> Size:
    run = g.run
    return Size(
        batch=run.batch, sequence=run.sequence, experts_per_token=mixer.experts_per_token, features=width,
        bytes=bytes_ or run.dtype_bytes,
    )  # fmt: skip


def _every(g: Graph, mixer: MixtureOfExperts, width: int) -> Size:
    run = g.run
    return Size(batch=run.batch, sequence=run.sequence, num_experts=mixer.num_experts, features=width, bytes=run.dtype_bytes)


def _shared(mixer: MixtureOfExperts) -> DenseMLP | None:
    """The shared experts as one feed-forward block."""
    width = mixer.shared_intermediate_size
    if not width:
        return None
    weights = tuple(weight for weight in mixer.weights if "shared" in weight.name and weight.role in ("linear", "bias"))
    fused = mixer.gated and len({weight.name.rpartition(".")[0] for weight in weights}) == TWO_LINEARS
    return DenseMLP(width, mixer.gated, mixer.activation, weights, fused_gate_up=fused)
