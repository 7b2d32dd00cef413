"""The attention of llama.cpp's graphs, tensor by tensor: over a cache of heads, or of latent values.

Source: llama.cpp ``src/llama-graph.cpp`` (``build_qkv``, ``build_attn``), ``src/models/deepseek2.cpp`` and ``qwen3next.cpp``
(0.5.0-dev, ggml 0.25.3). The order of statements is the order of nodes.
"""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.layers import Attention, LatentAttention
from planner.engines.llama_cpp.graph import (
    F16,
    F32,
    Tensor,
    joined,
    like,
    made,
    packed,
    permute,
    product,
    reshape,
    transpose,
    values_in,
    view,
    written,
)
from planner.engines.llama_cpp.sketch import Cache, Sketch
from planner.engines.llama_cpp.sparse import best_cells, masked_but


def attention(sketch: Sketch, mixer: Attention, x: Tensor) -> Tensor:
    """Softmax attention over a cache, and its output projection."""
    if mixer.output_gate:
        return _gated_attention(sketch, mixer, x)
    if mixer.kv == "shared":
        return _output(sketch, mixer, _over_shared_cache(sketch, mixer, _queries(sketch, mixer, x)), x.ne[0])
    q, k, v = _queries_keys_values(sketch, mixer, x)
    if sketch.family.scales_queries:
        q = like("scale", q)
    if sketch.family.scales_by_position or (sketch.family.scales_unrotated and not sketch.rotates(mixer)):
        q = like("mul", q, sketch.position_scale)
    if sketch.norms_rotated and sketch.rotates(mixer):
        q, k = like("rms_norm", q), like("rms_norm", k)
    attended = _over_cache(sketch, mixer, q, k, v)
    if sketch.family.gates_attention != "none":
        attended = _opened(sketch, mixer, x, attended)
    return _output(sketch, mixer, attended, x.ne[0])


def _opened(sketch: Sketch, mixer: Attention, x: Tensor, attended: Tensor) -> Tensor:
    """What was attended to, times a gate for each value or for each head."""
    width, tokens = mixer.value_head_dim * mixer.num_heads, x.ne[1]
    rows = next(found.shape[0] for found in mixer.weights if found.name.endswith(GATES))
    gate = like("unary", sketch.linear("attn_gate", rows, x))
    if rows == width:
        return like("mul", attended, gate)
    heads = reshape(attended, mixer.value_head_dim, mixer.num_heads, tokens)
    return reshape(like("mul", heads, reshape(gate, 1, mixer.num_heads, tokens)), width, tokens)


GATES = ("gate_proj.weight", "g_proj.weight")


def _output(sketch: Sketch, mixer: Attention, attended: Tensor, hidden_size: int) -> Tensor:
    projected = sketch.linear("attn_output", hidden_size, attended)
    if _has(mixer, OUTPUT, "bias"):
        projected = like("add", projected, sketch.parameter())
    return like("scale", projected) if sketch.family.scales_attended else projected


OUTPUT = ("o_proj", "out_proj", "dense", "c_proj")


def _has(mixer: Attention, modules: tuple[str, ...], kind: str) -> bool:
    return any(found.name.endswith(f"{module}.{kind}") for module in modules for found in mixer.weights)


def _queries_keys_values(sketch: Sketch, mixer: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three tensors (head_dim, heads, tokens), rotated where the model rotates."""
    widths = ((mixer.head_dim, mixer.num_heads), (mixer.head_dim, mixer.num_kv_heads), (mixer.value_head_dim, mixer.num_kv_heads))
    biased = _has(mixer, ("q_proj", "qkv_proj", "query_key_value", "c_attn", "Wqkv", "q"), "bias")
    if mixer.fused_qkv:
        q, k, v = _fused(sketch, x, widths, biased=biased)
    else:
        q, k, v = _projected(sketch, mixer, x, widths, biased=biased)
    if sketch.family.norms_values:
        v = like("rms_norm", v)
    is_normed, rotates_first = mixer.qk_norm == "per_head", sketch.family.rotates_before_norm
    if is_normed and not rotates_first:
        q, k = _head_norm(sketch, mixer, q), _head_norm(sketch, mixer, k)
    if sketch.rotates(mixer):
        q, k = like("rope", q, sketch.positions), like("rope", k, sketch.positions)
    if is_normed and rotates_first:
        q, k = _head_norm(sketch, mixer, q), _head_norm(sketch, mixer, k)
    return q, k, v


Widths = tuple[tuple[int, int], ...]


def _fused(sketch: Sketch, x: Tensor, widths: Widths, *, biased: bool) -> list[Tensor]:
    """Queries, keys and values from one projection."""
    fused = sketch.linear("attn_qkv", sum(width * heads for width, heads in widths), x)
    if biased:
        fused = like("add", fused, sketch.parameter())
    return [view(fused, (width, heads, sketch.context.tokens), (F32 * width, fused.nb[1])) for width, heads in widths]


def _projected(sketch: Sketch, mixer: Attention, x: Tensor, widths: Widths, *, biased: bool) -> list[Tensor]:
    """Queries, keys and values from a projection each; a layer without one for values takes the keys."""
    parts: list[Tensor] = []
    leaves = ["attn_q", "attn_k", "attn_v"]
    if sketch.family.norms_values and not _has(mixer, ("v_proj",), "weight"):
        leaves.pop()
    for leaf, (width, heads) in zip(leaves, widths, strict=False):
        part = sketch.linear(leaf, width * heads, x)
        if biased:
            part = like("add", part, sketch.parameter())
        if mixer.qk_norm == "full_width" and len(parts) < 2:
            part = sketch.rms_norm(part)
        parts.append(part)
    parts = [*parts, parts[-1]][:3]
    return [reshape(part, width, heads, sketch.context.tokens) for part, (width, heads) in zip(parts, widths, strict=True)]


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
    graph.expand(_stored_rows(sketch, cache.keys(mixer), k, cache.key_rows, by_value=False))
    graph.expand(_stored_rows(sketch, cache.values(mixer), v, cache.value_rows, by_value=not sketch.context.flash))
    return _attended(sketch, mixer, cache, q)


def _attended(sketch: Sketch, mixer: Attention, cache: Cache, q: Tensor) -> Tensor:
    heads = mixer.num_kv_heads
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


def _queries(sketch: Sketch, mixer: Attention, x: Tensor) -> Tensor:
    """Of a layer that takes keys and values from another's cache."""
    q = reshape(sketch.linear("attn_q", mixer.head_dim * mixer.num_heads, x), mixer.head_dim, mixer.num_heads, x.ne[1])
    return like("rope", sketch.rms_norm(q), sketch.positions)


def _over_shared_cache(sketch: Sketch, mixer: Attention, q: Tensor) -> Tensor:
    """Attend to the cache that another layer has filled."""
    cache = sketch.cache_of(mixer)
    if cache.rotation_k is not None:
        q = _rotated(q, cache.rotation_k)
    sketch.graph.expand(q)
    return _attended(sketch, mixer, cache, q)


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
    return sketch.beside_cache(packed(out, out.ne[0] * out.ne[1], out.ne[2] * out.ne[3]))


def latent_attention(sketch: Sketch, mixer: LatentAttention, x: Tensor) -> Tensor:
    """Multi-head latent attention with the key projection absorbed into the queries: one cached head of latent width."""
    tokens, heads = sketch.context.tokens, mixer.num_heads
    nope, rope, rank = mixer.qk_nope_head_dim, mixer.qk_rope_head_dim, mixer.kv_lora_rank
    q = x
    if mixer.q_lora_rank:
        q = sketch.rms_norm(sketch.linear("q_a_proj", mixer.q_lora_rank, q))
    picked = best_cells(sketch, mixer.indexer, x, q) if mixer.indexer is not None else None
    q = reshape(sketch.linear("q_b_proj" if mixer.q_lora_rank else "attn_q", heads * (nope + rope), q), nope + rope, heads, tokens)
    both = sketch.linear("kv_a_proj_with_mqa", rank + rope, x)
    latent = view(both, (rank, tokens), (both.nb[1],))
    k_rope = view(both, (rope, 1, tokens), (both.nb[1], both.nb[1]))
    q_nope, q_rope = view(q, (nope, heads, tokens), q.nb[1:3]), view(q, (rope, heads, tokens), q.nb[1:3])
    if sketch.family.rotates_latent:
        k_rope, q_rope = like("rope", k_rope, sketch.positions), like("rope", q_rope, sketch.positions)
    latent = sketch.rms_norm(latent)
    absorbed = permute(product(sketch.parameter(rank, "attn_k_b"), permute(q_nope, 0, 2, 1, 3)), 0, 2, 1, 3)
    queries = joined(absorbed, q_rope)
    if sketch.family.scales_by_position:
        queries = like("mul", queries, sketch.position_scale)
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
    if picked is not None:
        cache = replace(cache, mask=masked_but(cache.mask, picked))
    attended = attend(sketch, queries, held, values, cache, mixer, transposed=False, value_up=value_up)
    return sketch.linear("attn_output", x.ne[0], attended)
