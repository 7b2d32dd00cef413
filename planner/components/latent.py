"""Multi-head latent attention as transformers 5.23 writes it: cached compressed, expanded for every head at each step."""

from __future__ import annotations

from functools import partial

from planner.architecture.layers import LatentAttention, Norm, Weight
from planner.components.autocast import in_16_bit, is_wide, widened
from planner.components.graph import Graph, Node
from planner.components.indexer import index_forward
from planner.components.kernels import Operands, choose_kernel, fused, math
from planner.components.norms import norm_forward
from planner.components.operators import linear
from planner.components.rotary import Rotated, rotate
from planner.components.rules import Gradients, broadcast, passed_on
from planner.components.run import module_of
from planner.components.tape import Size
from planner.modelled import NotModelled


def latent_forward(g: Graph, mixer: LatentAttention, source: str, target: str) -> None:
    """Reads ``source``; leaves ``target``, the block's output."""
    with in_16_bit(g):
        _latent_forward(g, mixer, source, target)


def _latent_forward(g: Graph, mixer: LatentAttention, source: str, target: str) -> None:
    run, heads, width = g.run, mixer.num_heads, mixer.qk_nope_head_dim + mixer.qk_rope_head_dim
    keys, rope = run.past_tokens + run.sequence, mixer.qk_rope_head_dim
    rotated = run.code.rotary != "none"
    _queries(g, mixer, source, run.heads(heads, width))
    if rotated:
        g.parts("q", {"q nope": run.heads(heads, mixer.qk_nope_head_dim), "q rope": run.heads(heads, rope)})
    linear(g, "kv compressed", source, run.rows(mixer.kv_lora_rank + rope), _of(mixer, "kv_a_proj_with_mqa"))
    g.parts("kv compressed", {"kv": run.rows(mixer.kv_lora_rank), "k": run.heads(1, rope)})
    _norm(g, mixer, "kv_a_layernorm", "kv", "kv", mixer.kv_lora_rank)
    if rotated:
        rotate(g, run.code.rotary, [Rotated("q rope", heads, rope, rope), Rotated("k", 1, rope, rope)])
    else:
        g.rename("k", "k rotated")
    _cache(g, mixer, keys)
    query = _join_queries(g, run.heads(heads, width)) if rotated else "q"
    _expand(g, mixer, keys)
    sparse = mixer.indexer is not None
    if sparse:
        index_forward(g, mixer, keys)
    ops = Operands(query, "k joined", "v", heads, heads, width, mixer.v_head_dim, keys, masked=sparse)
    kernel = choose_kernel(run, ops, grouped_natively=True)
    if kernel == "math":
        math(g, ops)
    else:
        fused(g, kernel, ops)
    if kernel == "flash":
        g.make("attended by token", run.heads(heads, mixer.v_head_dim), ("attended",))
        g.free("attended")
        g.rename("attended by token", "attended")
    _gate(g, mixer, source)
    linear(g, target, "attended", run.hidden(), _of(mixer, "o_proj"))
    g.free("attended", "q nope", "q", "q rope rotated", "kv", "kv compressed", "k rotated", "kv norm")
    g.free(
        "q joined", "q joined cast", "k joined", "k nope", "v", "kv expanded", *(() if run.cached else ("kv cached", "k cached"))
    )
    g.free("q compressed norm", "mask scattered", "mask chosen", "index chosen")


def _gate(g: Graph, mixer: LatentAttention, source: str) -> None:
    """attended · sigmoid(gate(x)) of each head, where the mixer has such a gate (Ling 2.5)."""
    run, weights = g.run, _of(mixer, "g_proj")
    if not weights:
        return
    if run.autocast:
        raise NotModelled("training.precision: gates of latent attention under autocast have no closed form yet")
    linear(g, "gate", source, run.rows(mixer.num_heads), weights)
    g.make("gate fp32", run.row(mixer.num_heads), ("gate",))
    g.make("gate open fp32", run.row(mixer.num_heads), ("gate fp32",), ("gate open fp32",))
    g.make("gate open", run.heads(mixer.num_heads, 1), ("gate open fp32",))
    inputs = ("attended", "gate open")
    g.make("gated", run.heads(mixer.num_heads, mixer.v_head_dim), inputs, inputs, broadcast)
    g.free("attended", "gate", "gate fp32", "gate open fp32", "gate open")
    g.rename("gated", "attended")


def _join_queries(g: Graph, size: Size) -> str:
    """Both parts in one tensor. What autocast's fp32 cosines have turned is fp32: so is the whole, which attention casts."""
    parts = ("q nope", "q rope rotated")
    if not is_wide(g.size_of("q rope rotated")) or is_wide(size):
        g.make("q joined", size, parts, (), passed_on)
        return "q joined"
    g.make("q nope fp32", widened(g.size_of("q nope")), ("q nope",))
    g.make("q joined", widened(size), ("q nope fp32", "q rope rotated"), (), passed_on)
    g.free("q nope fp32")
    g.make("q joined cast", size, ("q joined",))
    return "q joined cast"


def _expand(g: Graph, mixer: LatentAttention, keys: int) -> None:
    """Keys and values of every head from the compressed vectors; the rotated part of the keys is copied to every head."""
    run, heads, nope = g.run, mixer.num_heads, mixer.qk_nope_head_dim
    rows = {"batch": run.batch, "keys": keys, "heads": heads, "bytes": run.dtype_bytes}
    expanded = Size(**rows, head_dim=nope + mixer.v_head_dim)
    linear(g, "kv expanded", "kv cached", expanded, _of(mixer, "kv_b_proj"), copies=True)
    g.parts("kv expanded", {"k nope": Size(**rows, head_dim=nope), "v": Size(**rows, head_dim=mixer.v_head_dim)})
    whole = Size(**rows, head_dim=nope + mixer.qk_rope_head_dim)
    g.make("k half joined", whole, ("k nope",), (), _copied)
    g.view("k joined", "k half joined", None, whole)
    if g.saving and "k half joined" not in g.constants:
        node = g.record.nodes[-1]
        node.inputs, node.rule = (
            ("k half joined", "k cached"),
            partial(_copied_for_heads, size=Size(**rows, head_dim=mixer.qk_rope_head_dim)),
        )
    g.free("k half joined")


def _copied(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """A slice written into (``CopySlices``): the whole gradient is copied, the slice's is taken from the copy."""
    (tensor,) = node.inputs
    whole = g.held(f"d {node.out} copied", node, g.record.sizes[node.out])
    made = g.gradient(tensor, node)
    g.consume(whole)
    return [(tensor, made)]


def _copied_for_heads(g: Graph, node: Node, gradient: str, size: Size) -> Gradients:  # noqa: ARG001
    """The same for one vector that every head shares: its gradient is summed over the heads."""
    whole, part = node.inputs
    rest = g.gradient(whole, node)
    for_heads, zeros = g.held(f"d {part} of heads", node, size), g.held(f"d {part} zeros", node, size)
    g.consume(zeros)
    made = g.gradient(part, node)
    g.consume(for_heads)
    return [(whole, rest), (part, made)]


def _queries(g: Graph, mixer: LatentAttention, source: str, size: Size) -> None:
    if mixer.q_lora_rank is None:
        linear(g, "q", source, size, _of(mixer, "q_proj"), copies=True)
        return
    linear(g, "q compressed", source, g.run.rows(mixer.q_lora_rank), _of(mixer, "q_a_proj"))
    _norm(g, mixer, "q_a_layernorm", "q compressed", "q compressed", mixer.q_lora_rank)
    g.free("q compressed")
    linear(g, "q", "q compressed norm", size, _of(mixer, "q_b_proj"), copies=True)
    if mixer.indexer is None:
        g.free("q compressed norm")


def _norm(g: Graph, mixer: LatentAttention, module: str, name: str, source: str, width: int) -> None:
    norm_forward(g, Norm(module, width, "rms", _of(mixer, module)), f"{name} norm", source)


def _cache(g: Graph, mixer: LatentAttention, keys: int) -> None:
    """The compressed vector takes the place of keys in the cache, the rotated key that of values."""
    run = g.run
    parts = {"kv": (mixer.kv_lora_rank, "kv norm"), "k": (mixer.qk_rope_head_dim, "k rotated")}
    for name, (width, source) in parts.items():
        if not run.cached:
            g.rename(source, f"{name} cached")
            continue
        g.relabel(f"{name} past", "workspace")
        g.hold(f"{name} cached", Size(batch=run.batch, tokens=keys, features=width, bytes=run.dtype_bytes), "kv_cache")
        g.consume(f"{name} past")
    if run.cached:
        g.free("kv norm", "k rotated")


def _of(mixer: LatentAttention, module: str) -> tuple[Weight, ...]:
    return tuple(weight for weight in mixer.weights if module_of(weight) in (module, f"{module} bias"))
