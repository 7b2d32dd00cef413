"""The channel mixers of llama.cpp's graphs: dense feed-forward blocks and mixtures of experts.

Source: llama.cpp ``src/llama-graph.cpp`` (``build_ffn``, ``build_moe_ffn``), 0.5.0-dev (ggml 0.25.3).
"""

from __future__ import annotations

from planner.architecture.layers import DenseMLP, MixtureOfExperts, Weight
from planner.engines.llama_cpp.graph import Tensor, gated, like, made, packed, reshape, rows_of, view, written
from planner.engines.llama_cpp.sketch import Sketch


def feed_forward(sketch: Sketch, mixer: DenseMLP, x: Tensor) -> Tensor:
    """down(act(gate) · up), or down(act(up))."""
    biased = any(weight.role == "bias" for weight in mixer.weights)
    fused, act = mixer.fused_gate_up, mixer.activation
    return _dense(sketch, mixer.intermediate_size, x, gate=mixer.gated, fused=fused, biased=biased, act=act)


def _dense(
    sketch: Sketch, width: int, x: Tensor, *, gate: bool, act: str, fused: bool = False, biased: bool = False, suffix: str = ""
) -> Tensor:
    def with_bias(tensor: Tensor) -> Tensor:
        return like("add", tensor, sketch.parameter()) if biased else tensor

    if fused:
        middle = gated(sketch.linear("ffn_up" + suffix, 2 * width, x))
    elif gate:
        up = with_bias(sketch.linear("ffn_up" + suffix, width, x))
        middle = gated(with_bias(sketch.linear("ffn_gate" + suffix, width, x)), up)
    else:
        middle = like("unary", with_bias(sketch.linear("ffn_up" + suffix, width, x)))
        if act in ("relu2", "relu_squared"):
            middle = like("sqr", middle)
    return with_bias(sketch.linear("ffn_down" + suffix, x.ne[0], middle))


def experts(sketch: Sketch, mixer: MixtureOfExperts, x: Tensor) -> Tensor:
    """Routed experts, and the shared ones added to them."""
    out = routed(sketch, mixer, x)
    if not mixer.shared_intermediate_size:
        return out
    shared = _dense(sketch, mixer.shared_intermediate_size, x, gate=mixer.gated, act=mixer.activation, suffix="_shexp")
    if sketch.family.shared_gate != "none":
        gate = sketch.linear("ffn_gate_inp_shexp", 1, x)
        opened = like("unary", gate)
        shared = like("mul", shared, like("div", opened, gate) if sketch.family.shared_gate == "silu ratio" else opened)
    total = like("add", out, shared)
    return like("scale", total) if sketch.family.halves_experts else total


def routed(sketch: Sketch, mixer: MixtureOfExperts, x: Tensor, logits: Tensor | None = None) -> Tensor:
    """Routed experts alone; ``logits``: the router's, where it does not read ``x``."""
    graph, hidden, tokens, used = sketch.graph, x.ne[0], x.ne[1], mixer.experts_per_token
    family = sketch.family
    weights, chosen = _route(sketch, mixer, x, logits)
    graph.expand(weights)
    each = reshape(x, hidden, 1, tokens)
    if family.weighs_first:
        each = like("mul", made("repeat", (hidden, used, tokens), each), weights)
    has_bias = any(_is_expert_bias(weight) for weight in mixer.weights)

    def expert_linear(kind: str, rows: int, tensor: Tensor) -> Tensor:
        out = made("mul_mat_id", (rows, used, tokens), sketch.parameter(rows, f"ffn_{kind}_exps"), tensor, chosen)
        return like("add_id", out, sketch.parameter(), chosen) if has_bias else out

    if family.merges_gate_up:
        both = expert_linear("gate_up", 2 * mixer.intermediate_size, each)
        gate, up = (view(both, (mixer.intermediate_size, used, tokens), both.nb[1:3]) for _ in range(2))
        middle = gated(gate, up)
    elif mixer.gated:
        up = expert_linear("up", mixer.intermediate_size, each)
        middle = gated(expert_linear("gate", mixer.intermediate_size, each), up)
    else:
        middle = like("unary", expert_linear("up", mixer.intermediate_size, each))
        if mixer.activation in ("relu2", "relu_squared"):
            middle = like("sqr", middle)
    outs = expert_linear("down", hidden, middle)
    if any(weight.name.endswith("per_expert_scale") for weight in mixer.weights):
        scales = made("repeat", (1, mixer.num_experts, tokens), reshape(sketch.parameter(values=mixer.num_experts), 1, 1, 1))
        outs = like("mul", outs, rows_of(scales, chosen))
    outs = graph.expand(outs if family.weighs_first else like("mul", outs, weights))
    parts = [graph.expand(view(outs, (hidden, tokens), (outs.nb[2],))) for _ in range(used)]
    total = parts[0]
    for part in parts[1:]:
        total = graph.expand(like("add", total, part))
    return total if used > 1 else packed(total)


def _is_expert_bias(weight: Weight) -> bool:
    return weight.role == "bias" and weight.count > 1


def _is_correction(weight: Weight) -> bool:
    """Whether it is added to the probabilities that rank the experts, not to the router's logits."""
    return "correction" in weight.name or weight.name.endswith("expert_bias")


def _route(sketch: Sketch, mixer: MixtureOfExperts, x: Tensor, logits: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights (1, used, tokens) and the numbers of the chosen experts (used, tokens)."""
    family, used, tokens = sketch.family, mixer.experts_per_token, x.ne[1]
    logits = sketch.linear("ffn_gate_inp", mixer.num_experts, x) if logits is None else logits
    single_biases = [weight for weight in mixer.weights if weight.role == "bias" and weight.count == 1]
    if not all(_is_correction(weight) for weight in single_biases):
        logits = like("add", logits, sketch.parameter())
    probabilities = logits
    if family.gating != "softmax of the chosen":
        probabilities = like("soft_max" if family.gating == "softmax" else "unary", logits)
    ranked = logits if family.weighs_first else probabilities
    if any(_is_correction(weight) for weight in mixer.weights):
        ranked = like("add", probabilities, sketch.parameter())
    if family.expert_groups > 1:
        ranked = _best_groups(mixer.num_experts, family.expert_groups, ranked)
    chosen = view(made("argsort", ranked.ne, ranked), (used, tokens), (ranked.nb[1],))
    weights = rows_of(reshape(probabilities, 1, mixer.num_experts, tokens), chosen)
    if family.gating == "softmax of the chosen":
        weights = reshape(like("soft_max", reshape(weights, used, tokens)), 1, used, tokens)
    if family.normalises_weights:
        flat = reshape(weights, used, tokens)
        total = like("clamp", made("sum_rows", (1, tokens), flat))
        weights = reshape(like("div", flat, total), 1, used, tokens)
    if family.scales_weights:
        weights = like("scale", weights)
    return weights, chosen


GROUPS_KEPT = 4
"""``topk_group`` of DeepSeek-V3, the only published value."""


def _best_groups(num_experts: int, groups: int, ranked: Tensor) -> Tensor:
    """Only experts of the best groups stay in the race (DeepSeek-V3 2024, section 2.1.2)."""
    tokens, size = ranked.ne[1], num_experts // groups
    grouped = reshape(ranked, size, groups, tokens)
    sorted_in_group = made("argsort", grouped.ne, grouped)
    best_two = view(sorted_in_group, (2, groups, tokens), sorted_in_group.nb[1:3])
    scores = rows_of(reshape(grouped, 1, size, groups, tokens), best_two)
    sums = reshape(made("sum_rows", (1, groups, tokens), reshape(scores, 2, groups, tokens)), groups, tokens)
    order = made("argsort", sums.ne, sums)
    kept = view(order, (GROUPS_KEPT, tokens), (order.nb[1],))
    winners = rows_of(grouped, kept)
    masked = written(like("fill", grouped), winners, kept)
    return reshape(masked, num_experts, tokens)
