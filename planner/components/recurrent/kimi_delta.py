"""Kimi delta attention (Kimi Linear 2025) as transformers 5.23 computes it where ``flash-linear-attention`` is missing.

``chunk_kimi_delta_attention`` holds a decay for every channel and every pair of tokens of a chunk of 64, all chunks at once: what
it holds is that tensor, and a product of as many values before and after it. One token of a decode step is computed as a
delta net's. What autograd would keep of the walk over the chunks has not been derived.
"""

from __future__ import annotations

from planner.architecture.layers import Recurrent
from planner.components.graph import Graph
from planner.components.operators import linear
from planner.components.recurrent.convolution import causal_convolution
from planner.components.recurrent.delta_net import CHUNK_TOKENS, delta_step, gated_norm, project_apart
from planner.components.recurrent.mamba2 import modules
from planner.components.recurrent.states import RECURRENT_STATE, recurrent_state
from planner.components.run import FP32_BYTES
from planner.components.tape import Size
from planner.modelled import NotModelled


def kimi_delta_forward(g: Graph, mixer: Recurrent, source: str, target: str) -> None:
    """Projections, convolution, decay of each channel, delta rule, norm gated by a sigmoid, output projection."""
    if g.saving:
        raise NotModelled("training of Kimi delta attention has no closed form yet")
    run, weights = g.run, modules(mixer)
    steps = bool(run.past_tokens) and run.sequence == 1
    project_apart(g, mixer, source, weights)
    causal_convolution(g, mixer, "mixed", "q k v")
    g.free("q k v")
    _forget_gate(g, mixer, source)
    linear(g, "beta part", source, run.rows(mixer.num_heads), weights["b_proj"])
    g.hold("beta", run.rows(mixer.num_heads))
    g.free("beta part")
    if steps:
        _one_token(g, mixer)
    else:
        _chunks(g, mixer)
    if run.cached and not steps:
        g.hold(RECURRENT_STATE, recurrent_state(mixer, run), "recurrent_state")
    _output_gate(g, mixer, source)
    gated_norm(g, mixer, weights["o_norm"])
    linear(g, target, "gated", run.hidden(), weights["o_proj"])
    g.free("gated", "z", "mixed", "state new", "decay", "beta")


def _forget_gate(g: Graph, mixer: Recurrent, source: str) -> None:
    """The logarithm of the decay of each channel: through a low rank in fp32 (Kimi), or in one product, cast back (Ling)."""
    run, weights = g.run, modules(mixer)
    narrow, wide = run.rows(mixer.inner_dim), run.upcast(mixer.inner_dim)
    if "f_a_proj" in weights:
        linear(g, "forget low", source, run.rows(weights["f_a_proj"][0].shape[0]), weights["f_a_proj"])
        linear(g, "forget", "forget low", narrow, weights["f_b_proj"])
        g.free("forget low")
    else:
        linear(g, "forget", source, narrow, weights["f_proj"])
    for name in ("forget fp32", "forget moved"):
        g.hold(name, wide)
    g.free("forget fp32")
    g.hold("forget above", Size(batch=run.batch, sequence=run.sequence, features=mixer.inner_dim, bool_bytes=1))
    for name in ("exponential", "exponential and one"):
        g.hold(name, wide)
    g.free("exponential")
    g.hold("logarithm", wide)
    g.free("exponential and one")
    g.hold("softplus", wide)
    g.free("forget above", "logarithm")
    keeps = "f_a_proj" in weights
    g.hold("decay", wide if keeps else narrow)
    g.free("softplus", "forget moved", "forget")


def _output_gate(g: Graph, mixer: Recurrent, source: str) -> None:
    run, weights = g.run, modules(mixer)
    if "g_a_proj" not in weights:
        linear(g, "z", source, run.rows(mixer.inner_dim), weights["g_proj"])
        return
    linear(g, "z low", source, run.rows(weights["g_a_proj"][0].shape[0]), weights["g_a_proj"])
    linear(g, "z", "z low", run.rows(mixer.inner_dim), weights["g_b_proj"])
    g.free("z low")


def _chunks(g: Graph, mixer: Recurrent) -> None:
    """The sequence in chunks; leaves ``read`` in the model's dtype and ``state new``."""
    run = g.run
    each = {"batch": run.batch, "heads": mixer.num_heads, "chunks": -(-run.sequence // CHUNK_TOKENS), "chunk_tokens": CHUNK_TOKENS}
    token, pairs = Size(**each, head_dim=mixer.head_dim, fp32_bytes=4), Size(**each, chunk_keys=CHUNK_TOKENS, fp32_bytes=4)
    every = Size(**each, chunk_keys=CHUNK_TOKENS, head_dim=mixer.head_dim, fp32_bytes=4)
    rows = Size(**each | {"chunk_tokens": CHUNK_TOKENS - 1}, chunk_keys=CHUNK_TOKENS - 1, fp32_bytes=4)
    for name in ("q", "k", "v", "decay fp32"):
        g.hold(f"{name} padded", token)
    for name in ("v beta", "k beta", "decay sum"):
        g.hold(name, token)
    g.free("decay fp32 padded")
    g.hold("decay differences", every)
    g.hold("decay masked", every)
    g.free("decay differences")
    g.hold("decay of pairs", every)
    g.free("decay masked")
    for name in ("k by k", "k by k decayed"):
        g.hold(name, every)
    g.free("k by k")
    g.hold("system", pairs)
    g.free("k by k decayed")
    g.hold("rows before the last", rows)
    for name in ("new values", "decayed keys"):
        g.hold(name, token)
    g.free("v padded")
    g.hold("state old", recurrent_state(mixer, run))
    g.hold("output", token)
    _walk(g, mixer)
    g.free("rows before the last", "decay of pairs", "system", "q padded", "k padded", "v beta", "k beta", "decay sum")
    g.free("new values", "decayed keys")
    g.hold("read", run.heads(mixer.num_heads, mixer.head_dim))
    g.free("output")


def _walk(g: Graph, mixer: Recurrent) -> None:
    """One chunk of the walk: its queries by its keys for every channel, decayed, then what the state adds and takes."""
    one = {"batch": g.run.batch, "heads": mixer.num_heads, "chunk_tokens": CHUNK_TOKENS, "fp32_bytes": 4}
    part, every = Size(**one, head_dim=mixer.head_dim), Size(**one, chunk_keys=CHUNK_TOKENS, head_dim=mixer.head_dim)
    g.hold("inter", part)
    for name in ("q by k", "q by k decayed"):
        g.hold(name, every)
    g.free("q by k", "q by k decayed")
    for name in ("predicted", "corrected"):
        g.hold(name, part)
    for name in ("state decayed", "update", "state new"):
        g.hold(name, recurrent_state(mixer, g.run))
    g.free("state decayed", "update", "state old", "inter", "predicted", "corrected")


def _one_token(g: Graph, mixer: Recurrent) -> None:
    """A decode step, as a delta net's."""
    wide = g.run.heads(mixer.num_heads, mixer.head_dim, FP32_BYTES)
    for name in ("q scaled", "k unit", "v"):
        g.hold(name, wide)
    g.hold("beta wide", g.run.row(mixer.num_heads))
    delta_step(g, mixer)
