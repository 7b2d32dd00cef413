"""Softmax attention with per-head keys and values, as transformers 5.23 writes it."""

from __future__ import annotations

from planner.architecture.implementation import NormVariant
from planner.architecture.layers import Attention, Norm, Weight
from planner.components.autocast import in_16_bit, is_wide, narrowed, of_16_bit
from planner.components.differential import KEPT as DIFFERENTIAL
from planner.components.differential import attend_twice, is_differential
from planner.components.eager_attention import eager, eager_alibi, eager_biased, eager_wide
from planner.components.fused_lora import Projection, fuses, lay_fused
from planner.components.graph import Graph
from planner.components.kernels import FLASH_MAX_HEAD_DIM, Operands, choose_kernel, fused, math, packed, repeat_keys
from planner.components.norms import norm_forward
from planner.components.older_attention import eager_bounded, eager_into_zeros
from planner.components.operators import linear, multiply
from planner.components.quantised_cache import quantised_forward
from planner.components.rotary import Rotated, rotate
from planner.components.rules import broadcast, passed_on, sliced
from planner.components.run import FP32_BYTES, Run, module_of
from planner.components.tape import Size
from planner.modelled import NotModelled

HANDED_OUT = "keys and values handed out"
GATE = "gate_proj"
"""A linear beside those of queries, keys and values, whose sigmoid gates what was attended to."""
LATE_GATE = "g_proj"
"""One that is computed once attention is over, for every value or one for each head."""
WHOLE_NAME = {"q": "query", "k": "key"}


def attention_forward(g: Graph, mixer: Attention, source: str, target: str) -> None:
    """Projections, norms of queries and keys, rotation, cache, attention, output projection.

    Reads ``source``; leaves ``target``, the block's output, and, computed eagerly, ``probabilities``, which the caller frees.
    """
    with in_16_bit(g):
        _attention_forward(g, mixer, source, target)


def _attention_forward(g: Graph, mixer: Attention, source: str, target: str) -> None:
    run, project = g.run, _projections(mixer)
    _project(g, mixer, project, source)
    kv_heads = mixer.cached_kv_heads or mixer.num_kv_heads
    tensors = [Rotated(name, heads, mixer.head_dim, mixer.rotary_dim) for name, heads in _query_and_key(mixer)]
    if mixer.rotary_dim and not run.code.rotates_each:
        rotate(g, g.run.code.rotary, tensors)
    elif not mixer.rotary_dim:
        for tensor in tensors:
            g.rename(tensor.name, f"{tensor.name} rotated")
    if mixer.qk_norm != "none" and run.code.normed_after_rotation:
        for name, heads in _query_and_key(mixer):
            norm_forward(g, _head_norm(mixer, name), f"{name} norm", f"{name} rotated", heads, run.code.qk_norm)
            g.free(f"{name} rotated")
            g.rename(f"{name} norm", f"{name} rotated")
    keys, values = "k rotated", "v"
    if run.cached:
        keys, values = _through_cache(g, mixer)
    queries = "q rotated"
    if run.code.attention == "sdpa" and not run.eager:
        queries, keys, values = (_cast_for_attention(g, name) for name in (queries, keys, values))
    with of_16_bit(g):
        _attend(g, mixer, Operands(
            queries, keys, values, mixer.num_heads, kv_heads, mixer.head_dim, mixer.value_head_dim,
            seen_keys(run, mixer), needs_mask(run, mixer),
        ))  # fmt: skip
    g.free("q rotated cast", "k rotated cast", "v cast")
    _gated(g, mixer, project, source)
    _norm_attended(g, mixer)
    result = narrowed(run.hidden()) if run.autocast else run.hidden()
    _project_output(g, project.get("o_proj", ()), target, result)
    g.free("attended", "q rotated", "k rotated", "v", "q gate", "scores", "scores masked", "q by head")
    g.free(*DIFFERENTIAL)
    g.free("q", "k", "q new", "k new", "k anew", "v anew")
    if run.hands_out_keys and mixer.fused_qkv and not g.saving:
        g.rename("qkv", HANDED_OUT)
    else:
        g.free("qkv")


def _through_cache(g: Graph, mixer: Attention) -> tuple[str, str]:
    """The keys and values that attention reads once the cache has taken the new ones."""
    run = g.run
    if run.quantised_cache is not None:
        return quantised_forward(g, mixer, run.quantised_cache)
    if mixer.kv == "own":
        (_static_cache if run.static_tokens else _behind_prefix if g.saving else _cache_forward)(g, mixer)
        if overflows(run, mixer):
            return "k rotated", "v"
    return "k cached", "v cached"


def _cast_for_attention(g: Graph, name: str) -> str:
    """What is fp32 (an fp32 product of a quantised weight, what fp32 cosines have made so) is cast by autocast."""
    if not g.run.autocast or not is_wide(g.size_of(name)):
        return name
    g.make(f"{name} cast", narrowed(g.size_of(name)), (name,))
    return f"{name} cast"


def needs_mask(run: Run, mixer: Attention) -> bool:
    """Whether attention takes a mask tensor.

    A window that is reached can't be said by ``is_causal`` alone (``masking_utils``); eager code adds a mask always, and
    so do classes that ask for one (Falcon). Nor can it say several queries behind cached keys (a trained prefix).
    """
    if run.flash and run.code.attention == "sdpa":
        return False
    if run.eager or run.code.attention != "sdpa" or run.code.masked:
        return True
    if run.static_tokens and run.past_tokens:
        return True
    if run.past_tokens and run.sequence > 1:
        return True
    window = mixer.window_tokens or mixer.chunk_tokens
    return window is not None and run.sequence > 1 and run.past_tokens + run.sequence >= window


def overflows(run: Run, mixer: Attention) -> bool:
    """Whether a prompt is longer than a static cache's window, so that attention reads what was projected."""
    return bool(run.static_tokens) and not run.past_tokens and run.sequence > run.static_cells(mixer)


def seen_keys(run: Run, mixer: Attention) -> int:
    """Keys that attention reads: what the cache showed and the new ones; of a static cache all room, if there is a mask."""
    if not run.static_tokens:
        return run.past_cells(mixer) + run.sequence
    return run.static_cells(mixer) if needs_mask(run, mixer) and not overflows(run, mixer) else run.sequence


def mask_sizes(run: Run, mixer: Attention) -> tuple[list[Size], Size] | None:
    """Of the mask that layers of one kind share: what is alive while it is made, and what stays; None without one.

    It is a boolean mask, its parts combined pairwise where there is a window; eager code turns it into numbers.
    """
    if not needs_mask(run, mixer):
        return None
    window = mixer.window_tokens or mixer.chunk_tokens
    keys = seen_keys(run, mixer)
    boolean = Size(queries=run.sequence, keys=keys, bool_bytes=1)
    if run.code.attention == "biased":
        cells = {"batch": run.batch, "queries": run.sequence, "keys": keys}
        return [boolean, Size(**cells, bytes=run.dtype_bytes)], Size(**cells, bool_bytes=1)
    if run.eager or run.code.attention != "sdpa":
        return [boolean] * (1 if window is None else 2), Size(
            batch=run.batch, queries=run.sequence, keys=keys, bytes=run.dtype_bytes
        )
    return [boolean] * (0 if window is None else 2), boolean


def _project(g: Graph, mixer: Attention, project: dict[str, tuple[Weight, ...]], source: str) -> None:
    """``q``, ``k`` and ``v``: by one function with their adapters where the run has it, else one linear after another."""
    if mixer.fused_qkv or not fuses(g, [project.get(f"{name}_proj", ()) for name in "qkv"]):
        _project_apart(g, mixer, project, source)
        return
    sizes = [Projection(name, g.run.heads(heads, width), project[f"{name}_proj"]) for name, heads, width in _parts(mixer)]
    lay_fused(g, source, sizes, over_input=True)


def _project_apart(g: Graph, mixer: Attention, project: dict[str, tuple[Weight, ...]], source: str) -> None:
    """``q``, ``k`` and ``v``, normed where the family norms them (and rotated where it does so before the next is made)."""
    if mixer.fused_qkv:
        _project_together(g, mixer, project, source)
    for name, heads, head_dim in _parts(mixer):
        if not mixer.fused_qkv:
            _project_one(g, mixer, project, source, name)
        if name == "v" and g.run.code.norms_values:
            _replace_by_norm(g, Norm("v_norm", head_dim, "rms", ()), name, heads, "none")
        elif name != "v" and not g.run.code.projects_first:
            _norm_projected(g, mixer, name, heads)
        if name != "v" and mixer.rotary_dim and g.run.code.rotates_each:
            rotate(g, g.run.code.rotary, [Rotated(name, heads, head_dim, mixer.rotary_dim)])
    _project_gate(g, mixer, project, source)
    if g.run.code.scales_values:
        multiply(g, "v scaled", g.size_of("v"), "v")
        g.free("v")
        g.rename("v scaled", "v")


def _project_together(g: Graph, mixer: Attention, project: dict[str, tuple[Weight, ...]], source: str) -> None:
    """Queries, keys and values of one linear."""
    width = mixer.num_heads * mixer.head_dim + mixer.num_kv_heads * (mixer.head_dim + mixer.value_head_dim)
    linear(g, "qkv", source, g.run.rows(width), project.get("qkv", ()))
    for name, heads, head_dim in _parts(mixer):
        g.view(name, "qkv", sliced, g.run.heads(heads, head_dim))
    if mixer.cached_kv_heads:
        _expand(g, mixer)
    elif g.run.code.copies_parts:
        _copy_parts(g, mixer)


def _project_gate(g: Graph, mixer: Attention, project: dict[str, tuple[Weight, ...]], source: str) -> None:
    """A gate of the output beside the projections, which in such families are all made before any is normed."""
    if GATE in project:
        linear(g, "q gate", source, g.run.heads(mixer.num_heads, mixer.value_head_dim), project[GATE])
    if g.run.code.projects_first:
        for name, heads in _query_and_key(mixer):
            _norm_projected(g, mixer, name, heads)


def _norm_projected(g: Graph, mixer: Attention, name: str, heads: int) -> None:
    """Queries or keys pass their norm, where they have one before the rotation."""
    if mixer.qk_norm == "none" or g.run.code.normed_after_rotation:
        return
    full = mixer.qk_norm == "full_width"
    norm = _head_norm(mixer, name, heads if full else 1)
    _replace_by_norm(g, norm, name, 1 if full else heads, g.run.code.qk_norm)


def _project_output(g: Graph, weights: tuple[Weight, ...], target: str, size: Size) -> None:
    if fuses(g, [weights]):
        lay_fused(g, "attended", [Projection(target, size, weights)])
    else:
        linear(g, target, "attended", size, weights)


def _project_one(g: Graph, mixer: Attention, project: dict[str, tuple[Weight, ...]], source: str, name: str) -> None:
    """One linear; queries may come with a gate, values may be the keys before their norm."""
    run = g.run
    size = {part: run.heads(heads, width) for part, heads, width in _parts(mixer)}[name]
    weights = project.get(f"{name}_proj", ())
    if name == "q" and mixer.output_gate:
        linear(g, "q and gate", source, run.heads(2 * mixer.num_heads, mixer.head_dim), weights)
        g.view("q", "q and gate", sliced, size)
        g.view("q gate", "q and gate", sliced, size)
        g.free("q and gate")
        return
    if name == "k" and "v_proj" not in project:
        linear(g, "v", source, size, weights)
        g.view("k", "v")
        return
    if name != "v" or "v_proj" in project:
        linear(g, name, source, size, weights, copies=_arrives_by_head(run, mixer, name))


def _arrives_by_head(run: Run, mixer: Attention, name: str) -> bool:
    """Whether the gradient of what was projected comes from a rotation, which laid it out head by head."""
    return name != "v" and bool(mixer.rotary_dim) and mixer.qk_norm == "none" and "rope" not in run.fused


def _parts(mixer: Attention) -> list[tuple[str, int, int]]:
    """Name, heads and width of what is projected; a layer that shares keys and values has queries alone."""
    queries = [("q", mixer.num_heads, mixer.head_dim)]
    if mixer.kv != "own":
        return queries
    return [*queries, ("k", mixer.num_kv_heads, mixer.head_dim), ("v", mixer.num_kv_heads, mixer.value_head_dim)]


def _replace_by_norm(g: Graph, norm: Norm, name: str, rows: int, variant: NormVariant | None) -> None:
    norm_forward(g, norm, f"{name} norm", name, rows, variant)
    g.free(name)
    g.rename(f"{name} norm", name)


def _expand(g: Graph, mixer: Attention) -> None:
    """Keys and values picked out of the groups, then copied for every head, as are the queries (Falcon's ``_split_heads``)."""
    every = g.run.heads(mixer.num_heads, mixer.head_dim)
    for name in ("k", "v"):
        g.make(f"{name} of groups", g.run.heads(mixer.num_kv_heads, mixer.head_dim), (name,))
    for name, source in (("q", "q"), ("k", "k of groups"), ("v", "v of groups")):
        g.make(f"{name} for all", every, (source,))
    g.free("k of groups", "v of groups", "q", "k", "v")
    for name in "qkv":
        g.rename(f"{name} for all", name)


def _copy_parts(g: Graph, mixer: Attention) -> None:
    """Queries, keys and values laid head by head in tensors of their own (CodeGen's ``_split_heads``)."""
    for name, heads, head_dim in _parts(mixer):
        g.make(f"{name} by heads", g.run.heads(heads, head_dim), (name,))
        g.free(name)
        g.rename(f"{name} by heads", name)


def _attend(g: Graph, mixer: Attention, ops: Operands) -> None:
    """By the kernel that the class and the scenario ask for; its output is laid out token by token."""
    whole = mixer.rotary_dim == mixer.head_dim and not (g.run.code.keeps_unrotated or g.run.code.joins)
    joined = g.run.code.rotary in ("joined", "pairs") or (mixer.rotary_dim > 0 and not whole)
    by_head = joined or g.run.code.rotary == "chunks"
    if is_differential(mixer):
        attend_twice(g, mixer, ops, lambda each: _fused_or_math(g, each, by_head=by_head, dropout=mixer.dropout))
    elif g.run.code.attention == "alibi":
        eager_alibi(g, ops)
    elif g.run.code.attention == "biased":
        eager_biased(g, ops)
    elif g.run.code.attention == "eager_wide":
        eager_wide(g, ops)
    elif g.run.code.attention == "bounded":
        eager_bounded(g, ops, dropout=mixer.dropout)
    elif g.run.code.attention == "into_zeros":
        eager_into_zeros(g, ops, dropout=mixer.dropout)
    elif g.run.code.attention == "eager" or g.run.eager:
        eager(g, ops, softcap=mixer.logit_softcap, sinks=mixer.has_sinks, query_by_head=by_head, dropout=mixer.dropout)
    else:
        _fused_or_math(g, ops, by_head=by_head, dropout=mixer.dropout)


def _fused_or_math(g: Graph, ops: Operands, *, by_head: bool, dropout: bool) -> None:
    """``sdpa_attention_forward``: keys are repeated under a mask or for wide heads (``use_gqa_in_sdpa``), else taken grouped.

    A single query is laid out as several queries of one head instead (``pack_gqa``).
    """
    run = g.run
    natively = not ops.masked and ops.head_dim == ops.value_head_dim <= FLASH_MAX_HEAD_DIM
    read = ops
    if run.repeats_keys or (not natively and run.code.repeats_keys):
        read = packed(ops) if run.sequence == 1 else repeat_keys(g, ops)
    kernel = choose_kernel(run, read, grouped_natively=natively)
    if kernel == "math" and dropout and g.saving:
        raise NotModelled("training.precision: a dropout inside attention that no fused kernel computes has no closed form yet")
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


def _gated(g: Graph, mixer: Attention, project: dict[str, tuple[Weight, ...]], source: str) -> None:
    """What was attended to, behind the gate that the mixer has."""
    if mixer.output_gate or GATE in project:
        _gate(g, mixer)
    if LATE_GATE in project:
        _gate_late(g, mixer, source, project[LATE_GATE])


def _gate_late(g: Graph, mixer: Attention, source: str, weights: tuple[Weight, ...]) -> None:
    """attended · sigmoid(gate(x)), or softplus in fp32; one gate a head is spread over its values."""
    run, each = g.run, weights[0].shape[0] == mixer.num_heads
    width = 1 if each else mixer.value_head_dim
    narrow, wide = run.heads(mixer.num_heads, width), run.heads(mixer.num_heads, width, FP32_BYTES)
    linear(g, "gate", source, narrow, weights)
    if run.code.gate == "softplus":
        g.make("gate fp32", wide, ("gate",))
        g.make("gate open fp32", wide, ("gate fp32",), ("gate fp32",))
        g.free("gate fp32", "gate")
        g.make("gate open", narrow, ("gate open fp32",))
    else:
        g.make("gate open", narrow, ("gate",), ("gate open",))
    inputs = ("attended", "gate open")
    g.make("gated", run.heads(mixer.num_heads, mixer.value_head_dim), inputs, inputs, broadcast if each else None)
    g.free("attended", "gate", "gate open fp32", "gate open")
    g.rename("gated", "attended")


def _norm_attended(g: Graph, mixer: Attention) -> None:
    """A norm before the output projection, where the mixer has one (BitNet)."""
    weights = tuple(weight for weight in mixer.weights if module_of(weight) == "attn_sub_norm")
    if weights:
        _replace_by_norm(g, Norm("attn_sub_norm", weights[0].shape[0], "rms", weights), "attended", 1, None)


def _cache_forward(g: Graph, mixer: Attention) -> None:
    """``DynamicLayer.update``: keys, then values are copied behind what the cache holds; the old cache goes with each.

    A sliding-window layer keeps a view of its last tokens; what it copied stays alive under the view. Falcon caches what
    it has repeated for every head.
    """
    run, names = g.run, ("k", "v")
    windowed = (mixer.window_tokens or mixer.chunk_tokens) is not None
    narrow = _narrow_keys(g)
    for name in names:
        g.relabel(f"{name} past", "workspace")
        g.hold(f"{name} cached", run.cache(mixer, name, run.past_cells(mixer) + run.sequence), "kv_cache")
        if not windowed:
            g.consume(f"{name} past")
    g.consume(*(f"{name} past" for name in names))
    g.free("k rotated", "v", narrow)


def _narrow_keys(g: Graph) -> str:
    """Keys that cosines have made fp32 are cast for the cache (CodeGen)."""
    if g.run.code.rotary == "pairs_in_fp32" and is_wide(g.size_of("k rotated")):
        g.make("k narrow", narrowed(g.size_of("k rotated")), ("k rotated",))
        return "k narrow"
    return ""


def _behind_prefix(g: Graph, mixer: Attention) -> None:
    """In training keys and values are copied into a cache, where there are some behind those of a trained prefix (PEFT's)."""
    for name, own in (("k", "k rotated"), ("v", "v")):
        size = g.run.cache(mixer, name, g.run.past_cells(mixer) + g.run.sequence)
        read = (f"{name} past", own) if g.run.past_tokens else (own,)
        g.make(f"{name} cached", size, read, (), passed_on, component="kv_cache")
        g.consume(f"{name} past")
    g.free("k rotated", "v")


def _static_cache(g: Graph, mixer: Attention) -> None:
    """``StaticLayer.update``: room for all tokens is made at the first update and written in place.

    A full window is rolled by one token in a copy (``StaticSlidingWindowLayer``).
    """
    run = g.run
    size = {name: run.cache(mixer, name, run.static_cells(mixer)) for name in "kv"}
    for name in "kv":
        if run.past_tokens:
            g.rename(f"{name} past", f"{name} cached")
        else:
            g.hold(f"{name} cached", size[name], "kv_cache")
    if run.past_tokens > run.static_cells(mixer):
        for name in "kv":
            g.hold(f"{name} rolled", size[name])
        g.free("k rolled", "v rolled")
    if not overflows(run, mixer):
        g.free("k rotated", "v")


def _query_and_key(mixer: Attention) -> list[tuple[str, int]]:
    both = [("q", mixer.num_heads), ("k", mixer.cached_kv_heads or mixer.num_kv_heads)]
    return both if mixer.kv == "own" else both[:1]


def _head_norm(mixer: Attention, name: str, heads: int = 1) -> Norm:
    names = (f"{name}_norm", f"{name}_layernorm", f"{WHOLE_NAME[name]}_layernorm")
    weights = tuple(weight for weight in mixer.weights if module_of(weight).removesuffix(" bias") in names)
    centred = any(weight.role == "bias" for weight in weights)
    return Norm(f"{name}_norm", heads * mixer.head_dim, "layer" if centred else "rms", weights)


def _projections(mixer: Attention) -> dict[str, tuple[Weight, ...]]:
    """Weights and biases of the linears, in the order query, key, value (or all in one), output."""
    modules: dict[str, list[Weight]] = {}
    for weight in mixer.weights:
        if weight.role in ("linear", "bias"):
            modules.setdefault(weight.name.rpartition(".")[0], []).append(weight)
    if mixer.fused_qkv:
        names: tuple[str, ...] = ("qkv", "o_proj")
    elif mixer.kv == "own":
        names = ("q_proj", "k_proj", "v_proj", "o_proj") if len(modules) > 3 else ("q_proj", "k_proj", "o_proj")
    else:
        names = ("q_proj", "o_proj")
    gates = {name: path for path in modules for name in (GATE, LATE_GATE) if path.endswith(f".{name}")}
    beside = {name: tuple(modules.pop(path)) for name, path in gates.items()}
    return {name: tuple(weights) for name, weights in zip(names, modules.values(), strict=False)} | beside
