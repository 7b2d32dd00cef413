"""Mamba (Gu & Dao 2023) as transformers 5.23 computes it where the ``mamba_ssm`` kernels are missing.

``mamba_selective_scan`` makes the discretised A, B and B·x of the whole sequence, then walks it token by token: three
tensors of batch · inner width · sequence · state in fp32 are alive at once.
"""

from __future__ import annotations

from planner.architecture.layers import Recurrent
from planner.components.graph import Graph
from planner.components.recurrent.convolution import causal_convolution
from planner.components.recurrent.states import RECURRENT_STATE, recurrent_state
from planner.components.run import FP32_BYTES
from planner.components.tape import BLOCK_BYTES, Size


def mamba_forward(g: Graph, mixer: Recurrent, target: str) -> None:
    """Projection, convolution, step and state projections, selective scan (or one step), output projection."""
    run = g.run
    steps = bool(run.past_tokens) and run.sequence == 1
    inner = run.rows(mixer.inner_dim)
    g.hold("projected", run.rows(2 * mixer.inner_dim))
    _negative_exponential(g, mixer)
    causal_convolution(g, mixer, "convolved x")
    _step_and_states(g, mixer, inner, steps=steps)
    if steps:
        _step(g, mixer)
    else:
        _scan(g, mixer)
        if run.cached:
            g.hold(RECURRENT_STATE, recurrent_state(mixer, run), "recurrent_state")
        if run.dtype_bytes != FP32_BYTES:
            g.hold("scanned cast", inner)
        g.hold("scanned by token", inner)
    g.hold(target, run.hidden())
    g.free("scanned by token", "scanned cast", "A", "convolved x", "projected", "step", "step B C", "scanned", "state new")
    g.free("B normed", "C normed", "bias wide")


def _negative_exponential(g: Graph, mixer: Recurrent) -> None:
    """A = −exp(A_log.float())."""
    size = Size(inner=mixer.inner_dim, state=mixer.state_dim, fp32_bytes=4)
    if g.run.dtype_bytes != FP32_BYTES:
        g.hold("A_log wide", size)
    g.hold("A exponential", size)
    g.free("A_log wide")
    g.hold("A", size)
    g.free("A exponential")


def _step_and_states(g: Graph, mixer: Recurrent, inner: Size, *, steps: bool) -> None:
    """``x_proj`` to step, B and C, normed in Jamba and Falcon-Mamba; ``dt_proj`` is a plain product, by channel."""
    run, rank = g.run, mixer.step_rank
    if not steps:
        g.hold("x by token", inner)
    g.hold("step B C", run.rows(rank + 2 * mixer.state_dim))
    g.free("x by token")
    if mixer.normed_step:
        for name, width in (("low step", rank), ("B normed", mixer.state_dim), ("C normed", mixer.state_dim)):
            g.hold(name, run.rows(width))
        g.free("step B C")
    g.hold("step by token", inner)
    if steps:
        g.rename("step by token", "step")
    else:
        g.hold("step", inner)
        g.free("step by token")
    g.free("low step")


def _scan(g: Graph, mixer: Recurrent) -> None:
    """``mamba_selective_scan``; leaves ``scanned`` in fp32 and ``state new``."""
    run, upcast = g.run, g.run.dtype_bytes != FP32_BYTES
    inner = run.rows(mixer.inner_dim)
    wide = run.upcast(mixer.inner_dim)
    expanded = Size(batch=run.batch, inner=mixer.inner_dim, sequence=run.sequence, state=mixer.state_dim, fp32_bytes=4)
    state = Size(batch=run.batch, inner=mixer.inner_dim, state=mixer.state_dim, fp32_bytes=4)
    if upcast:
        for name in ("bias wide", "D wide"):
            g.hold(name, Size(inner=mixer.inner_dim, fp32_bytes=4))
    g.hold("step biased", inner)
    g.hold("step positive", inner)
    g.free("step biased")
    g.hold("A step", expanded)
    g.hold("A discrete", expanded)
    g.free("A step")
    g.hold("B discrete", expanded)
    if upcast:
        g.hold("x wide", wide)
    g.hold("B x", expanded)
    g.free("x wide")
    g.hold("state old", state)
    g.hold("outputs", _outputs(g, mixer))
    g.hold("state decayed", state)
    g.hold("state new", state)
    g.free("state decayed", "state old")
    g.hold("outputs joined", inner)
    g.hold("D x", wide)
    g.hold("outputs and x", wide)
    g.free("D x", "outputs joined")
    g.hold("gate open", inner)
    g.hold("scanned", wide)
    g.free("gate open", "outputs and x", "step positive", "A discrete", "B discrete", "B x", "outputs")
    g.free("D wide")


def _outputs(g: Graph, mixer: Recurrent) -> Size:
    """One tensor of batch · inner width for every token, each rounded up to the allocator's block."""
    run = g.run
    each = -(-run.batch * mixer.inner_dim * run.dtype_bytes // BLOCK_BYTES) * BLOCK_BYTES
    values = {"sequence": run.sequence, "batch": run.batch, "inner": mixer.inner_dim, "bytes": run.dtype_bytes}
    return Size.stated(run.sequence * each, "sequence · batch · inner · bytes, each rounded up to 512 bytes", **values)


def _step(g: Graph, mixer: Recurrent) -> None:
    """One token (``mamba_selective_state_update``): everything of batch · inner width · state in fp32; leaves ``scanned``."""
    run, upcast = g.run, g.run.dtype_bytes != FP32_BYTES
    inner = {"batch": run.batch, "inner": mixer.inner_dim}
    narrow, wide = Size(**inner, bytes=run.dtype_bytes), Size(**inner, fp32_bytes=4)
    state, state_narrow = (
        Size(**inner, state=mixer.state_dim, fp32_bytes=4),
        Size(**inner, state=mixer.state_dim, bytes=run.dtype_bytes),
    )
    if upcast:
        g.hold("bias wide", Size(inner=mixer.inner_dim, fp32_bytes=4))
    g.hold("step biased", narrow)
    g.hold("step positive", narrow)
    g.free("step biased")
    for name in ("dA", "dB", "dB x"):
        if upcast:
            g.hold("cast", wide)
        if name == "dA":
            g.hold("A step", state)
            g.free("cast")
        g.hold(name, state)
        g.free("A step", "cast")
    g.hold("state decayed", state)
    g.hold("state new", state)
    g.free("state decayed")
    if upcast:
        g.hold("state cast", state_narrow)
    g.hold("read", narrow)
    g.free("state cast")
    for name in ("D x", "read and x"):
        g.hold(name, narrow)
    g.free("D x", "read")
    g.hold("gate open", narrow)
    g.hold("scanned", narrow)
    g.free("gate open", "read and x", "step positive", "dA", "dB", "dB x", "state new")
