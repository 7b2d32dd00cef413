"""Attention with learnt relative positions, one number a head and pair of tokens, as transformers 5.23 writes it for T5.

The positions are a mask of numbers for the memory-efficient kernel, laid out anew in every layer, and get a gradient.
"""

from __future__ import annotations

from planner.architecture.layers import Attention, Weight
from planner.components.autocast import in_16_bit, is_wide, narrowed
from planner.components.graph import Graph, Node
from planner.components.operators import linear
from planner.components.rules import Gradients, passed_on, sliced
from planner.components.run import FP32_BYTES, Run, module_of
from planner.components.tape import Size

ALIGNED_KEYS = 16
POSITIONS, CROSS_POSITIONS = "position bias", "cross position bias"


def position_bias(run: Run, attention: Attention, keys: int = 0) -> Size:
    """One number for each head and pair of tokens, the same for every sequence of the batch. ``keys``: the run's own if 0."""
    return Size(heads=attention.num_heads, queries=run.sequence, keys=keys or run.sequence, bytes=run.dtype_bytes)


def biased_attention(g: Graph, mixer: Attention, source: str, target: str, *, encoded: str = "", keys: int = 0) -> None:
    """Projections, positions, kernel, output projection: reads ``source`` and, across, ``encoded`` of ``keys`` tokens.

    In training a decoder's keys and values pass a cache, whatever was asked (``T5Stack`` keeps a config of its own).
    """
    with in_16_bit(g):
        _biased_attention(g, mixer, source, target, encoded, keys)


def _biased_attention(g: Graph, mixer: Attention, source: str, target: str, encoded: str, keys: int) -> None:
    run, weights = g.run, {module: _of(mixer, module) for module in "qkvo"}
    keys, at = keys or run.sequence, "cross " if encoded else ""
    rows = {"batch": run.batch, "keys": keys, "heads": mixer.num_heads, "bytes": run.dtype_bytes}
    sizes = {"k": Size(**rows, head_dim=mixer.head_dim), "v": Size(**rows, head_dim=mixer.value_head_dim)}
    linear(g, f"{at}q", source, run.heads(mixer.num_heads, mixer.head_dim), weights["q"])
    for name, size in sizes.items():
        linear(g, f"{at}{name}", encoded or source, size, weights[name])
    if run.cached:
        for name, size in sizes.items():
            g.make(f"{at}{name} cached", size, (f"{at}{name}",), (), passed_on)
        g.free(f"{at}k", f"{at}v")
    names = tuple(f"{at}{name} cached" if run.cached else f"{at}{name}" for name in ("k", "v"))
    bias = _bias(g, mixer, crossed=bool(encoded), keys=keys)
    _kernel(g, mixer, (f"{at}q", *names), bias, at)
    linear(g, target, f"{at}attended", run.hidden(), weights["o"])
    g.free(f"{at}attended", f"{at}q", *names, "future")


def _bias(g: Graph, mixer: Attention, *, crossed: bool, keys: int) -> tuple[str, str]:
    """The mask of numbers that the kernel reads, as one for every sequence and as what it keeps.

    Across it is made of zeros once for all layers. Rows that are no multiple of 16 are copied into some that are
    (attention.cpp, ``pad_bias``), while the caller still holds them. The kernel is on autocast's 16-bit list.
    """
    run, name = g.run, "cross bias" if crossed else "bias"
    size = g.size_of(CROSS_POSITIONS if crossed else POSITIONS)
    missing = -keys % ALIGNED_KEYS
    row = {"heads": mixer.num_heads, "queries": run.sequence, "padded_keys": keys + missing, "bytes": run.dtype_bytes}
    kept = CROSS_POSITIONS
    if crossed and POSITIONS in g.live and CROSS_POSITIONS not in g.constants:
        g.hold(CROSS_POSITIONS, size)  # a checkpoint that makes its stack's positions again makes these too
    if not crossed:
        kept, source = "bias for the kernel", POSITIONS
        if mixer.causal:
            g.hold("future", Size(queries=run.sequence, keys=keys, bool_bytes=1))
            g.make("bias masked", size, (POSITIONS,), ("future",))
            source = "bias masked"
        g.make(kept, size, (source,), (), passed_on)
        g.free("bias masked")
        if run.autocast and is_wide(size):
            size = narrowed(size)
            g.make("bias in 16 bit", size, (kept,))
            kept = "bias in 16 bit"
    whole = kept
    if missing > 0:
        g.make(f"{name} padded", Size(**row), (kept,))
        kept, whole = f"{name} padded", f"{name} unpadded"
        g.view(whole, kept, sliced, size)
    if CROSS_POSITIONS in g.constants and crossed:
        return whole, kept
    g.view(f"{name} of every sequence", whole, _summed, Size(batch=run.batch, **row))
    return f"{name} of every sequence", kept


def _kernel(g: Graph, mixer: Attention, operands: tuple[str, ...], bias: tuple[str, str], at: str) -> None:
    """The memory-efficient kernel; without autograd it leaves out its log-sum-exp."""
    run, saves = g.run, [*operands, f"{at}attended", bias[1]]
    if g.saving:
        g.hold(f"{at}log_sum_exp", run.row(mixer.num_heads))
        saves.append(f"{at}log_sum_exp")
    inputs = (*operands, bias[0])
    g.make(f"{at}attended", run.heads(mixer.num_heads, mixer.value_head_dim), inputs, saves, kernel_back, whole=True)
    g.free(f"{at}log_sum_exp", bias[0], bias[1] if bias[1] != CROSS_POSITIONS else "", "bias unpadded", "cross bias unpadded")
    g.free("bias for the kernel", "bias in 16 bit")


def kernel_back(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """Gradients of all inputs, row sums and an fp32 query gradient, rows padded to 32 (attention_backward.cu)."""
    run = g.run
    made = [(tensor, g.gradient(tensor, node)) for tensor in node.wanted]
    values = g.record.sizes[node.inputs[0]].values
    rows = {"batch": run.batch, "heads": int(values["heads"]), "padded": -(-run.sequence // 32) * 32, "fp32_bytes": FP32_BYTES}
    moments = [g.held("row sums", node, Size(**rows))] if run.cuda else []
    if run.cuda and run.dtype_bytes != FP32_BYTES:
        moments.append(g.held("dq accumulator", node, Size(**rows, head_dim=int(values["head_dim"]))))
    g.consume(*moments)
    return made


def _summed(g: Graph, node: Node, gradient: str) -> Gradients:
    """Positions that all sequences share: their gradients are summed, of one sequence it is the gradient itself."""
    (tensor,) = node.inputs
    return [(tensor, g.share(gradient) if g.run.batch == 1 else g.gradient(tensor, node))]


def _of(mixer: Attention, module: str) -> tuple[Weight, ...]:
    return tuple(weight for weight in mixer.weights if module_of(weight) == module)
