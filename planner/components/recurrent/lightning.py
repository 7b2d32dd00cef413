"""Lightning attention (MiniMax-01 2025) as transformers 5.23 computes it: linear attention in blocks, one after another."""

from __future__ import annotations

from planner.architecture.layers import Norm, Recurrent
from planner.components.graph import Graph, Node
from planner.components.norms import norm_forward
from planner.components.operators import linear, multiply
from planner.components.recurrent.mamba2 import modules
from planner.components.recurrent.states import RECURRENT_STATE, recurrent_state
from planner.components.rules import Gradients, passed_on
from planner.components.tape import Size
from planner.symbolic.amount import smallest

OPERANDS = 6
"""Of a block's products, laid out anew: queries, keys and values, decayed queries, decayed keys, and values once more."""


def lightning_forward(g: Graph, mixer: Recurrent, source: str, target: str) -> None:
    """Projection, blocks (or one step), norm, output gate, output projection (``MiniMaxLightningAttention``)."""
    run, weights = g.run, modules(mixer)
    width = mixer.num_heads * mixer.head_dim
    inner = run.rows(width)
    steps = bool(run.past_tokens) and run.sequence == 1
    linear(g, "qkv", source, run.rows(3 * width), weights.get("qkv_proj", ()))
    g.make("qkv open", run.rows(3 * width), ("qkv",), ("qkv",))
    g.free("qkv")
    g.parts("qkv open", dict.fromkeys("qkv", inner))
    (_step if steps else _blocks)(g, mixer)
    _join(g, mixer, inner)
    if not steps:
        g.make("attended", inner, ("joined",), (), passed_on)
        g.free("joined")
    else:
        g.rename("joined", "attended")
    norm_forward(g, Norm("norm", width, "rms", weights.get("norm", ())), "normed", "attended")
    g.free("attended")
    linear(g, "gate", source, inner, weights.get("output_gate", ()))
    g.make("gate open", inner, ("gate",), ("gate open",))
    g.free("gate")
    multiply(g, "gated", inner, "gate open", "normed")
    g.free("gate open", "normed")
    linear(g, target, "gated", run.hidden(), weights.get("out_proj", ()))
    g.free("gated", "q", "k", "v", "qkv open", "scores", "intra", "inter", "update", "last output")
    if run.cached:
        g.free(RECURRENT_STATE)
        g.rename("state new", RECURRENT_STATE)
        g.relabel(RECURRENT_STATE, "recurrent_state")
    g.free("state new")


def _join(g: Graph, mixer: Recurrent, inner: Size) -> None:
    """The blocks' outputs in one tensor. Autograd keeps each block's decayed scores, its operands laid out anew and its state."""
    kept: list[str] = []
    if g.saving:
        run, tokens = g.run, smallest(g.run.sequence, mixer.chunk_tokens)
        whole = run.sequence // tokens
        rest = run.sequence - whole * tokens
        values = {"batch": run.batch, "heads": mixer.num_heads, "sequence": run.sequence, "block_tokens": tokens}
        pairs = run.batch * mixer.num_heads * (whole * tokens * tokens + rest * rest) * run.dtype_bytes
        formula = "batch · heads · Σ block_tokens² · bytes"
        g.hold("scores of the blocks", Size.stated(pairs, formula, **values, bytes=run.dtype_bytes))
        operands = {"batch": run.batch, "heads": mixer.num_heads, "sequence": run.sequence, "head_dim": mixer.head_dim}
        g.hold("operands of the blocks", Size(**operands, operands=OPERANDS, bytes=run.dtype_bytes))
        g.hold("states of the blocks", Size(blocks=whole, batch=run.batch, state=mixer.state_numel, bytes=run.dtype_bytes))
        kept = ["scores of the blocks", "operands of the blocks", "states of the blocks"]
    g.make("joined", inner, ("q", "k", "v"), kept, _walk_back, moment=_pairs(g, mixer))
    g.free("outputs", *kept)


def _walk_back(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """Block by block: scores' gradients, and gradients of the whole queries, keys and values, to which each block adds its part."""
    assert node.moment is not None  # noqa: S101  _join has given it
    moment = g.held("d scores", node, node.moment)
    made = [(tensor, g.gradient(tensor, node)) for tensor in node.inputs]
    g.consume(moment)
    return made


def _pairs(g: Graph, mixer: Recurrent) -> Size:
    """Scores of one block."""
    tokens = smallest(g.run.sequence, mixer.chunk_tokens)
    return Size(batch=g.run.batch, heads=mixer.num_heads, block_tokens=tokens, block_keys=tokens, bytes=g.run.dtype_bytes)


def _blocks(g: Graph, mixer: Recurrent) -> None:
    """The last block: its scores, what it reads of the state so far, and the state after it. Earlier outputs wait in a list."""
    run, tokens = g.run, smallest(g.run.sequence, mixer.chunk_tokens)
    heads = {"batch": run.batch, "heads": mixer.num_heads}
    part = Size(**heads, block_tokens=tokens, head_dim=mixer.head_dim, bytes=run.dtype_bytes)
    pairs = _pairs(g, mixer)
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


def _product(g: Graph, name: str, size: Size, *operands: Size) -> None:
    """A batched matrix product whose ``operands`` are laid out anew for it."""
    for index, operand in enumerate(operands):
        g.hold(f"{name} operand {index}", operand)
    g.hold(name, size)
    g.free(*(f"{name} operand {index}" for index in range(len(operands))))
