"""Gated delta nets (Yang et al. 2024) as transformers 5.23 computes them where ``flash-linear-attention`` is missing.

``torch_chunk_gated_delta_rule`` solves one triangular system for each chunk of 64 tokens, all at once, then walks the
chunks (its output takes the solver's column order and is copied to be reshaped); ``torch_recurrent_gated_delta_rule``
takes the one token of a decode step.
"""

from __future__ import annotations

from planner.architecture.layers import Recurrent
from planner.components.graph import Graph
from planner.components.recurrent.convolution import causal_convolution
from planner.components.recurrent.states import RECURRENT_STATE, recurrent_state
from planner.components.run import FP32_BYTES
from planner.components.tape import Size

CHUNK_TOKENS = 64
"""Default of the function's ``chunk_size``; the models don't set another."""


def delta_net_forward(g: Graph, mixer: Recurrent, target: str) -> None:
    """Projections, convolution, delta rule, norm gated by z, output projection (``Qwen3NextGatedDeltaNet``)."""
    run = g.run
    steps = bool(run.past_tokens) and run.sequence == 1
    _project(g, mixer)
    causal_convolution(g, mixer, "mixed")
    g.free("q k v", "k part", "q part", "v part")
    small = Size(batch=run.batch, sequence=run.sequence, heads=mixer.num_heads, bytes=run.dtype_bytes)
    g.hold("beta", small)
    g.hold("log decay", Size(batch=run.batch, sequence=run.sequence, heads=mixer.num_heads, fp32_bytes=4))
    _inputs(g, mixer)
    (_step if steps else _chunks)(g, mixer)
    if run.cached and not steps:
        g.hold(RECURRENT_STATE, recurrent_state(mixer, run), "recurrent_state")
    _gated_norm(g, mixer)
    g.hold(target, run.hidden())
    g.free("gated", "projected", "z", "mixed", "state new", "beta", "log decay", "b and a", "beta part", "decay part")


def _project(g: Graph, mixer: Recurrent) -> None:
    """Queries, keys, values and the gate z, in one product that is laid out anew (Qwen3-Next) or in two (Qwen3.5)."""
    run, keys = g.run, mixer.num_groups * mixer.state_dim
    if not mixer.fused_gate:
        g.hold("q k v", run.rows(mixer.conv_channels))
        g.hold("z", run.rows(mixer.inner_dim))
        g.hold("beta part", run.rows(mixer.num_heads))
        g.hold("decay part", run.rows(mixer.num_heads))
        return
    g.hold("projected", run.rows(mixer.conv_channels + mixer.inner_dim))
    g.hold("b and a", run.rows(2 * mixer.num_heads))
    g.hold("v part", run.rows(mixer.inner_dim))
    g.hold("z", run.rows(mixer.inner_dim))
    g.hold("beta part", run.rows(mixer.num_heads))
    g.hold("decay part", run.rows(mixer.num_heads))
    g.hold("q part", run.rows(keys))
    g.hold("k part", run.rows(keys))
    g.hold("q k v", run.rows(mixer.conv_channels))


def _inputs(g: Graph, mixer: Recurrent) -> None:
    """Queries and keys for every value head, all in fp32 and head by head, normed to unit length, queries scaled."""
    run = g.run
    keys = run.heads(mixer.num_heads, mixer.state_dim, FP32_BYTES)
    wide = {"q": keys, "k": keys}
    wide["v"] = run.heads(mixer.num_heads, mixer.head_dim, FP32_BYTES)
    if mixer.num_groups != mixer.num_heads:
        for name in ("q", "k"):
            g.hold(f"{name} repeated", run.heads(mixer.num_heads, mixer.state_dim))
    for name, size in wide.items():
        g.hold(name, size)
    g.hold("beta wide", run.row(mixer.num_heads))
    g.free("q repeated", "k repeated")
    for name in ("q", "k"):
        g.hold("square", wide[name])
        g.free("square")
        g.hold(f"{name} unit", wide[name])
        g.free(name)
    g.hold("q scaled", wide["q"])
    g.free("q unit")


def _chunks(g: Graph, mixer: Recurrent) -> None:
    """The sequence in chunks; leaves ``read`` in the model's dtype and ``state new``."""
    run = g.run
    chunks = -(-run.sequence // CHUNK_TOKENS)
    each = {"batch": run.batch, "heads": mixer.num_heads, "chunks": chunks, "chunk_tokens": CHUNK_TOKENS}
    with_keys, with_values = (
        Size(**each, key_dim=mixer.state_dim, fp32_bytes=4),
        Size(**each, value_dim=mixer.head_dim, fp32_bytes=4),
    )
    pairs, token = Size(**each, chunk_keys=CHUNK_TOKENS, fp32_bytes=4), Size(**each, fp32_bytes=4)
    for name, size in (("q", with_keys), ("k", with_keys), ("v", with_values)):
        g.hold(f"{name} padded", size)
    g.free("q scaled", "k unit", "v")
    for name in ("beta padded", "decay padded"):
        g.hold(name, token)
    g.free("beta wide")
    g.hold("v beta", with_values)
    g.hold("k beta", with_keys)
    g.hold("decay sum", token)
    g.hold("decay differences", pairs)
    g.hold("decay masked", pairs)
    g.free("decay differences")
    g.hold("decay of pairs", pairs)
    g.free("decay masked")
    for name in ("system", "scores"):
        g.hold("product", pairs)
        g.hold(name, pairs)
        g.free("product")
    g.hold("decayed k beta", with_keys)
    g.hold("new values", with_values)
    g.hold("decayed keys", with_keys)
    g.hold("state old", recurrent_state(mixer, run))
    g.hold("output", with_values)
    for name in ("q", "k"):
        g.hold(f"{name} decayed", with_keys)
        g.free(f"{name} padded")
    _walk(g, mixer)
    g.hold("output by head", with_values)
    g.free("output")
    g.hold("read", run.heads(mixer.num_heads, mixer.head_dim))
    g.free("q decayed", "k decayed", "v padded", "v beta", "k beta", "decay of pairs", "system", "scores", "decayed k beta")
    g.free("new values", "decayed keys", "output by head", "decay sum", "decay padded", "beta padded", "corrected", "inter")


def _walk(g: Graph, mixer: Recurrent) -> None:
    """One chunk of the walk: correct its values by what the state predicts, read, update the state."""
    run = g.run
    part = Size(batch=run.batch, heads=mixer.num_heads, chunk_tokens=CHUNK_TOKENS, value_dim=mixer.head_dim, fp32_bytes=4)
    state = recurrent_state(mixer, run)
    g.hold("predicted", part)
    g.hold("corrected", part)
    g.free("predicted")
    for name in ("inter", "intra", "both"):
        g.hold(name, part)
    g.free("intra", "both")
    for name in ("state decayed", "update", "state new"):
        g.hold(name, state)
    g.free("state decayed", "update", "state old")


def _step(g: Graph, mixer: Recurrent) -> None:
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


def _gated_norm(g: Graph, mixer: Recurrent) -> None:
    """RMSNorm of each head, times silu(z) in fp32 (``Qwen3NextRMSNormGated``); leaves ``gated``."""
    run, upcast = g.run, g.run.dtype_bytes != FP32_BYTES
    narrow, wide = run.heads(mixer.num_heads, mixer.head_dim), run.heads(mixer.num_heads, mixer.head_dim, FP32_BYTES)
    if upcast:
        g.hold("read wide", wide)
    g.hold("square", wide)
    g.free("square")
    g.hold("normed", wide)
    g.free("read wide")
    if upcast:
        g.hold("normed cast", narrow)
    g.hold("weighed", narrow)
    g.free("normed cast", "normed")
    if upcast:
        g.hold("z wide", wide)
    g.hold("z open", wide)
    g.free("z wide")
    g.hold("product", wide)
    g.free("z open", "weighed")
    if upcast:
        g.hold("gated", narrow)
        g.free("product")
    else:
        g.rename("product", "gated")
    g.free("read")
