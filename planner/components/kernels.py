"""How ``scaled_dot_product_attention`` computes softmax(q · kᵀ) · v: torch's fused kernels and its math fallback.

Each reads queries, keys and values by name and leaves ``attended``.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from planner.components.autocast import is_wide
from planner.components.graph import Graph, Node
from planner.components.rules import Gradients, passed_on
from planner.components.run import FP32_BYTES, Run
from planner.components.tape import Size
from planner.record import record
from planner.symbolic.amount import smallest

FLASH_MAX_HEAD_DIM = 256
Kernel = Literal["flash", "efficient", "math"]


@record
class Operands:
    """Queries, keys and values by name, their heads and widths, and how many keys there are."""

    q: str
    k: str
    v: str
    heads: int
    kv_heads: int
    head_dim: int
    value_head_dim: int
    keys: int
    masked: bool = False

    @property
    def grouped(self) -> bool:
        """Whether a key serves several queries."""
        return self.heads != self.kv_heads


def choose_kernel(run: Run, ops: Operands, *, grouped_natively: bool) -> Kernel:
    """What ``scaled_dot_product_attention`` takes on CUDA (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp).

    The CPU's own flash kernel takes masks, fp32 and other widths too.
    """
    matched = not ops.grouped or grouped_natively
    equal = ops.head_dim == ops.value_head_dim
    if not run.cuda:
        return "flash" if equal and matched else "math"
    if not ops.masked and run.dtype_bytes != FP32_BYTES and equal and ops.head_dim <= FLASH_MAX_HEAD_DIM and matched:
        return "flash"
    alignment = 4 if run.dtype_bytes == FP32_BYTES else 8
    if not ops.grouped and ops.head_dim % alignment == 0 and ops.value_head_dim % alignment == 0:
        return "efficient"
    return "math"


def repeat_keys(g: Graph, ops: Operands) -> Operands:
    """Keys and values copied for every query head (``repeat_kv``); with one key head that is a view."""
    if not ops.grouped:
        return ops
    heads = {"batch": g.run.batch, "keys": ops.keys, "heads": ops.heads}
    for name, width in ((ops.k, ops.head_dim), (ops.v, ops.value_head_dim)):
        if ops.kv_heads > 1:
            bytes_ = FP32_BYTES if g.run.autocast and is_wide(g.size_of(name)) else g.run.dtype_bytes
            g.make(f"{name} repeated", Size(**heads, head_dim=width, bytes=bytes_), (name,), (), summed_heads)
        else:
            g.view(f"{name} repeated", name, summed_heads)
    return Operands(
        f"{ops.q}", f"{ops.k} repeated", f"{ops.v} repeated", ops.heads, ops.heads, ops.head_dim, ops.value_head_dim, ops.keys,
        ops.masked,
    )  # fmt: skip


def packed(ops: Operands) -> Operands:
    """Queries of one group as queries of one head: a view."""
    return Operands(ops.q, ops.k, ops.v, ops.kv_heads, ops.kv_heads, ops.head_dim, ops.value_head_dim, ops.keys, ops.masked)


def fused(g: Graph, kernel: Kernel, ops: Operands) -> None:
    """The flash or the memory-efficient kernel. Its log-sum-exp is fp32; the efficient kernel leaves it out without autograd."""
    run = g.run
    saves = [ops.q, ops.k, ops.v, "attended"]
    if kernel == "flash" or g.saving or g.keeping:
        with g.operator("attention"):
            g.hold("log_sum_exp", Size(batch=run.batch, sequence=run.sequence, heads=ops.heads, fp32_bytes=4))
        saves.append("log_sum_exp")
    if ops.masked:
        g.hold("mask", Size(batch=run.batch, queries=run.sequence, keys=ops.keys, bytes=run.dtype_bytes))
        saves.append("mask")
        if kernel == "efficient":
            _aligned_mask(g, ops)
    rule = partial(_flash_rule if kernel == "flash" and run.cuda else _fused_rule, ops=ops)
    with g.operator("attention"):
        g.make("attended", run.heads(ops.heads, ops.value_head_dim), (ops.q, ops.k, ops.v), saves, rule, whole=True)
    g.free("log_sum_exp", "mask", "mask padded")


def _aligned_mask(g: Graph, ops: Operands) -> None:
    """A mask whose rows are no multiple of 16 is copied into rows that are (attention.cpp, ``pad_bias``)."""
    run, missing = g.run, -ops.keys % 16
    size = Size(batch=run.batch, queries=run.sequence, padded_keys=(ops.keys + missing) * min(missing, 1), bytes=run.dtype_bytes)
    g.hold("mask padded", size)


def _flash_rule(g: Graph, node: Node, gradient: str, ops: Operands) -> Gradients:  # noqa: ARG001
    """Gradients of queries, keys and values.

    The CUDA kernel (flash_attn 2, ``mha_bwd`` in ATen's flash_api.cpp) also holds an fp32 accumulator of the query
    gradient and the row sums, both padded to 128 tokens, and, with grouped heads, key and value gradients for every
    query head until they are summed.
    """
    run, sizes = g.run, g.record.sizes
    q, k, v = node.inputs
    padded = -(-run.sequence // 128) * 128
    moments = [g.held("row sums", node, Size(batch=run.batch, heads=ops.heads, padded_sequence=padded, fp32_bytes=4))]
    size = Size(batch=run.batch, padded_sequence=padded, heads=ops.heads, head_dim=_pad(ops.head_dim), fp32_bytes=4)
    moments.append(g.held("dq accumulator", node, size))
    made = [(q, g.gradient(q, node))]
    if ops.grouped:
        moments += [g.held(f"d{part} expanded", node, sizes[q]) for part in "kv"]
    made += [(k, g.gradient(k, node)), (v, g.gradient(v, node))]
    g.consume(*moments)
    return made


def _fused_rule(g: Graph, node: Node, gradient: str, ops: Operands) -> Gradients:  # noqa: ARG001
    """The memory-efficient kernel on CUDA: row sums and, for 16-bit inputs, an fp32 query gradient (attention_backward.cu)."""
    run, (q, k, v) = g.run, node.inputs
    moments: list[str] = []
    if run.cuda:
        padded = -(-run.sequence // 32) * 32
        rows = {"batch": run.batch, "heads": ops.heads, "padded_sequence": padded, "fp32_bytes": 4}
        moments.append(g.held("row sums", node, Size(**rows)))
        if run.dtype_bytes != FP32_BYTES:
            moments.append(g.held("dq accumulator", node, Size(**rows, head_dim=ops.head_dim)))
    made = [(tensor, g.gradient(tensor, node)) for tensor in (q, k, v)]
    g.consume(*moments)
    return made


def math(g: Graph, ops: Operands) -> None:
    """``_scaled_dot_product_attention_math``: everything in fp32, scores of all pairs.

    A mask (``where`` of the boolean one) is added in the model's dtype; without one a causal mask is made in fp32, which stays to
    the end, and so do keys and values that are repeated for every head first.
    """
    run, causal = g.run, not ops.masked and g.run.sequence > 1
    scores = run.scores(ops.heads, ops.keys, FP32_BYTES)
    wide = run.heads(ops.heads, ops.head_dim, FP32_BYTES)
    if ops.masked:
        g.hold("mask", Size(batch=run.batch, queries=run.sequence, keys=ops.keys, bytes=run.dtype_bytes))
    _widen_operands(g, ops)
    g.make("q scaled", wide, ("q fp32",))
    if causal:
        _causal_mask(g, ops)
    _keys_by_head(g, ops, repeats=ops.grouped and not ops.masked)
    g.make("scores", scores, ("q by head", "k by head"), ("q by head", "k by head"))
    g.free("q by head", "k by head", "k scaled")
    if ops.masked or causal:
        g.make("scores masked", scores, ("scores",), (), passed_on)
        g.free("scores")
        g.rename("scores masked", "scores")
    g.make("probabilities fp32", scores, ("scores",), ("probabilities fp32",))
    g.free("scores")
    if run.dtype_bytes != FP32_BYTES:
        g.make("probabilities cast", run.scores(ops.heads, ops.keys), ("probabilities fp32",))
    if not ops.grouped or ops.masked:
        g.make("v by head", _every(run, ops, ops.value_head_dim), ("v fp32",), (), summed_heads)
    inputs = ("probabilities fp32", "v by head")
    g.make("attended fp32", run.heads(ops.heads, ops.value_head_dim, FP32_BYTES), inputs, inputs)
    g.free("v by head", "k repeated")
    if run.dtype_bytes != FP32_BYTES:
        g.make("attended", run.heads(ops.heads, ops.value_head_dim), ("attended fp32",))
        g.free("attended fp32")
    else:
        g.rename("attended fp32", "attended")
    g.free("probabilities fp32", "v fp32", "k fp32", "q fp32", "q scaled", "probabilities cast", "mask", "causal mask")


def _widen_operands(g: Graph, ops: Operands) -> None:
    """Queries, keys and values in fp32."""
    run, few = g.run, {"batch": g.run.batch, "keys": ops.keys, "heads": ops.kv_heads, "fp32_bytes": 4}
    if run.dtype_bytes == FP32_BYTES:
        for name in "qkv":
            g.view(f"{name} fp32", getattr(ops, name))
        return
    g.make("q fp32", run.heads(ops.heads, ops.head_dim, FP32_BYTES), (ops.q,))
    g.make("k fp32", Size(**few, head_dim=ops.head_dim), (ops.k,))
    g.make("v fp32", Size(**few, head_dim=ops.value_head_dim), (ops.v,))


def _every(run: Run, ops: Operands, width: int) -> Size:
    """Keys or values of every head in fp32; one sequence's only key head is every query head's by a view."""
    copies = 1 if ops.kv_heads > 1 else smallest(run.batch - 1, 1)
    return Size(batch=run.batch, keys=ops.keys, heads=ops.heads, head_dim=width, copies=copies, fp32_bytes=4)


def _keys_by_head(g: Graph, ops: Operands, *, repeats: bool) -> None:
    """Operands of the first product; ``repeats``: keys and values are repeated before the scale, else the product copies them."""
    run = g.run
    wide, every = run.heads(ops.heads, ops.head_dim, FP32_BYTES), _every(run, ops, ops.head_dim)
    if repeats:
        g.make("k repeated", every, ("k fp32",), (), summed_heads)
        g.make("v by head", _every(run, ops, ops.value_head_dim), ("v fp32",), (), summed_heads)
        g.make("k by head", every, ("k repeated",))
        g.make("q by head", wide, ("q scaled",))
        return
    few = Size(batch=run.batch, keys=ops.keys, heads=ops.kv_heads, head_dim=ops.head_dim, fp32_bytes=4)
    g.make("k scaled", few, ("k fp32",))
    g.make("q by head", wide, ("q scaled",))
    g.make("k by head", every, ("k scaled",), (), summed_heads)


def _causal_mask(g: Graph, ops: Operands) -> None:
    """A triangle of booleans, then numbers."""
    cells = {"queries": g.run.sequence, "keys": ops.keys}
    for name in ("causal cells", "causal triangle"):
        g.hold(name, Size(**cells, bool_bytes=1))
    g.free("causal cells")
    g.hold("causal mask", Size(**cells, fp32_bytes=4))
    g.free("causal triangle")


def summed_heads(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """The gradients of the copies are summed to the key head's."""
    return [(tensor, g.gradient(tensor, node)) for tensor in node.inputs]


def _pad(head_dim: int) -> int:
    """Head width as the flash kernel rounds it: to 32 up to 128, else to 64."""
    granule = 32 if head_dim <= 128 else 64
    return -(-head_dim // granule) * granule
