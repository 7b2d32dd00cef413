"""Multi-head latent attention as transformers 5.23 writes it: cached compressed, expanded for every head at each step."""

from __future__ import annotations

from planner.architecture.layers import LatentAttention, Norm, Weight
from planner.components.graph import Graph, linear
from planner.components.indexer import index_forward
from planner.components.kernels import Operands, choose_kernel, fused, math
from planner.components.norms import norm_forward
from planner.components.rotary import Rotated, rotate
from planner.components.run import module_of
from planner.components.tape import Size


def latent_forward(g: Graph, mixer: LatentAttention, source: str, target: str) -> None:
    """Reads ``source``; leaves ``target``, the block's output."""
    run, heads, width = g.run, mixer.num_heads, mixer.qk_nope_head_dim + mixer.qk_rope_head_dim
    keys = run.past_tokens + run.sequence
    _queries(g, mixer, source, run.heads(heads, width))
    linear(g, "kv compressed", source, run.rows(mixer.kv_lora_rank + mixer.qk_rope_head_dim), _of(mixer, "kv_a_proj_with_mqa"))
    _norm(g, mixer, "kv_a_layernorm", "kv", "kv compressed", mixer.kv_lora_rank)
    g.view("k", "kv compressed")
    g.view("q rope", "q")
    rope = mixer.qk_rope_head_dim
    rotate(g, run.code.rotary, [Rotated("q rope", heads, rope, rope), Rotated("k", 1, rope, rope)])
    _cache(g, mixer, keys)
    g.make("q joined", run.heads(heads, width), ("q", "q rope rotated"))
    everything = {"batch": run.batch, "keys": keys, "heads": heads, "bytes": run.dtype_bytes}
    g.make("kv expanded", Size(**everything, head_dim=mixer.qk_nope_head_dim + mixer.v_head_dim), ("kv cached",))
    g.make("k joined", Size(**everything, head_dim=width), ("kv expanded", "k cached"))
    sparse = mixer.indexer is not None
    if sparse:
        index_forward(g, mixer, keys)
    ops = Operands("q joined", "k joined", "kv expanded", heads, heads, width, mixer.v_head_dim, keys, masked=sparse)
    kernel = choose_kernel(run, ops, grouped_natively=True)
    if kernel == "math":
        math(g, ops)
    else:
        fused(g, kernel, ops)
    if kernel == "flash":
        g.make("attended by token", run.heads(heads, mixer.v_head_dim), ("attended",))
        g.free("attended")
        g.rename("attended by token", "attended")
    linear(g, target, "attended", run.hidden(), _of(mixer, "o_proj"))
    g.free("attended", "q", "q rope rotated", "kv compressed", "k rotated", "kv norm", "q joined", "k joined", "kv expanded")
    g.free("q compressed norm", "mask scattered", "mask chosen", "index chosen")


def _queries(g: Graph, mixer: LatentAttention, source: str, size: Size) -> None:
    if mixer.q_lora_rank is None:
        linear(g, "q", source, size, _of(mixer, "q_proj"))
        return
    linear(g, "q compressed", source, g.run.rows(mixer.q_lora_rank), _of(mixer, "q_a_proj"))
    _norm(g, mixer, "q_a_layernorm", "q compressed", "q compressed", mixer.q_lora_rank)
    g.free("q compressed")
    linear(g, "q", "q compressed norm", size, _of(mixer, "q_b_proj"))
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
