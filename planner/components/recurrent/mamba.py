"""Mamba (Gu & Dao 2023) as transformers 5.23 computes it where the ``mamba_ssm`` kernels are missing.

``mamba_selective_scan`` makes the discretised A, B and B·x of the whole sequence, then walks it token by token: three
tensors of batch · inner width · sequence · state in fp32 are alive at once.
"""

from __future__ import annotations

from collections.abc import Mapping

from planner.architecture.layers import Recurrent, Weight
from planner.components.graph import Graph, Node
from planner.components.operators import add, linear, multiply
from planner.components.recurrent.convolution import causal_convolution
from planner.components.recurrent.mamba2 import modules, named
from planner.components.recurrent.states import RECURRENT_STATE, recurrent_state
from planner.components.rules import Gradients, broadcast, passed_on, weighted
from planner.components.run import FP32_BYTES
from planner.components.tape import BLOCK_BYTES, Size


def mamba_forward(g: Graph, mixer: Recurrent, source: str, target: str) -> None:
    """Projection, convolution, step and state projections, selective scan (or one step), output projection."""
    run, weights = g.run, modules(mixer)
    steps = bool(run.past_tokens) and run.sequence == 1
    inner = run.rows(mixer.inner_dim)
    linear(g, "projected", source, run.rows(2 * mixer.inner_dim), weights["in_proj"])
    g.parts("projected", {"conv in": inner, "gate": inner})
    _negative_exponential(g, mixer)
    causal_convolution(g, mixer, "convolved x", "conv in")
    _step_and_states(g, mixer, inner, weights, steps=steps)
    result = "scanned"
    if steps:
        _step(g, mixer)
    else:
        _scan(g, mixer)
        if run.cached:
            g.hold(RECURRENT_STATE, recurrent_state(mixer, run), "recurrent_state")
        if run.dtype_bytes != FP32_BYTES:
            result = "scanned cast"
            g.make(result, inner, ("scanned",))
        g.hold("scanned by token", inner)
    linear(g, target, result, run.hidden(), weights["out_proj"])
    g.free("scanned by token", "scanned cast", "A", "convolved x", "step", "step B C", "scanned", "state new")
    g.free("B normed", "C normed", "bias wide", "conv in", "gate", "projected")


def _negative_exponential(g: Graph, mixer: Recurrent) -> None:
    """A = −exp(A_log.float())."""
    size = Size(inner=mixer.inner_dim, state=mixer.state_dim, fp32_bytes=4)
    if g.run.dtype_bytes != FP32_BYTES:
        g.hold("A_log wide", size)
    g.make("A exponential", size, (), ("A exponential",))
    g.free("A_log wide")
    g.make("A", size, ("A exponential",))
    g.free("A exponential")


def _step_and_states(g: Graph, mixer: Recurrent, inner: Size, weights: Mapping[str, tuple[Weight, ...]], *, steps: bool) -> None:
    """``x_proj`` to step, B and C, normed in Jamba and Falcon-Mamba; ``dt_proj`` is a plain product, by channel."""
    run, rank = g.run, mixer.step_rank
    if not steps:
        g.hold("x by token", inner)
    linear(g, "step B C", "convolved x", run.rows(rank + 2 * mixer.state_dim), weights.get("x_proj", ()))
    g.free("x by token")
    low = "step B C"
    if mixer.normed_step:
        for name, width in (("low step", rank), ("B normed", mixer.state_dim), ("C normed", mixer.state_dim)):
            g.make(name, run.rows(width), ("step B C",), ("step B C",))
        g.free("step B C")
        low = "low step"
    linear(g, "step by token", low, inner, weights.get("dt_proj", ()))
    if steps:
        g.rename("step by token", "step")
    else:
        g.make("step", inner, ("step by token",), (), passed_on)
        g.free("step by token")
    g.free("low step")


def _scan(g: Graph, mixer: Recurrent) -> None:
    """``mamba_selective_scan``; leaves ``scanned`` in fp32 and ``state new``. Autograd keeps the state after every token."""
    run, upcast = g.run, g.run.dtype_bytes != FP32_BYTES
    inner = run.rows(mixer.inner_dim)
    wide = run.upcast(mixer.inner_dim)
    expanded = Size(batch=run.batch, inner=mixer.inner_dim, sequence=run.sequence, state=mixer.state_dim, fp32_bytes=4)
    state = Size(batch=run.batch, inner=mixer.inner_dim, state=mixer.state_dim, fp32_bytes=4)
    if upcast:
        for name in ("bias wide", "D wide"):
            g.hold(name, Size(inner=mixer.inner_dim, fp32_bytes=4))
    g.make("step biased", inner, ("step",))
    g.make("step positive", inner, ("step biased",), ("step biased",))
    g.free("step biased")
    g.make("A step", expanded, ("step positive",), (), _expanded, for_weights=("step positive",))
    g.make("A discrete", expanded, ("A step",), ("A discrete",))
    g.free("A step")
    g.make("B discrete", expanded, ("step positive",), ("step positive",), _expanded)
    multiplied = "convolved x"
    if upcast:
        multiplied = "x wide"
        g.make(multiplied, wide, ("convolved x",))
    g.make("B x", expanded, ("B discrete", multiplied), ("B discrete", multiplied), broadcast)
    g.free("x wide")
    g.hold("state old", state)
    g.hold("outputs", _outputs(g, mixer))
    g.hold("state decayed", state)
    g.hold("state new", state)
    g.free("state decayed", "state old")
    _join_outputs(g, mixer, inner)
    g.make("D x", wide, ("convolved x",), (), weighted, weights=named(mixer, "D"), for_weights=("convolved x",))
    add(g, "outputs and x", wide, "outputs joined", "D x")
    g.free("D x", "outputs joined")
    g.make("gate open", inner, ("gate",), ("gate",))
    multiply(g, "scanned", wide, "outputs and x", "gate open")
    g.free("gate open", "outputs and x", "step positive", "A discrete", "B discrete", "B x", "outputs")
    g.free("D wide")


def _join_outputs(g: Graph, mixer: Recurrent, inner: Size) -> None:
    """What the tokens read, stacked. For the backward the scan keeps its states, as they were and cast for the reading."""
    run, kept = g.run, ["A discrete"]
    if g.saving:
        each = {"sequence": run.sequence, "batch": run.batch, "inner": mixer.inner_dim, "state": mixer.state_dim}
        g.hold("states of the scan", Size(**each, fp32_bytes=4))
        kept.append("states of the scan")
        if run.dtype_bytes != FP32_BYTES:
            g.hold("states cast", Size(**each, bytes=run.dtype_bytes))
            kept.append("states cast")
    g.make("outputs joined", inner, ("A discrete", "B x"), kept, _scan_rule)
    g.free("states of the scan", "states cast")


def _scan_rule(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """Token by token: each token's part is put into zeros of the whole and added to what the later tokens left."""
    size = g.record.sizes[node.inputs[0]]
    moments = [g.held(f"{node.out} {moment}", node, size) for moment in ("part", "sum")]
    made = [(tensor, g.gradient(tensor, node)) for tensor in node.inputs]
    g.consume(*moments)
    return made


def _expanded(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """A product with an expanded tensor: its gradient is as large as the result until it is summed."""
    rows = g.held(f"{node.out} rows", node, g.record.sizes[node.out])
    made = [(tensor, g.gradient(tensor, node)) for tensor in node.inputs]
    g.consume(rows)
    return made


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
