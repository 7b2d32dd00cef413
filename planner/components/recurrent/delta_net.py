"""Gated delta nets (Yang et al. 2024) as transformers 5.23 computes them where ``flash-linear-attention`` is missing.

``torch_chunk_gated_delta_rule`` solves one triangular system for each chunk of 64 tokens, all at once, then walks the
chunks (its output takes the solver's column order and is copied to be reshaped); ``torch_recurrent_gated_delta_rule``
takes the one token of a decode step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from planner.architecture.layers import Recurrent, Weight
from planner.components.autocast import in_16_bit, narrowed
from planner.components.graph import Graph
from planner.components.operators import linear, multiply
from planner.components.recurrent.convolution import causal_convolution
from planner.components.recurrent.mamba2 import masked, modules
from planner.components.recurrent.states import RECURRENT_STATE, recurrent_state
from planner.components.rules import broadcast, passed_on, power, weighted
from planner.components.run import FP32_BYTES
from planner.components.tape import Size
from planner.modelled import NotModelled

CHUNK_TOKENS = 64
"""Default of the function's ``chunk_size``; the models don't set another."""


def delta_net_forward(g: Graph, mixer: Recurrent, source: str, target: str) -> None:
    """Projections, convolution, delta rule, norm gated by z, output projection (``Qwen3NextGatedDeltaNet``)."""
    with in_16_bit(g):
        _delta_net_forward(g, mixer, source, target)


def _delta_net_forward(g: Graph, mixer: Recurrent, source: str, target: str) -> None:
    run, weights = g.run, modules(mixer)
    steps = bool(run.past_tokens) and run.sequence == 1
    apart = "g_proj" in weights
    (project_apart if apart else _project)(g, mixer, source, weights)
    causal_convolution(g, mixer, "mixed", "q k v")
    g.free("q k v", "k part", "q part", "v part")
    if apart:
        linear(g, "beta part", source, run.rows(mixer.num_heads), weights["b_proj"])
        linear(g, "decay part", source, run.rows(mixer.num_heads), weights["a_proj"])
    keys = run.rows(mixer.num_groups * mixer.state_dim)
    g.parts("mixed", {"q in": keys, "k in": keys, "v in": run.rows(mixer.inner_dim)})
    small = Size(batch=run.batch, sequence=run.sequence, heads=mixer.num_heads, bytes=run.dtype_bytes)
    g.make("beta", small, ("beta part",), ("beta",))
    g.hold("log decay", Size(batch=run.batch, sequence=run.sequence, heads=mixer.num_heads, fp32_bytes=4))
    _inputs(g, mixer)
    (delta_step if steps else _chunks)(g, mixer)
    if run.cached and not steps:
        g.hold(RECURRENT_STATE, recurrent_state(mixer, run), "recurrent_state")
    if apart:
        linear(g, "z", source, run.rows(mixer.inner_dim), weights["g_proj"])
    gated_norm(g, mixer, weights.get("norm", weights.get("o_norm", ())))
    linear(g, target, "gated", run.hidden(), weights["o_proj" if apart else "out_proj"])
    g.free("gated", "projected", "z", "q in", "k in", "v in", "mixed", "state new", "beta", "log decay")
    g.free("b and a", "beta part", "decay part")


def _project(g: Graph, mixer: Recurrent, source: str, weights: Mapping[str, tuple[Weight, ...]]) -> None:
    """Queries, keys, values and the gate z, in one product that is laid out anew (Qwen3-Next) or in two (Qwen3.5)."""
    run, keys = g.run, mixer.num_groups * mixer.state_dim
    inner, heads = run.rows(mixer.inner_dim), run.rows(mixer.num_heads)
    if not mixer.fused_gate:
        linear(g, "q k v", source, run.rows(mixer.conv_channels), weights.get("in_proj_qkv", ()))
        linear(g, "z", source, inner, weights.get("in_proj_z", ()))
        linear(g, "beta part", source, heads, weights.get("in_proj_b", ()))
        linear(g, "decay part", source, heads, weights.get("in_proj_a", ()))
        return
    linear(g, "projected", source, run.rows(mixer.conv_channels + mixer.inner_dim), weights.get("in_proj_qkvz", ()))
    linear(g, "b and a", source, run.rows(2 * mixer.num_heads), weights.get("in_proj_ba", ()))
    for name in ("v part", "z"):
        g.make(name, inner, ("projected",))
    for name in ("beta part", "decay part"):
        g.make(name, heads, ("b and a",))
    for name in ("q part", "k part"):
        g.make(name, run.rows(keys), ("projected",))
    g.make("q k v", run.rows(mixer.conv_channels), ("q part", "k part", "v part"), (), passed_on)


def project_apart(g: Graph, mixer: Recurrent, source: str, weights: Mapping[str, tuple[Weight, ...]]) -> None:
    """Queries, keys and values by a linear each, laid together for the convolution (OLMo Hybrid)."""
    if g.run.autocast:
        raise NotModelled("training.precision: delta nets with projections of their own under autocast have no closed form yet")
    keys = g.run.rows(mixer.num_groups * mixer.state_dim)
    parts = {"q part": keys, "k part": keys, "v part": g.run.rows(mixer.inner_dim)}
    for name, size in parts.items():
        linear(g, name, source, size, weights[f"{name[0]}_proj"])
    g.make("q k v", g.run.rows(mixer.conv_channels), tuple(parts), (), passed_on)
    g.free(*parts)


def _inputs(g: Graph, mixer: Recurrent) -> None:
    """Queries and keys for every value head, all in fp32 and head by head, normed to unit length, queries scaled."""
    run = g.run
    keys = run.heads(mixer.num_heads, mixer.state_dim, FP32_BYTES)
    values = run.heads(mixer.num_heads, mixer.head_dim, FP32_BYTES)
    sources = {"q": "q in", "k": "k in", "v": "v in"}
    if mixer.num_groups != mixer.num_heads:
        for name in ("q", "k"):
            g.make(f"{name} repeated", run.heads(mixer.num_heads, mixer.state_dim), (sources[name],))
            sources[name] = f"{name} repeated"
    for name, source in sources.items():
        g.make(name, values if name == "v" else keys, (source,))
    g.hold("beta wide", run.row(mixer.num_heads))
    g.free("q repeated", "k repeated")
    for name in ("q", "k"):
        g.hold("square", keys)
        g.free("square")
        g.make(f"{name} unit", keys, (name,), (name,))
        g.free(name)
    g.make("q scaled", keys, ("q unit",))
    g.free("q unit")


def _chunks(g: Graph, mixer: Recurrent) -> None:
    """The sequence in chunks; leaves ``read`` in the model's dtype and ``state new``."""
    run = g.run
    chunks = -(-run.sequence // CHUNK_TOKENS)
    each = {"batch": run.batch, "heads": mixer.num_heads, "chunks": chunks, "chunk_tokens": CHUNK_TOKENS}
    with_keys = Size(**each, key_dim=mixer.state_dim, fp32_bytes=4)
    with_values = Size(**each, value_dim=mixer.head_dim, fp32_bytes=4)
    pairs, token = Size(**each, chunk_keys=CHUNK_TOKENS, fp32_bytes=4), Size(**each, fp32_bytes=4)
    for name, source, size in (("q", "q scaled", with_keys), ("k", "k unit", with_keys), ("v", "v", with_values)):
        g.make(f"{name} padded", size, (source,))
    g.free("q scaled", "k unit", "v")
    for name in ("beta padded", "decay padded"):
        g.hold(name, token)
    g.free("beta wide")
    g.make("v beta", with_values, ("v padded", "beta"), ("v padded",), broadcast)
    g.make("k beta", with_keys, ("k padded", "beta"), ("k padded",), broadcast)
    g.hold("decay sum", token)
    _pairs(g, pairs)
    g.make("decayed k beta", with_keys, ("k beta",), ("k beta",))
    g.make("new values", with_values, ("system", "v beta"), ("system", "new values"))
    g.make("decayed keys", with_keys, ("system", "decayed k beta"), ("system", "decayed keys"))
    g.hold("state old", recurrent_state(mixer, run))
    g.hold("output", with_values)
    for name in ("q", "k"):
        g.make(f"{name} decayed", with_keys, (f"{name} padded",), (f"{name} padded",))
        g.free(f"{name} padded")
    _walk(g, mixer, chunks)
    walked = ("new values", "decayed keys", "q decayed", "k decayed", "scores")
    of_the_walk = ("states of the walk", "values of the walk") if g.saving else ()
    if run.autocast and g.saving:
        casts = _casts_of_the_walk(g, (*walked[1:], *of_the_walk))
        g.make("output by head", with_values, walked, ("states of the walk", *casts))
        g.free(*casts)
    else:
        g.make("output by head", with_values, walked, (*walked[1:], *of_the_walk))
    g.free("output", "states of the walk", "values of the walk")
    g.make("read", run.heads(mixer.num_heads, mixer.head_dim), ("output by head",))
    g.free("q decayed", "k decayed", "v padded", "v beta", "k beta", "decay of pairs", "system", "scores", "decayed k beta")
    g.free("new values", "decayed keys", "output by head", "decay sum", "decay padded", "beta padded", "corrected", "inter")


def _pairs(g: Graph, pairs: Size) -> None:
    """What the tokens of a chunk say to each other: decays, the triangular system, the scores."""
    g.hold("decay differences", pairs)
    g.hold("decay masked", pairs)
    g.free("decay differences")
    g.make("decay of pairs", pairs, ("decay part",), ("decay of pairs",))
    g.free("decay masked")
    for name, left in (("system", "k beta"), ("scores", "q padded")):
        if g.run.autocast:
            _product_in_16_bit(g, f"{name} product", narrowed(pairs), left, "k padded")
            inputs = (f"{name} product", "decay of pairs")
            g.make(name, pairs, inputs, inputs, masked)
        else:
            multiply(g, f"{name} product", pairs, left, "k padded")
            multiply(g, name, pairs, f"{name} product", "decay of pairs")
        g.free(f"{name} product")


def _product_in_16_bit(g: Graph, name: str, size: Size, *operands: str) -> None:
    """A product whose operands autocast casts, each time."""
    casts = [f"{operand} for {name}" for operand in operands]
    for cast, operand in zip(casts, operands, strict=True):
        g.make(cast, narrowed(g.size_of(operand)), (operand,))
    g.make(name, size, casts, casts)
    g.free(*casts)


def _casts_of_the_walk(g: Graph, operands: Sequence[str]) -> list[str]:
    """What autograd keeps of the walk's products: each operand's cast; states and corrected values are cast for two products."""
    casts = list[str]()
    for operand in operands:
        for time in range(2 if operand.endswith("of the walk") else 1):
            casts.append(f"{operand} in 16 bit" + " again" * time)
            g.hold(casts[-1], narrowed(g.size_of(operand)))
    return casts


def _walk(g: Graph, mixer: Recurrent, chunks: int) -> None:
    """One chunk of the walk: correct its values by what the state predicts, read, update the state.

    Autograd keeps the corrected values of every chunk and the state each began with.
    """
    run = g.run
    part = Size(batch=run.batch, heads=mixer.num_heads, chunk_tokens=CHUNK_TOKENS, value_dim=mixer.head_dim, fp32_bytes=4)
    state = recurrent_state(mixer, run)
    if g.saving:
        each = {"batch": run.batch, "chunks": chunks, "fp32_bytes": 4}
        g.hold("states of the walk", Size(**each, state=mixer.state_numel))
        g.hold("values of the walk", Size(**each, heads=mixer.num_heads, chunk_tokens=CHUNK_TOKENS, value_dim=mixer.head_dim))
    g.hold("predicted", part)
    g.hold("corrected", part)
    g.free("predicted")
    for name in ("inter", "intra", "both"):
        g.hold(name, part)
    g.free("intra", "both")
    for name in ("state decayed", "update", "state new"):
        g.hold(name, state)
    g.free("state decayed", "update", "state old")


def delta_step(g: Graph, mixer: Recurrent) -> None:
    """One token: decay, prediction, correction, update, read; leaves ``read`` and ``state new``."""
    run, state = g.run, recurrent_state(mixer, g.run)
    wide = run.heads(mixer.num_heads, mixer.head_dim, FP32_BYTES)
    g.hold("output", wide)
    g.hold("state decayed", state)
    g.hold("state times key", state)
    g.hold("predicted", wide)
    g.free("state times key")
    g.hold("corrected", wide)
    g.hold("update", state)
    g.hold("state new", state)
    g.free("update", "state decayed")
    g.hold("state times query", state)
    g.hold("summed", wide)
    g.free("state times query", "summed")
    g.hold("read", run.heads(mixer.num_heads, mixer.head_dim))
    g.free("output", "q scaled", "k unit", "v", "beta wide", "predicted", "corrected")


def gated_norm(g: Graph, mixer: Recurrent, weights: tuple[Weight, ...]) -> None:
    """RMSNorm of each head, times silu(z) in fp32 (``Qwen3NextRMSNormGated``); leaves ``gated``."""
    run = g.run
    narrow, wide = run.heads(mixer.num_heads, mixer.head_dim), run.heads(mixer.num_heads, mixer.head_dim, FP32_BYTES)
    _cast(g, "read wide", "read", wide)
    g.make("square", wide, ("read wide",), ("read wide",), power)
    g.make("root", run.row(mixer.num_heads), ("square",), ("root",))
    g.free("square")
    g.make("normed", wide, ("read wide", "root"), ("read wide", "root"), broadcast)
    g.free("read wide", "root")
    _cast(g, "normed cast", "normed", narrow)
    # Under autocast the weight may be fp32 beside a 16-bit result, and their product is fp32.
    weighed = wide if run.autocast and run.parameter_bytes else narrow
    g.make("weighed", weighed, ("normed cast",), (), weighted, weights=weights, for_weights=("normed cast",))
    g.free("normed cast", "normed")
    _cast(g, "z wide", "z", wide)
    g.make("z open", wide, ("z wide",), ("z wide",))
    g.free("z wide")
    multiply(g, "product", wide, "weighed", "z open")
    g.free("z open", "weighed")
    _cast(g, "gated", "product", narrow)
    g.free("product", "read")


def _cast(g: Graph, name: str, source: str, size: Size) -> None:
    """A copy in another dtype; in an fp32 model the tensor itself."""
    if g.run.dtype_bytes == FP32_BYTES:
        g.view(name, source)
    else:
        g.make(name, size, (source,))
