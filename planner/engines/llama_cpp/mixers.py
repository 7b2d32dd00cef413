"""The sequence mixers of llama.cpp's graphs, tensor by tensor: attention, latent attention, Mamba, gated delta net.

Source: llama.cpp ``src/llama-graph.cpp``, ``src/models/mamba-base.cpp``, ``deepseek2.cpp``, ``qwen3next.cpp`` and
``delta-net-base.cpp`` (0.5.0-dev, ggml 0.25.3). The order of statements is the order of nodes.
"""

from __future__ import annotations

from planner.architecture.layers import Attention, LatentAttention, Recurrent
from planner.components.layer import NotModelled
from planner.engines.llama_cpp.graph import (
    F16,
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
from planner.engines.llama_cpp.sketch import Cache, Sketch

ROTATION = 64
"""Width of the Hadamard rotation of quantised values; keys use the largest power of two that divides a head."""


def attention(sketch: Sketch, mixer: Attention, x: Tensor) -> Tensor:
    """Softmax attention over a cache, and its output projection."""
    if mixer.output_gate:
        return _gated_attention(sketch, mixer, x)
    q, k, v = _queries_keys_values(sketch, mixer, x)
    if sketch.family.scales_queries:
        q = like("scale", q)
    if sketch.family.scales_by_position:
        q = like("mul", q, sketch.position_scale)
    attended = _over_cache(sketch, mixer, q, k, v)
    return _output(sketch, mixer, attended, x.ne[0])


def _output(sketch: Sketch, mixer: Attention, attended: Tensor, hidden_size: int) -> Tensor:
    projected = sketch.linear("attn_output", hidden_size, attended)
    return like("add", projected, sketch.parameter()) if _has(mixer, OUTPUT, "bias") else projected


OUTPUT = ("o_proj", "out_proj", "dense", "c_proj")


def _has(mixer: Attention, modules: tuple[str, ...], kind: str) -> bool:
    return any(found.name.endswith(f"{module}.{kind}") for module in modules for found in mixer.weights)


def _queries_keys_values(sketch: Sketch, mixer: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three tensors (head_dim, heads, tokens), rotated where the model rotates."""
    tokens = sketch.context.tokens
    biased = _has(mixer, ("q_proj", "qkv_proj", "query_key_value", "c_attn", "Wqkv", "q"), "bias")
    widths = ((mixer.head_dim, mixer.num_heads), (mixer.head_dim, mixer.num_kv_heads), (mixer.value_head_dim, mixer.num_kv_heads))
    if mixer.fused_qkv:
        fused = sketch.linear("attn_qkv", sum(width * heads for width, heads in widths), x)
        if biased:
            fused = like("add", fused, sketch.parameter())
        parts = [view(fused, (width, heads, tokens), (F32 * width, fused.nb[1])) for width, heads in widths]
    else:
        parts = []
        for leaf, (width, heads) in zip(("attn_q", "attn_k", "attn_v"), widths, strict=True):
            part = sketch.linear(leaf, width * heads, x)
            if biased:
                part = like("add", part, sketch.parameter())
            if mixer.qk_norm == "full_width" and len(parts) < 2:
                part = sketch.rms_norm(part)
            parts.append(reshape(part, width, heads, tokens))
    q, k, v = parts
    is_normed, rotates_first = mixer.qk_norm == "per_head", sketch.family.rotates_before_norm
    if is_normed and not rotates_first:
        q, k = _head_norm(sketch, mixer, q), _head_norm(sketch, mixer, k)
    if sketch.rotates(mixer):
        q, k = like("rope", q, sketch.positions), like("rope", k, sketch.positions)
    if is_normed and rotates_first:
        q, k = _head_norm(sketch, mixer, q), _head_norm(sketch, mixer, k)
    return q, k, v


def _head_norm(sketch: Sketch, mixer: Attention, x: Tensor) -> Tensor:
    """Per head; a weight of as many rows as heads (Cohere, StableLM) tells a layer norm."""
    is_layer_norm = any(found.role == "norm" and len(found.shape) > 1 for found in mixer.weights)
    return like("mul", like("norm", x), sketch.parameter(values=x.ne[0])) if is_layer_norm else sketch.rms_norm(x)


def _gated_attention(sketch: Sketch, mixer: Attention, x: Tensor) -> Tensor:
    """Qwen3-Next: queries and an output gate from one projection."""
    tokens, width, heads = sketch.context.tokens, mixer.head_dim, mixer.num_heads
    both = reshape(sketch.linear("attn_q", 2 * width * heads, x), 2 * width, heads, tokens)
    strides = both.nb[1:]
    q, gate = view(both, (width, heads, tokens), strides), view(both, (width, heads, tokens), strides)
    k = reshape(sketch.linear("attn_k", width * mixer.num_kv_heads, x), width, mixer.num_kv_heads, tokens)
    v = reshape(sketch.linear("attn_v", width * mixer.num_kv_heads, x), width, mixer.num_kv_heads, tokens)
    q, k = sketch.rms_norm(q), sketch.rms_norm(k)
    q, k = like("rope", q, sketch.positions), like("rope", k, sketch.positions)
    attended = _over_cache(sketch, mixer, q, k, v)
    opened = like("unary", packed(gate, width * heads, tokens))
    return sketch.linear("attn_output", x.ne[0], like("mul", attended, opened))


def _over_cache(sketch: Sketch, mixer: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Store keys and values, attend to the whole cache: (values' width · heads, tokens)."""
    cache = sketch.cache_of(mixer)
    if cache.rotation_k is not None:
        q, k = _rotated(q, cache.rotation_k), _rotated(k, cache.rotation_k)
    if cache.rotation_v is not None:
        v = _rotated(v, cache.rotation_v)
    graph = sketch.graph
    for tensor in (q, k, v) if sketch.has_windows else (q, v, k):
        graph.expand(tensor)
    heads = mixer.num_kv_heads
    graph.expand(_stored_rows(sketch, cache.keys(mixer), k, cache.key_rows, by_value=False))
    graph.expand(_stored_rows(sketch, cache.values(mixer), v, cache.value_rows, by_value=not sketch.context.flash))
    streams, cells = sketch.context.streams, cache.cells
    held_k = view(cache.keys(mixer), (mixer.head_dim, heads, cells, streams))
    if sketch.context.flash:
        held_v = view(cache.values(mixer), (mixer.value_head_dim, heads, cells, streams))
    else:
        held_v = view(cache.values(mixer), (cells, heads, mixer.value_head_dim, streams))
    attended = attend(sketch, q, held_k, held_v, cache, mixer, transposed=not sketch.context.flash)
    if cache.rotation_v is not None:
        attended = _rotated(attended, cache.rotation_v)
    return attended


def _rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """``llama_mul_mat_hadamard``: rows of the rotation's width, multiplied, and the old shape again."""
    width = rotation.ne[0]
    rows = values_in(x) // width
    flat = reshape(x, width, rows) if x.is_contiguous else packed(x, width, rows)
    return reshape(product(rotation, flat), *x.ne)


def _stored_rows(sketch: Sketch, target: Tensor, x: Tensor, rows: Tensor, *, by_value: bool) -> Tensor:
    """The write of this batch's keys or values; ``by_value``: transposed values are written one by one."""
    width, tokens = x.ne[0] * x.ne[1], x.ne[2]
    if by_value:
        follows = x.nb[2] == F32 * width
        flat = reshape(x, width, tokens) if follows else packed(x, width, tokens)
        return written(reshape(target, 1, values_in(target)), reshape(flat, 1, width * tokens), rows)
    flat = view(x, (width, tokens), (x.nb[2],))
    return written(reshape(target, width, values_in(target) // width) if sketch.context.streams > 1 else target, flat, rows)


def attend(
    sketch: Sketch,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: Cache,
    mixer: Attention | LatentAttention,
    *,
    transposed: bool,
    value_up: Tensor | None = None,
) -> Tensor:
    """``build_attn_mha``: fused or step by step; ``value_up`` takes latent values back to heads."""
    streams = k.ne[3]
    q = view(q, (q.ne[0], q.ne[1], q.ne[2] // streams, streams), (q.nb[1], q.nb[2], q.nb[2] * (q.ne[2] // streams)))
    q, k, v = permute(q, 0, 2, 1, 3), permute(k, 0, 2, 1, 3), permute(v, 0, 2, 1, 3)
    fused = sketch.context.flash
    attended = (
        _flash(sketch, q, k, v, cache, mixer, value_up)
        if fused
        else _scores(sketch, q, k, v, cache, mixer, value_up, transposed=transposed)
    )
    return sketch.graph.expand(attended)


def _flash(
    sketch: Sketch, q: Tensor, k: Tensor, v: Tensor, cache: Cache, mixer: Attention | LatentAttention, value_up: Tensor | None
) -> Tensor:
    if sketch.context.type_k == "F32":
        k = made("cast", k.ne, k, element_bytes=F16)
    if sketch.context.type_v == "F32" and isinstance(mixer, Attention):
        v = made("cast", v.ne, v, element_bytes=F16)
    sinks = (sketch.parameter(),) if isinstance(mixer, Attention) and mixer.has_sinks else ()
    out = made("flash_attn", (v.ne[0], q.ne[2], q.ne[1], q.ne[3]), q, k, v, cache.mask, *sinks)
    out.size_bytes += sketch.flash_copy_bytes(k, v)
    if value_up is not None:
        out = packed(permute(product(value_up, permute(out, 0, 2, 1, 3)), 0, 2, 1, 3))
    return reshape(out, out.ne[0] * out.ne[1], out.ne[2] * out.ne[3])


def _scores(
    sketch: Sketch,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: Cache,
    mixer: Attention | LatentAttention,
    value_up: Tensor | None,
    *,
    transposed: bool,
) -> Tensor:
    scores = product(k, q)
    if isinstance(mixer, Attention) and mixer.logit_softcap:
        scores = like("scale", like("unary", like("scale", scores)))
    sinks = (sketch.parameter(),) if isinstance(mixer, Attention) and mixer.has_sinks else ()
    scores = like("soft_max", scores, cache.mask, *sinks)
    if not transposed:
        v = packed(transpose(v))
    out = product(v, scores)
    if value_up is not None:
        out = product(value_up, out)
    out = permute(out, 0, 2, 1, 3)
    return packed(out, out.ne[0] * out.ne[1], out.ne[2] * out.ne[3])


def latent_attention(sketch: Sketch, mixer: LatentAttention, x: Tensor) -> Tensor:
    """Multi-head latent attention with the key projection absorbed into the queries: one cached head of latent width."""
    tokens, heads = sketch.context.tokens, mixer.num_heads
    nope, rope, rank = mixer.qk_nope_head_dim, mixer.qk_rope_head_dim, mixer.kv_lora_rank
    q = x
    if mixer.q_lora_rank:
        q = sketch.rms_norm(sketch.linear("q_a_proj", mixer.q_lora_rank, q))
    q = reshape(sketch.linear("q_b_proj" if mixer.q_lora_rank else "attn_q", heads * (nope + rope), q), nope + rope, heads, tokens)
    both = sketch.linear("kv_a_proj_with_mqa", rank + rope, x)
    latent = view(both, (rank, tokens), (both.nb[1],))
    k_rope = like("rope", view(both, (rope, 1, tokens), (both.nb[1], both.nb[1])), sketch.positions)
    latent = sketch.rms_norm(latent)
    q_nope = view(q, (nope, heads, tokens), q.nb[1:3])
    q_rope = like("rope", view(q, (rope, heads, tokens), q.nb[1:3]), sketch.positions)
    absorbed = permute(product(sketch.parameter(rank, "attn_k_b"), permute(q_nope, 0, 2, 1, 3)), 0, 2, 1, 3)
    queries = joined(absorbed, q_rope)
    latent = reshape(latent, rank, 1, tokens)
    keys = joined(latent, k_rope)
    cache = sketch.cache_of(mixer)
    for tensor in (queries, latent, keys):
        sketch.graph.expand(tensor)
    sketch.graph.expand(_stored_rows(sketch, cache.keys(mixer), keys, cache.key_rows, by_value=False))
    streams = sketch.context.streams
    held = view(cache.keys(mixer), (rank + rope, 1, cache.cells, streams))
    values = view(held, (rank, 1, cache.cells, streams), held.nb[1:])
    value_up = sketch.parameter(mixer.v_head_dim, "attn_v_b")
    attended = attend(sketch, queries, held, values, cache, mixer, transposed=False, value_up=value_up)
    return sketch.linear("attn_output", x.ne[0], attended)


def recurrent(sketch: Sketch, mixer: Recurrent, x: Tensor) -> Tensor:
    """A mixer with constant state per sequence."""
    match mixer.kind:
        case "mamba":
            return _mamba(sketch, mixer, x)
        case "mamba2":
            return _mamba2(sketch, mixer, x)
        case "gated_delta_net":
            return _gated_delta_net(sketch, mixer, x)
        case "short_conv":
            return _short_convolution(sketch, mixer, x)
        case _:
            raise NotModelled(f"llama.cpp's graph of {mixer.kind} is not derived")


def _states(sketch: Sketch, size: int) -> tuple[Tensor, Tensor]:
    """``build_rs``, first half: all states of a layer, and the graph's clearing of a fresh one."""
    sequences = sketch.context.sequences
    held = stored((size, sequences, 1, 1), sketch.device)
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
