"""The recurrent mixers of llama.cpp's graphs, tensor by tensor: Mamba, delta nets, linear attention, short convolution.

Source: llama.cpp ``src/llama-graph.cpp`` (``build_rs``), ``src/models/mamba-base.cpp``, ``qwen3next.cpp``, ``qwen35.cpp``,
``delta-net-base.cpp``, ``kimi-linear.cpp``, ``minimax-01.cpp`` and ``lfm2.cpp`` (0.5.0-dev, ggml 0.25.3). Statements follow
the order of nodes.
"""

from __future__ import annotations

from planner.architecture.layers import Recurrent
from planner.engines.llama_cpp.graph import (
    F32,
    Tensor,
    gated,
    joined,
    like,
    made,
    packed,
    permute,
    product,
    reshape,
    rows_of,
    stored,
    transpose,
    values_in,
    view,
    written,
)
from planner.engines.llama_cpp.sketch import Sketch
from planner.modelled import NotModelled


def recurrent(sketch: Sketch, mixer: Recurrent, x: Tensor) -> Tensor:
    """A mixer with constant state per sequence."""
    match mixer.kind:
        case "mamba":
            return _mamba(sketch, mixer, x)
        case "mamba2":
            return _mamba2(sketch, mixer, x)
        case "gated_delta_net":
            return _gated_delta_net(sketch, mixer, x)
        case "kimi_delta":
            return _kimi_delta(sketch, mixer, x)
        case "lightning":
            return _lightning(sketch, mixer, x)
        case "short_conv":
            return _short_convolution(sketch, mixer, x)
        case _:
            raise NotModelled(f"llama.cpp's graph of {mixer.kind} is not derived")


def _states(sketch: Sketch, size: int) -> tuple[Tensor, Tensor]:
    """``build_rs``, first half: all states of a layer, and the graph's clearing of a fresh one."""
    sequences = sketch.context.sequences
    held = stored((size, sequences, 1, 1), sketch.cache_device)
    states = reshape(held, size, sequences)
    cleared = view(states, (size,))
    sketch.graph.expand(Tensor("scale", cleared.ne, F32, (cleared,), cleared.nb, held))
    return held, states


def _keep_others(sketch: Sketch, held: Tensor, states: Tensor) -> None:
    """``build_rs``, second half: states of sequences outside the batch are copied along; when all run, none are."""
    _, others = sketch.state_rows
    extra = rows_of(states, others)
    sketch.graph.expand(extra)
    sketch.graph.expand(written(view(held, (states.ne[0], others.ne[0])), extra))


def _loaded_state(sketch: Sketch, size: int) -> tuple[Tensor, Tensor]:
    """States of the batch's sequences as a new tensor, and the cache to write them back to."""
    held, states = _states(sketch, size)
    mine, _ = sketch.state_rows
    loaded = sketch.graph.expand(rows_of(states, mine))
    _keep_others(sketch, held, states)
    return loaded, held


def _convolution(sketch: Sketch, mixer: Recurrent, x: Tensor) -> Tensor:
    """Earlier columns and this batch's, side by side; the last ones go back to the cache."""
    channels, kernel, sequences = mixer.conv_channels, mixer.conv_kernel, sketch.context.sequences
    loaded, held = _loaded_state(sketch, (kernel - 1) * channels)
    columns = joined(reshape(loaded, kernel - 1, channels, sequences), transpose(x))
    last = view(columns, (kernel - 1, channels, sequences), columns.nb[1:3])
    sketch.graph.expand(written(view(held, ((kernel - 1) * channels, sequences)), last))
    return columns


def _convolved(sketch: Sketch, mixer: Recurrent, columns: Tensor, *, biased: bool) -> Tensor:
    sequences = sketch.context.sequences
    tokens = sketch.context.tokens // sequences
    out = made("ssm_conv", (mixer.conv_channels, tokens, sequences), columns, sketch.parameter())
    if biased:
        out = like("add", out, sketch.parameter())
    return like("unary", out)


def _scan(sketch: Sketch, mixer: Recurrent, x: Tensor, dt: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``ggml_ssm_scan``: outputs and final states in one tensor; the states go back to the cache."""
    sequences = sketch.context.sequences
    held, states = _states(sketch, mixer.state_numel)
    mine, _ = sketch.state_rows
    out = made(
        "ssm_scan", (values_in(x) + mixer.state_numel * sequences,),
        reshape(states, *states.ne), x, dt, sketch.parameter(), b, c, mine,
    )  # fmt: skip
    sketch.graph.expand(out)
    _keep_others(sketch, held, states)
    kept = view(out, (mixer.state_numel * sequences,))
    sketch.graph.expand(written(view(held, (mixer.state_numel * sequences,)), kept))
    return out


def _mamba(sketch: Sketch, mixer: Recurrent, x: Tensor) -> Tensor:
    """Mamba-1 (Gu and Dao 2023), with norms on B, C and dt where the model has them (Jamba, FalconMamba)."""
    sequences = sketch.context.sequences
    tokens, inner, state = sketch.context.tokens // sequences, mixer.inner_dim, mixer.state_dim
    rank = next(found.shape[1] for found in mixer.weights if found.name.endswith("dt_proj.weight"))
    has_norms = any("layernorm" in found.name for found in mixer.weights)
    columns_of = reshape(x, x.ne[0], tokens, sequences)
    both = sketch.linear("ssm_in", 2 * inner, columns_of)
    hidden, z = view(both, (inner, tokens, sequences), both.nb[1:3]), view(both, (inner, tokens, sequences), both.nb[1:3])
    columns = _convolution(sketch, mixer, hidden)
    hidden = _convolved(sketch, mixer, columns, biased=True)
    split = sketch.linear("ssm_x", rank + 2 * state, hidden)
    dt = view(split, (rank, tokens, sequences), split.nb[1:3])
    b = view(split, (state, 1, tokens, sequences), (F32 * state, split.nb[1], split.nb[2]))
    c = view(split, (state, 1, tokens, sequences), (F32 * state, split.nb[1], split.nb[2]))
    if sketch.family.norms_states:
        dt, b, c = (like("rms_norm", part) for part in (dt, b, c))
    elif has_norms:
        dt, b, c = sketch.rms_norm(dt), sketch.rms_norm(b), sketch.rms_norm(c)
    else:
        dt = packed(dt)
    dt = like("add", sketch.linear("ssm_dt", inner, dt), sketch.parameter())
    heads = reshape(hidden, 1, inner, tokens, sequences)
    out = _scan(sketch, mixer, heads, dt, b, c)
    y = view(out, (inner, tokens, sequences), heads.nb[2:4])
    y = like("add", y, like("mul", hidden, sketch.parameter()))
    y = gated(packed(z), y)
    return reshape(sketch.linear("ssm_out", x.ne[0], y), x.ne[0], tokens * sequences)


def _mamba2(sketch: Sketch, mixer: Recurrent, x: Tensor) -> Tensor:
    """Mamba-2 (Dao and Gu 2024): one projection for z, x, B, C and dt; heads share B and C by groups."""
    sequences = sketch.context.sequences
    tokens, inner, state, groups = sketch.context.tokens // sequences, mixer.inner_dim, mixer.state_dim, mixer.num_groups
    heads, width = mixer.num_heads, mixer.head_dim
    has_norm = any(found.name.endswith("norm.weight") for found in mixer.weights)
    columns_state, held = _loaded_state(sketch, (mixer.conv_kernel - 1) * mixer.conv_channels)
    everything = sketch.linear("ssm_in", 2 * inner + 2 * groups * state + heads, x)
    everything = reshape(everything, everything.ne[0], tokens, sequences)
    z = view(everything, (width, heads, tokens, sequences), (F32 * width, everything.nb[1], everything.nb[2]))
    mixed = view(everything, (mixer.conv_channels, tokens, sequences), everything.nb[1:3])
    dt = view(everything, (heads, tokens, sequences), everything.nb[1:3])
    columns = joined(reshape(columns_state, mixer.conv_kernel - 1, mixer.conv_channels, sequences), transpose(mixed))
    last = view(columns, (mixer.conv_kernel - 1, mixer.conv_channels, sequences), columns.nb[1:3])
    sketch.graph.expand(written(view(held, ((mixer.conv_kernel - 1) * mixer.conv_channels, sequences)), last))
    mixed = _convolved(sketch, mixer, columns, biased=True)
    hidden = view(mixed, (width, heads, tokens, sequences), (F32 * width, mixed.nb[1], mixed.nb[2]))
    b = view(mixed, (state, groups, tokens, sequences), (F32 * state, mixed.nb[1], mixed.nb[2]))
    c = view(mixed, (state, groups, tokens, sequences), (F32 * state, mixed.nb[1], mixed.nb[2]))
    dt = like("add", packed(dt), sketch.parameter())
    out = _scan(sketch, mixer, hidden, dt, b, c)
    y = view(out, (width, heads, tokens, sequences), (hidden.nb[1], heads * hidden.nb[1], tokens * heads * hidden.nb[1]))
    y = like("add", y, like("mul", hidden, sketch.parameter()))
    y = gated(packed(z), y)
    if has_norm:
        y = sketch.rms_norm(reshape(y, inner // groups, groups, tokens, sequences))
    return sketch.linear("ssm_out", x.ne[0], reshape(y, inner, tokens * sequences))


def _gated_delta_net(sketch: Sketch, mixer: Recurrent, x: Tensor) -> Tensor:
    """Gated delta net (Yang et al. 2024) as Qwen3-Next has it, by ggml's fused operation."""
    sequences = sketch.context.sequences
    tokens = sketch.context.tokens // sequences
    k_heads, v_heads, k_dim = mixer.num_groups, mixer.num_heads, mixer.state_dim
    v_dim = mixer.inner_dim // v_heads
    mixed = sketch.linear("attn_qkv", mixer.conv_channels, x)
    mixed = reshape(mixed, mixer.conv_channels, tokens, sequences)
    z = sketch.linear("attn_gate", mixer.inner_dim, x)
    each = v_heads // k_heads
    splits_heads = any(found.name.endswith("in_proj_ba.weight") for found in mixer.weights)
    if splits_heads:
        both = reshape(sketch.linear("ssm_ba", 2 * v_heads, x), 2 * each, k_heads, tokens, sequences)
        parts = [view(both, (each, k_heads, tokens, sequences), both.nb[1:]) for _ in range(2)]
        beta, alpha = like("unary", packed(parts[0])), packed(parts[1], v_heads, tokens, sequences)
        beta = reshape(beta, 1, v_heads, tokens, sequences)
    else:
        beta = like("unary", reshape(sketch.linear("ssm_beta", v_heads, x), 1, v_heads, tokens, sequences))
        alpha = reshape(sketch.linear("ssm_alpha", v_heads, x), v_heads, tokens, sequences)
    alpha = like("unary", like("add", alpha, sketch.parameter()))
    gate = reshape(like("mul", alpha, sketch.parameter()), 1, v_heads, tokens, sequences)
    columns = _convolution(sketch, mixer, mixed)
    state, held = _loaded_state(sketch, mixer.state_numel)
    state = reshape(state, v_dim, v_dim, v_heads, sequences)
    convolved = _convolved(sketch, mixer, columns, biased=False)
    row = F32 * mixer.conv_channels

    def part(width: int, heads: int) -> Tensor:
        return view(convolved, (width, heads, tokens, sequences), (F32 * width, row, row * tokens))

    q, k, v = part(k_dim, k_heads), part(k_dim, k_heads), part(v_dim, v_heads)
    q, k = like("scale", like("rms_norm", q)), like("scale", like("rms_norm", k))
    if each > 1 and splits_heads:
        q, k = (_repeated(head, each, k_heads, tokens, sequences) for head in (q, k))
    values = v_dim * v_heads
    out = made("gated_delta_net", (values, tokens * sequences + v_dim * sequences), q, k, v, gate, beta, state)
    y = view(out, (v_dim, v_heads, tokens, sequences))
    final = view(out, (v_dim, v_dim, v_heads, sequences))
    sketch.graph.expand(written(view(held, (mixer.state_numel, sequences)), final))
    normed = sketch.rms_norm(y)
    y = like("mul", normed, like("unary", reshape(z, v_dim, v_heads, tokens, sequences)))
    return reshape(sketch.linear("ssm_out", x.ne[0], reshape(y, values, tokens, sequences)), x.ne[0], tokens * sequences)


def _kimi_delta(sketch: Sketch, mixer: Recurrent, x: Tensor) -> Tensor:
    """Kimi delta attention (Kimi Linear 2025): the fused delta rule with a decay for each channel."""
    sequences, heads, width = sketch.context.sequences, mixer.num_heads, mixer.head_dim
    tokens, inner, taps = sketch.context.tokens // sequences, mixer.inner_dim, mixer.conv_kernel - 1
    loaded, held = _loaded_state(sketch, taps * mixer.conv_channels)
    strides = (F32 * taps, F32 * taps * mixer.conv_channels)

    def convolved(leaf: str) -> Tensor:
        projected = reshape(sketch.linear(leaf, inner, x), inner, tokens, sequences)
        columns = joined(view(loaded, (taps, inner, sequences), strides), transpose(projected))
        last = view(columns, (taps, inner, sequences), columns.nb[1:3])
        sketch.graph.expand(written(view(held, (taps, inner, sequences), strides), last))
        out = made("ssm_conv", (inner, tokens, sequences), columns, reshape(sketch.parameter(), 1, 1))
        return reshape(like("unary", reshape(out, inner, tokens * sequences)), width, heads, tokens, sequences)

    q, k, v = convolved("attn_q"), convolved("attn_k"), convolved("attn_v")
    decay = like("add", sketch.linear("ssm_f_b", inner, sketch.linear("ssm_f_a", width, x)), sketch.parameter())
    decay = like("mul", reshape(like("unary", decay), width, heads, tokens * sequences), reshape(sketch.parameter(), 1, 1))
    decay = reshape(decay, width, heads, tokens, sequences)
    beta = like("unary", reshape(sketch.linear("ssm_beta", heads, x), 1, heads, tokens, sequences))
    state, held_state = _loaded_state(sketch, mixer.state_numel)
    state = reshape(state, width, width, heads, sequences)
    q, k = like("scale", like("rms_norm", q)), like("scale", like("rms_norm", k))
    out = made("gated_delta_net", (inner, tokens * sequences + width * sequences), q, k, v, decay, beta, state)
    y = packed(view(out, (width, heads, tokens, sequences)))
    final = view(out, (width, width, heads, sequences))
    sketch.graph.expand(written(view(held_state, (mixer.state_numel * sequences,)), final))
    gate = sketch.linear("ssm_g_b", inner, sketch.linear("ssm_g_a", width, x))
    normed = sketch.rms_norm(reshape(y, width, heads, tokens * sequences))
    opened = like("mul", normed, like("unary", reshape(gate, width, heads, tokens * sequences)))
    return sketch.linear("attn_output", x.ne[0], packed(opened, inner, tokens * sequences))


def _lightning(sketch: Sketch, mixer: Recurrent, x: Tensor) -> Tensor:
    """Lightning attention (MiniMax-01 2025): linear attention whose heads decay at their own rates, one block a batch."""
    sequences, heads, width = sketch.context.sequences, mixer.num_heads, mixer.head_dim
    tokens, inner = sketch.context.tokens // sequences, mixer.inner_dim
    empty, _ = _loaded_state(sketch, 0)
    sketch.graph.expand(empty)
    columns = reshape(x, x.ne[0], tokens, 1, sequences)
    mixed = reshape(like("unary", sketch.linear("attn_qkv", 3 * inner, columns)), 3 * width, heads, tokens, sequences)
    q, k, v = (view(mixed, (width, heads, tokens, sequences), mixed.nb[1:]) for _ in range(3))
    state, held = _loaded_state(sketch, mixer.state_numel)
    state = reshape(state, width, width, heads, sequences)
    slopes, *given_decays = sketch.decays(heads)
    rate = like("scale", slopes)
    of_queries, of_keys, of_pairs = (like("unary", like("scale", decay)) for decay in given_decays)
    earlier = product(state, permute(like("mul", q, of_queries), 0, 2, 1, 3))
    pairs = like("mul", product(permute(k, 0, 2, 1, 3), permute(q, 0, 2, 1, 3)), of_pairs)
    values = packed(permute(v, 1, 2, 0, 3))
    out = sketch.graph.expand(like("add", earlier, product(values, pairs)))
    fading = reshape(like("unary", like("scale", rate)), 1, 1, heads)
    keys = packed(permute(like("mul", k, of_keys), 1, 2, 0, 3))
    final = like("add", like("mul", state, fading), product(keys, values))
    sketch.graph.expand(written(view(held, (mixer.state_numel * sequences,)), final))
    normed = sketch.rms_norm(reshape(packed(permute(out, 0, 2, 1, 3)), inner, tokens, 1, sequences))
    opened = like("mul", like("unary", sketch.linear("attn_gate", inner, columns)), normed)
    return reshape(sketch.linear("attn_output", x.ne[0], opened), x.ne[0], tokens * sequences)


def _short_convolution(sketch: Sketch, mixer: Recurrent, x: Tensor) -> Tensor:
    """LFM2's gated short convolution: one projection for two gates and the values."""
    width, sequences = mixer.conv_channels, sketch.context.sequences
    tokens = sketch.context.tokens // sequences
    three = sketch.linear("shortconv.in_proj", 3 * width, reshape(x, x.ne[0], tokens, sequences))
    b, c, values = (view(three, (width, tokens, sequences), three.nb[1:3]) for _ in range(3))
    columns = _convolution(sketch, mixer, like("mul", b, values))
    convolved = made("ssm_conv", (width, tokens, sequences), columns, sketch.parameter())
    out = sketch.linear("shortconv.out_proj", x.ne[0], like("mul", c, convolved))
    return reshape(out, x.ne[0], tokens * sequences)


def _repeated(heads: Tensor, times: int, k_heads: int, tokens: int, sequences: int) -> Tensor:
    width = heads.ne[0]
    flat = reshape(heads, width, 1, k_heads, tokens * sequences)
    return reshape(made("repeat", (width, times, k_heads, tokens * sequences), flat), width, times * k_heads, tokens, sequences)
