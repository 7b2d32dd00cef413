"""Mamba-2 (Dao & Gu 2024) as transformers 5.23 computes it where the ``mamba_ssm`` kernels are missing.

All families that have it (Mamba-2, Bamba, Granite 4, Nemotron-H, Falcon-H1, Zamba2) share ``mamba2_chunk_scan`` and
``mamba2_selective_state_update``. Names follow section 6 of the paper: L is the decay mask, G = C Bᵀ, M = G ∘ L.
"""

from __future__ import annotations

from planner.architecture.layers import Recurrent
from planner.components.graph import Graph
from planner.components.recurrent.convolution import causal_convolution
from planner.components.recurrent.states import RECURRENT_STATE, recurrent_state
from planner.components.run import FP32_BYTES
from planner.components.tape import Size


def mamba2_forward(g: Graph, mixer: Recurrent, target: str) -> None:
    """Projection, convolution, scan (or one step of the recurrence), gated norm, output projection."""
    run = g.run
    projected = run.rows(mixer.inner_dim + mixer.conv_channels + mixer.num_heads)
    if mixer.scaled_input:
        g.hold("scaled input", run.hidden())
        g.hold("unscaled projected", projected)
    g.hold("projected", projected)
    g.free("unscaled projected")
    causal_convolution(g, mixer, "x B C")
    g.free("scaled input")
    if run.past_tokens and run.sequence == 1:
        _step(g, mixer)
    else:
        _chunk_scan(g, mixer)
    _gate(g, mixer)
    g.hold(target, run.hidden())
    g.free("gated", "projected", "x B C", "scanned", "scan wide", "states new")


def _chunk_scan(g: Graph, mixer: Recurrent) -> None:
    """The whole sequence in chunks, all of them at once; leaves ``scanned`` in fp32 and ``states new``."""
    run = g.run
    heads, width, state = mixer.num_heads, mixer.head_dim, mixer.state_dim
    step = Size(batch=run.batch, sequence=run.sequence, heads=heads, bytes=run.dtype_bytes)
    g.hold("dt biased", step)
    g.hold("dt positive", step)
    g.free("dt biased")
    g.hold("dt", step)
    g.free("dt positive")
    tokens = {"batch": run.batch, "sequence": run.sequence}
    x, decay = Size(**tokens, heads=heads, head_dim=width, fp32_bytes=4), Size(**tokens, heads=heads, fp32_bytes=4)
    grouped = Size(**tokens, groups=mixer.num_groups, state=state, fp32_bytes=4)
    for_heads = Size(**tokens, heads=heads, state=state, fp32_bytes=4)
    if run.dtype_bytes != FP32_BYTES:
        g.hold("x wide", x)
    for name in ("B", "C"):
        if run.dtype_bytes != FP32_BYTES:
            g.hold(f"{name} grouped", grouped)
        g.hold(name, for_heads)
        g.free(f"{name} grouped")
    _discretize(g, mixer, x, decay)
    _diagonal_blocks(g, mixer)
    _chunk_states(g, mixer)
    _off_diagonal_blocks(g, mixer)
    g.free(*(f"{name} chunks" for name in ("x", "A", "B", "C")), "A sum", "L", "G", "M", "Y", "decay", "B decayed")
    g.free("states before", "decay out", "C states", "Y off", "D x", "dt", "states of chunks")
    if run.cached:
        g.hold(RECURRENT_STATE, recurrent_state(mixer, run), "recurrent_state")


def _discretize(g: Graph, mixer: Recurrent, x: Size, decay: Size) -> None:
    """x · dt and A · dt, everything padded to whole chunks; D · x beside them."""
    upcast = g.run.dtype_bytes != FP32_BYTES
    g.hold("x padded", _chunks(g, mixer, mixer.head_dim))
    g.hold("D x", _chunks(g, mixer, mixer.head_dim))
    g.free("x padded")
    for name, size in (("x dt", x), ("A dt", decay)):
        if upcast:
            g.hold("dt wide", decay)
        g.hold(name, size)
        g.free("dt wide")
        if name == "x dt":
            g.free("x wide")
    for name, width in (("x", mixer.head_dim), ("A", 1), ("B", mixer.state_dim), ("C", mixer.state_dim)):
        g.hold(f"{name} chunks", _chunks(g, mixer, width))
    g.free("x dt", "A dt", "B", "C")


def _diagonal_blocks(g: Graph, mixer: Recurrent) -> None:
    """What the tokens of a chunk say to each other: L, G, M and Y = M x. ``einsum`` lays its operands out head by head."""
    mask, per_token = _pairs(g, mixer), _chunks(g, mixer, 1)
    g.hold("A sum", per_token)
    g.hold("A below", mask)
    g.hold("A below sum", mask)
    g.hold("A masked", mask)
    g.free("A below sum", "A below")
    g.hold("L", mask)
    g.free("A masked")
    with_state, with_width = _chunks(g, mixer, mixer.state_dim), _chunks(g, mixer, mixer.head_dim)
    _product(g, "G", mask, with_state, with_state)
    g.hold("M", mask)
    _product(g, "Y", with_width, with_width)


def _chunk_states(g: Graph, mixer: Recurrent) -> None:
    """The state each chunk adds, and by their own scan the state each begins with (and the last ends with)."""
    run = g.run
    per_token, with_state = _chunks(g, mixer, 1), _chunks(g, mixer, mixer.state_dim)
    chunks = -(-run.sequence // mixer.chunk_tokens)
    g.hold("decay difference", per_token)
    g.hold("decay", per_token)
    g.free("decay difference")
    g.hold("B decayed", with_state)
    _product(g, "states of chunks", _states(g, mixer, chunks), _chunks(g, mixer, mixer.head_dim), with_state)
    g.hold("states before", _states(g, mixer, 1))
    g.hold("states joined", _states(g, mixer, chunks + 1))
    g.free("states of chunks")
    _product(g, "states new", _states(g, mixer, chunks + 1), _states(g, mixer, chunks + 1))
    g.free("states joined")


def _off_diagonal_blocks(g: Graph, mixer: Recurrent) -> None:
    """What earlier chunks say to a token: C times the state its chunk began with; then the sum with the diagonal."""
    run, with_width = g.run, _chunks(g, mixer, mixer.head_dim)
    chunks = -(-run.sequence // mixer.chunk_tokens)
    g.hold("decay out", _chunks(g, mixer, 1))
    _product(g, "C states", with_width, _chunks(g, mixer, mixer.state_dim), _states(g, mixer, chunks))
    g.hold("Y off", with_width)
    g.hold("Y sum", with_width)
    g.hold("Y contiguous", with_width)
    g.free("Y sum")
    g.hold("scanned", with_width)
    g.free("Y contiguous")


def _step(g: Graph, mixer: Recurrent) -> None:
    """One token: state · dA + dB x, then C times the state (``mamba2_selective_state_update``); leaves ``scanned``."""
    run, upcast = g.run, g.run.dtype_bytes != FP32_BYTES
    inner, outer = {"batch": run.batch, "inner": mixer.inner_dim}, {"batch": run.batch, "state": mixer.state_numel}
    narrow, wide = Size(**inner, bytes=run.dtype_bytes), Size(**inner, fp32_bytes=4)
    state, state_wide = Size(**outer, bytes=run.dtype_bytes), Size(**outer, fp32_bytes=4)
    for_heads = Size(batch=run.batch, heads=mixer.num_heads, state=mixer.state_dim, bytes=run.dtype_bytes)
    g.hold("dt biased", narrow)
    g.hold("dt", narrow)
    g.free("dt biased")
    if upcast:
        g.hold("dt wide", wide)
    g.hold("A dt", state_wide)
    g.free("dt wide")
    g.hold("dA", state_wide)
    g.free("A dt")
    g.hold("B", for_heads)
    g.hold("dB", state)
    g.hold("dB x", state)
    g.hold("state decayed", state_wide)
    g.hold("state new", state_wide)
    g.free("state decayed")
    g.hold("C", for_heads)
    if upcast:
        g.hold("state cast", state)
        g.free("state new")
    for name in ("read", "D x", "scanned"):
        g.hold(name, narrow)
    g.free("D x", "read", "dt", "B", "dA", "dB", "dB x", "state cast", "state new", "C")


def _gate(g: Graph, mixer: Recurrent) -> None:
    """The scan's output times silu(gate), normed in groups where there is a norm; leaves ``gated`` in the model's dtype.

    The scan answers in fp32, one step of the recurrence in the model's dtype.
    """
    run = g.run
    narrow, wide = run.rows(mixer.inner_dim), run.upcast(mixer.inner_dim)
    upcast = run.dtype_bytes != FP32_BYTES
    steps = bool(run.past_tokens) and run.sequence == 1
    if not any("norm" in weight.name for weight in mixer.weights):
        if steps:
            g.rename("scanned", "gated")
            return
        g.hold("gate open", narrow)
        g.hold("gated wide", wide)
        g.free("gate open")
        if upcast:
            g.hold("gated", narrow)
            g.free("gated wide")
        else:
            g.rename("gated wide", "gated")
        return
    if steps and upcast:
        g.hold("scan wide", wide)
    if upcast:
        g.hold("gate wide", wide)
    g.hold("gate open", wide)
    g.free("gate wide")
    g.hold("product", wide)
    g.free("gate open", "scan wide")
    g.hold("square", wide)
    g.free("square")
    g.hold("normed", wide)
    g.free("product")
    if steps and upcast:
        g.hold("normed cast", narrow)
    g.hold("weighed", narrow if steps else wide)
    g.free("normed cast", "normed")
    if steps:
        g.rename("weighed", "gated")
        g.free("scanned")
    else:
        g.rename("weighed", "scan wide")
        if upcast:
            g.hold("gated", narrow)


def _product(g: Graph, name: str, size: Size, *operands: Size) -> None:
    """A batched matrix product whose ``operands`` are laid out anew for it."""
    for index, operand in enumerate(operands):
        g.hold(f"{name} operand {index}", operand)
    g.hold(name, size)
    g.free(*(f"{name} operand {index}" for index in range(len(operands))))


def _chunks(g: Graph, mixer: Recurrent, width: int) -> Size:
    """``width`` fp32 values for each head and token, padded to whole chunks."""
    chunks = -(-g.run.sequence // mixer.chunk_tokens)
    return Size(
        batch=g.run.batch, chunks=chunks, chunk_tokens=mixer.chunk_tokens, heads=mixer.num_heads, features=width, fp32_bytes=4
    )


def _pairs(g: Graph, mixer: Recurrent) -> Size:
    """One fp32 value for each head and pair of tokens of a chunk."""
    chunks = -(-g.run.sequence // mixer.chunk_tokens)
    pair = {"chunk_tokens": mixer.chunk_tokens, "chunk_keys": mixer.chunk_tokens}
    return Size(batch=g.run.batch, chunks=chunks, **pair, heads=mixer.num_heads, fp32_bytes=4)


def _states(g: Graph, mixer: Recurrent, count: int) -> Size:
    """``count`` fp32 states of all heads."""
    return Size(
        batch=g.run.batch, states=count, heads=mixer.num_heads, head_dim=mixer.head_dim, state=mixer.state_dim, fp32_bytes=4
    )
