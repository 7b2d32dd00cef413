"""Softmax attention with per-head keys and values, as transformers 5.23 writes it."""

from __future__ import annotations

from planner.architecture.layers import Attention, Norm, Weight
from planner.components.graph import Graph, linear, multiply, sliced
from planner.components.kernels import Operands, choose_kernel, eager, eager_alibi, eager_wide, fused, math, repeat_keys
from planner.components.norms import norm_forward
from planner.components.rotary import Rotated, rotate
from planner.components.run import Run, module_of
from planner.components.tape import Size


def attention_forward(g: Graph, mixer: Attention, source: str, target: str) -> None:
    """Projections, norms of queries and keys, rotation, cache, attention, output projection.

    Reads ``source``; leaves ``target``, the block's output, and, computed eagerly, ``probabilities``, which the caller frees.
    """
    run, project = g.run, _projections(mixer)
    _project(g, mixer, project, source)
    tensors = [Rotated(name, heads, mixer.head_dim, mixer.rotary_dim) for name, heads in _query_and_key(mixer)]
    if mixer.rotary_dim:
        rotate(g, g.run.code.rotary, tensors)
    else:
        for tensor in tensors:
            g.rename(tensor.name, f"{tensor.name} rotated")
    if mixer.qk_norm != "none" and run.code.normed_after_rotation:
        for name, heads in _query_and_key(mixer):
            norm_forward(g, _head_norm(mixer, name), f"{name} norm", f"{name} rotated", heads, run.code.qk_norm)
            g.free(f"{name} rotated")
            g.rename(f"{name} norm", f"{name} rotated")
    keys, values = "k rotated", "v"
    if run.cached and mixer.kv == "own":
        _cache_forward(g, mixer)
        keys, values = "k cached", "v cached"
    _attend(g, mixer, Operands(
        "q rotated", keys, values, mixer.num_heads, mixer.num_kv_heads, mixer.head_dim, mixer.value_head_dim,
        run.past_cells(mixer) + run.sequence, needs_mask(run, mixer),
    ))  # fmt: skip
    if mixer.output_gate:
        _gate(g, mixer)
    linear(g, target, "attended", run.hidden(), project.get("o_proj", ()))
    g.free("attended", "q rotated", "k rotated", "v", "q gate", "scores", "scores masked", "q by head", "qkv")


def needs_mask(run: Run, mixer: Attention) -> bool:
    """Whether attention takes a mask tensor.

    A window that is reached can't be said by ``is_causal`` alone (``masking_utils``); eager code adds a mask always, and
    so do classes that ask for one (Falcon).
    """
    if run.eager or run.code.attention != "sdpa" or run.code.masked:
        return True
    window = mixer.window_tokens or mixer.chunk_tokens
    return window is not None and run.sequence > 1 and run.past_tokens + run.sequence >= window


def mask_sizes(run: Run, mixer: Attention) -> tuple[list[Size], Size] | None:
    """Of the mask that layers of one kind share: what is alive while it is made, and what stays; None without one.

    It is a boolean mask, its parts combined pairwise where there is a window; eager code turns it into numbers.
    """
    if not needs_mask(run, mixer):
        return None
    window = mixer.window_tokens or mixer.chunk_tokens
    keys = run.past_cells(mixer) + run.sequence
    boolean = Size(queries=run.sequence, keys=keys, bool_bytes=1)
    if run.eager or run.code.attention != "sdpa":
        return [boolean] * (1 if window is None else 2), Size(
            batch=run.batch, queries=run.sequence, keys=keys, bytes=run.dtype_bytes
        )
    return [boolean] * (0 if window is None else 2), boolean


def _project(g: Graph, mixer: Attention, project: dict[str, tuple[Weight, ...]], source: str) -> None:
    run = g.run
    sizes = {
        "q": run.heads(mixer.num_heads, mixer.head_dim),
        "k": run.heads(mixer.num_kv_heads, mixer.head_dim),
        "v": run.heads(mixer.num_kv_heads, mixer.value_head_dim),
    }
    if mixer.fused_qkv:
        width = mixer.num_heads * mixer.head_dim + mixer.num_kv_heads * (mixer.head_dim + mixer.value_head_dim)
        linear(g, "qkv", source, run.rows(width), project.get("qkv", ()))
        for name, size in sizes.items():
            g.view(name, "qkv", sliced, size)
        return
    for name in ("q", "k", "v") if mixer.kv == "own" else ("q",):
        weights = project.get(f"{name}_proj", ())
        if name == "q" and mixer.output_gate:
            linear(g, "q and gate", source, run.heads(2 * mixer.num_heads, mixer.head_dim), weights)
            g.view("q", "q and gate", sliced, sizes["q"])
            g.view("q gate", "q and gate", sliced, sizes["q"])
            g.free("q and gate")
        else:
            linear(g, name, source, sizes[name], weights, copies=name != "v" and bool(mixer.rotary_dim) and mixer.qk_norm == "none")
        if name != "v" and mixer.qk_norm != "none" and not run.code.normed_after_rotation:
            heads = mixer.num_heads if name == "q" else mixer.num_kv_heads
            full = mixer.qk_norm == "full_width"
            norm_forward(
                g, _head_norm(mixer, name, heads if full else 1), f"{name} norm", name, 1 if full else heads, run.code.qk_norm
            )
            g.free(name)
            g.rename(f"{name} norm", name)


def _attend(g: Graph, mixer: Attention, ops: Operands) -> None:
    """By the kernel that the class and the scenario ask for; its output is laid out token by token."""
    joined = g.run.code.rotary == "joined" or 0 < mixer.rotary_dim < mixer.head_dim
    by_head = joined or g.run.code.rotary == "chunks"
    if g.run.code.attention == "alibi":
        eager_alibi(g, ops)
    elif g.run.code.attention == "eager_wide":
        eager_wide(g, ops)
    elif g.run.code.attention == "eager" or g.run.eager:
        eager(g, ops, softcap=mixer.logit_softcap, sinks=mixer.has_sinks, query_by_head=by_head)
    else:
        _fused_or_math(g, ops, by_head=by_head)


def _fused_or_math(g: Graph, ops: Operands, *, by_head: bool) -> None:
    """``sdpa_attention_forward``: keys are repeated where there is a mask; else the kernel takes them grouped."""
    run = g.run
    read = repeat_keys(g, ops) if ops.masked and run.code.repeats_keys else ops
    kernel = choose_kernel(run, read, grouped_natively=not ops.masked)
    if kernel == "math":
        math(g, read)
    else:
        fused(g, kernel, read)
    if read is not ops:
        g.free(read.k, read.v)
    if kernel == "math" or (kernel == "flash" and by_head):
        g.make("attended by token", run.heads(ops.heads, ops.value_head_dim), ("attended",))
        g.free("attended")
        g.rename("attended by token", "attended")


def _gate(g: Graph, mixer: Attention) -> None:
    """attended · sigmoid(gate), the gate being the other half of the query projection (Qwen3-Next)."""
    size = g.run.heads(mixer.num_heads, mixer.value_head_dim)
    g.make("gate open", size, ("q gate",), ("gate open",))
    multiply(g, "gated", size, "attended", "gate open")
    g.free("attended", "gate open")
    g.rename("gated", "attended")


def _cache_forward(g: Graph, mixer: Attention) -> None:
    """``DynamicLayer.update``: keys, then values are copied behind what the cache holds; the old cache goes with each.

    A sliding-window layer keeps a view of its last tokens; what it copied stays alive under the view. Falcon caches what
    it has repeated for every head.
    """
    run, names = g.run, ("k", "v")
    windowed = (mixer.window_tokens or mixer.chunk_tokens) is not None
    for name in names:
        g.relabel(f"{name} past", "workspace")
        g.hold(f"{name} cached", run.cache(mixer, name, run.past_cells(mixer) + run.sequence), "kv_cache")
        if not windowed:
            g.consume(f"{name} past")
    g.consume(*(f"{name} past" for name in names))
    g.free("k rotated", "v")


def _query_and_key(mixer: Attention) -> list[tuple[str, int]]:
    both = [("q", mixer.num_heads), ("k", mixer.num_kv_heads)]
    return both if mixer.kv == "own" else both[:1]


def _head_norm(mixer: Attention, name: str, heads: int = 1) -> Norm:
    weights = tuple(weight for weight in mixer.weights if module_of(weight) in (f"{name}_norm", f"{name}_layernorm"))
    return Norm(f"{name}_norm", heads * mixer.head_dim, "rms", weights)


def _projections(mixer: Attention) -> dict[str, tuple[Weight, ...]]:
    """Weights and biases of the linears, in the order query, key, value (or all in one), output."""
    modules: dict[str, list[Weight]] = {}
    for weight in mixer.weights:
        if weight.role in ("linear", "bias"):
            modules.setdefault(weight.name.rpartition(".")[0], []).append(weight)
    names = (
        ("qkv", "o_proj")
        if mixer.fused_qkv
        else ("q_proj", "k_proj", "v_proj", "o_proj")
        if mixer.kv == "own"
        else ("q_proj", "o_proj")
    )
    return {name: tuple(weights) for name, weights in zip(names, modules.values(), strict=False)}
