"""Lightning attention (MiniMax-01 2025) as transformers 5.23 computes it: linear attention in blocks, one after another."""

from __future__ import annotations

from planner.architecture.layers import Recurrent
from planner.components.graph import Graph
from planner.components.recurrent.states import RECURRENT_STATE, recurrent_state
from planner.components.run import FP32_BYTES
from planner.components.tape import Size


def lightning_forward(g: Graph, mixer: Recurrent, target: str) -> None:
    """Projection, blocks (or one step), norm, output gate, output projection (``MiniMaxLightningAttention``)."""
    run = g.run
    width = mixer.num_heads * mixer.head_dim
    steps = bool(run.past_tokens) and run.sequence == 1
    g.hold("qkv", run.rows(3 * width))
    g.hold("qkv open", run.rows(3 * width))
    g.free("qkv")
    (_step if steps else _blocks)(g, mixer)
    inner = run.rows(width)
    g.hold("joined", inner)
    g.free("outputs")
    if not steps:
        g.hold("attended", inner)
        g.free("joined")
    else:
        g.rename("joined", "attended")
    _norm(g, inner, run.upcast(width))
    g.hold("gate", inner)
    g.hold("gate open", inner)
    g.free("gate")
    g.hold("gated", inner)
    g.free("gate open", "normed")
    g.hold(target, run.hidden())
    g.free("gated", "qkv open", "scores", "intra", "inter", "update", "last output")
    if run.cached:
        g.free(RECURRENT_STATE)
        g.rename("state new", RECURRENT_STATE)
        g.relabel(RECURRENT_STATE, "recurrent_state")
    g.free("state new")


def _blocks(g: Graph, mixer: Recurrent) -> None:
    """The last block: its scores, what it reads of the state so far, and the state after it. Earlier outputs wait in a list."""
    run, tokens = g.run, min(g.run.sequence, mixer.chunk_tokens)
    heads = {"batch": run.batch, "heads": mixer.num_heads}
    part = Size(**heads, block_tokens=tokens, head_dim=mixer.head_dim, bytes=run.dtype_bytes)
    pairs = Size(**heads, block_tokens=tokens, block_keys=tokens, bytes=run.dtype_bytes)
    state = recurrent_state(mixer, run)
    g.hold("state old", state)
    if run.sequence > tokens:
        g.hold("outputs", Size(**heads, tokens=run.sequence - tokens, head_dim=mixer.head_dim, bytes=run.dtype_bytes))
        for name, size in (("old scores", pairs), ("old intra", part), ("old inter", part), ("old update", state)):
            g.hold(name, size)
    _product(g, "scores", pairs, part, part)
    g.free("old scores")
    g.hold("decayed scores", pairs)
    _product(g, "intra", part, part)
    g.free("decayed scores", "old intra")
    g.hold("decayed q", part)
    _product(g, "inter", part, part)
    g.free("decayed q", "old inter")
    g.hold("last output", part)
    g.hold("decayed k", part)
    _product(g, "update", state, part, part)
    g.free("decayed k", "old update")
    g.hold("decayed state", state)
    g.hold("state new", state)
    g.free("decayed state", "state old")


def _step(g: Graph, mixer: Recurrent) -> None:
    """One token: the state decays and takes in key times value; the query reads it."""
    run, state = g.run, recurrent_state(mixer, g.run)
    g.hold("update", state)
    g.hold("decayed state", state)
    g.hold("state new", state)
    g.free("decayed state")
    g.hold("last output", run.heads(mixer.num_heads, mixer.head_dim))


def _norm(g: Graph, narrow: Size, wide: Size) -> None:
    """RMSNorm over all heads; leaves ``normed``."""
    upcast = g.run.dtype_bytes != FP32_BYTES
    if upcast:
        g.hold("attended wide", wide)
    g.hold("square", wide)
    g.free("square")
    g.hold("scaled", wide)
    g.free("attended wide")
    if upcast:
        g.hold("scaled cast", narrow)
    g.hold("normed", narrow)
    g.free("scaled cast", "scaled", "attended")


def _product(g: Graph, name: str, size: Size, *operands: Size) -> None:
    """A batched matrix product whose ``operands`` are laid out anew for it."""
    for index, operand in enumerate(operands):
        g.hold(f"{name} operand {index}", operand)
    g.hold(name, size)
    g.free(*(f"{name} operand {index}" for index in range(len(operands))))
