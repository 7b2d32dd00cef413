"""How softmax(q · kᵀ) · v is computed: torch's fused kernels, its math fallback, and the eager code of transformers.

Each reads queries, keys and values by name and leaves ``attended``.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from planner.components.autocast import is_wide, narrowed
from planner.components.graph import Graph, Node
from planner.components.rules import Gradients, Rule, passed_on
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
            g.make(f"{name} repeated", Size(**heads, head_dim=width, bytes=bytes_), (name,), (), _summed_heads)
        else:
            g.view(f"{name} repeated", name, _summed_heads)
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
        g.make("v by head", _every(run, ops, ops.value_head_dim), ("v fp32",), (), _summed_heads)
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
        g.make("k repeated", every, ("k fp32",), (), _summed_heads)
        g.make("v by head", _every(run, ops, ops.value_head_dim), ("v fp32",), (), _summed_heads)
        g.make("k by head", every, ("k repeated",))
        g.make("q by head", wide, ("q scaled",))
        return
    few = Size(batch=run.batch, keys=ops.keys, heads=ops.kv_heads, head_dim=ops.head_dim, fp32_bytes=4)
    g.make("k scaled", few, ("k fp32",))
    g.make("q by head", wide, ("q scaled",))
    g.make("k by head", every, ("k scaled",), (), _summed_heads)


def _causal_mask(g: Graph, ops: Operands) -> None:
    """A triangle of booleans, then numbers."""
    cells = {"queries": g.run.sequence, "keys": ops.keys}
    for name in ("causal cells", "causal triangle"):
        g.hold(name, Size(**cells, bool_bytes=1))
    g.free("causal cells")
    g.hold("causal mask", Size(**cells, fp32_bytes=4))
    g.free("causal triangle")


def eager(g: Graph, ops: Operands, *, softcap: bool, sinks: bool, query_by_head: bool, dropout: bool = False) -> None:
    """``eager_attention_forward``: scores, scale, cap, mask, softmax in fp32, values; the probabilities are returned.

    ``sinks`` (gpt-oss): a column of sinks beside the scores, softmax in the model's dtype. ``query_by_head``: queries lie
    head by head already; else the product copies those of several sequences, and keys and values that are not repeated.
    ``dropout``: the probabilities pass one in training. Over fp32 weights autocast casts what each product reads, and a mask of
    fp32 numbers makes the scores fp32.
    """
    run, repeated = g.run, repeat_keys(g, ops)
    scores = run.scores(ops.heads, ops.keys)
    q = read = _narrow(g, ops.q)
    keys = _narrow(g, repeated.k)
    if not query_by_head and run.batch > 1:
        q = "q by head"
        g.make(q, run.heads(ops.heads, ops.head_dim), (read,))
    k = _by_head(g, ops, keys, ops.head_dim, lies=query_by_head)
    g.make("scores", scores, (q, k), (q, k))
    g.free(*({q, k, read, keys} - {ops.q, repeated.k}))
    _replace(g, "scores", "scores scaled", scores)
    last = "scores scaled"
    for name in ("divided", "tanh", "capped") if softcap else ():
        _replace(g, last, name, scores, saves=(name,) if name == "tanh" else ())
        last = name
    _replace(g, last, "scores masked", _masked_scores(run, ops), rule=passed_on)
    if run.autocast and not sinks:
        _softmax_of_masked(g, ops, keeps=is_wide(g.size_of(ops.q)))
    else:
        (_softmax_with_sinks if sinks else _softmax)(g, ops, scores)
    if dropout and g.saving:
        _dropped(g, ops, scores)
    probabilities, values = _narrow(g, "probabilities"), _narrow(g, repeated.v)
    v = _by_head(g, ops, values, ops.value_head_dim, lies=False)
    g.make("attended", run.heads(ops.heads, ops.value_head_dim), (probabilities, v), (probabilities, v))
    g.free(*({v, values, probabilities} - {repeated.v, "probabilities"}))
    g.make("attended by token", run.heads(ops.heads, ops.value_head_dim), ("attended",))
    g.free("attended", "scores without largest")
    if repeated is not ops:
        g.free(repeated.k, repeated.v)
    g.rename("attended by token", "attended")


def _narrow(g: Graph, name: str) -> str:
    """What a product reads under autocast: a cast of an fp32 tensor, else the tensor itself."""
    if not g.run.autocast or not is_wide(g.size_of(name)):
        return name
    g.make(f"{name} narrow", narrowed(g.size_of(name)), (name,))
    return f"{name} narrow"


def _masked_scores(run: Run, ops: Operands) -> Size:
    """Scores and a mask of the embeddings' dtype."""
    wide = run.autocast and (run.parameter_bytes == FP32_BYTES or run.compute_bytes)
    return run.scores(ops.heads, ops.keys, FP32_BYTES if wide else run.dtype_bytes)


def _softmax_of_masked(g: Graph, ops: Operands, *, keeps: bool = False) -> None:
    """``probabilities`` of ``scores masked`` in fp32, as autocast makes them, then in the queries' dtype (``keeps``: fp32 too)."""
    wide, scores = g.run.scores(ops.heads, ops.keys, FP32_BYTES), "scores masked"
    if not is_wide(g.size_of(scores)):
        scores = "scores fp32"
        g.make(scores, wide, ("scores masked",))
    g.make("probabilities fp32", wide, (scores,), ("probabilities fp32",))
    g.free("scores fp32", "scores masked")
    if keeps:
        g.rename("probabilities fp32", "probabilities")
    else:
        _replace(g, "probabilities fp32", "probabilities", g.run.scores(ops.heads, ops.keys))


def _by_head(g: Graph, ops: Operands, name: str, width: int, *, lies: bool) -> str:
    """The operand of a product of all heads: of several sequences what does not lie head by head is copied.

    That is one key head which every query head sees by a view, and what comes from a projection without a cache between.
    """
    shared, several = ops.grouped and ops.kv_heads == 1, g.run.batch > 1
    size = Size(batch=g.run.batch, keys=ops.keys, heads=ops.heads, head_dim=width, bytes=g.run.dtype_bytes)
    if shared and not several:
        g.view(f"{name} by head", name, _summed_heads, size)
    elif several and (shared or not (ops.grouped or lies or g.run.cached)):
        g.make(f"{name} by head", size, (name,), (), _summed_heads)
    else:
        return name
    return f"{name} by head"


def _dropped(g: Graph, ops: Operands, scores: Size) -> None:
    """A dropout in the place of the probabilities; autograd keeps a mask of one byte each."""
    mask = Size(batch=g.run.batch, heads=ops.heads, queries=g.run.sequence, keys=ops.keys, bool_bytes=1)
    g.hold("probabilities mask", mask)
    g.make("probabilities dropped", scores, ("probabilities",), ("probabilities mask",))
    g.free("probabilities mask", "probabilities")
    g.rename("probabilities dropped", "probabilities")


def eager_wide(g: Graph, ops: Operands) -> None:
    """GPT-J's own: queries, keys and scores in fp32."""
    run = g.run
    if run.autocast:
        _eager_wide_narrowed(g, ops)
        return
    scores = run.scores(ops.heads, ops.keys, FP32_BYTES)
    wide = run.heads(ops.heads, ops.head_dim, FP32_BYTES)
    keys = Size(batch=run.batch, keys=ops.keys, heads=ops.heads, head_dim=ops.head_dim, fp32_bytes=4)
    for name, source, size in (("q fp32", ops.q, wide), ("k fp32", ops.k, keys)):
        if is_wide(g.size_of(source)):
            g.view(name, source)
        else:
            g.make(name, size, (source,))
    g.make("q by head", wide, ("q fp32",))
    g.make("scores", scores, ("q by head", "k fp32"), ("q by head", "k fp32"))
    g.free("q by head")
    _replace(g, "scores", "scores scaled", scores)
    _replace(g, "scores scaled", "scores masked", scores, rule=passed_on)
    _replace(g, "scores masked", "probabilities fp32", scores, saves=("probabilities fp32",))
    _cast_probabilities(g, run.scores(ops.heads, ops.keys))
    _values(g, ops)
    g.free("q fp32", "k fp32")


def _eager_wide_narrowed(g: Graph, ops: Operands) -> None:
    """The same under autocast, which casts what was widened back for the product and widens scores for the softmax."""
    run = g.run
    scores, heads = run.scores(ops.heads, ops.keys), run.heads(ops.heads, ops.head_dim)
    for part in "qk":
        g.make(f"{part} fp32", run.heads(ops.heads, ops.head_dim, FP32_BYTES), (getattr(ops, part),))
    for part in "qk":
        g.make(f"{part} narrow", heads, (f"{part} fp32",))
    for part in "qk":
        g.make(f"{part} in rows", heads, (f"{part} narrow",))
    g.make("scores", scores, ("q in rows", "k in rows"), ("q in rows", "k in rows"))
    g.free("q narrow", "k narrow", "q in rows", "k in rows")
    _replace(g, "scores", "scores scaled", scores)
    _replace(g, "scores scaled", "scores masked", _masked_scores(run, ops), rule=passed_on)
    _softmax_of_masked(g, ops)
    g.make("v in rows", run.heads(ops.heads, ops.value_head_dim), (ops.v,))
    _values(g, ops, "v in rows")
    g.free("q fp32", "k fp32", "v in rows")


def eager_alibi(g: Graph, ops: Operands) -> None:
    """Bloom's own: position biases enter with the product; scores, masked scores and probabilities live to the end.

    The product takes heads one after another: of several sequences parts of one projection are copied, what comes out of a
    cache lies so already.
    """
    run = g.run
    several = run.batch > 1
    scores, wide = run.scores(ops.heads, ops.keys), run.scores(ops.heads, ops.keys, FP32_BYTES)
    names = {name: f"{name} by head" if several and (name == "q" or not run.cached) else getattr(ops, name) for name in "qkv"}
    for part, name in names.items():
        if name != getattr(ops, part):
            g.make(name, run.heads(ops.heads, ops.head_dim), (getattr(ops, part),))
    g.make("scores", scores, (names["q"], names["k"]), (names["q"], names["k"]))
    g.make("scores masked", _masked_scores(run, ops), ("scores",), (), passed_on)
    last = "scores masked"
    if not is_wide(g.size_of(last)):
        last = "scores fp32"
        g.make(last, wide, ("scores masked",))
    g.make("probabilities fp32", wide, (last,), ("probabilities fp32",))
    g.free("scores fp32")
    _cast_probabilities(g, scores)
    _values(g, ops, names["v"])
    g.free(*(name for part, name in names.items() if part != "q" and name != getattr(ops, part)))


def eager_biased(g: Graph, ops: Operands) -> None:
    """MPT's own: biases of positions in fp32 make the scores fp32; masked scores and probabilities live to the end.

    Of several sequences each product copies what does not lie head by head.
    """
    run, names = g.run, {}
    scores, wide = run.scores(ops.heads, ops.keys), run.scores(ops.heads, ops.keys, FP32_BYTES)
    for part, head_dim in (("q", ops.head_dim), ("k", ops.head_dim), ("v", ops.value_head_dim)):
        names[part] = getattr(ops, part)
        if run.batch > 1 and (part == "q" or not run.cached):
            names[part] = f"{part} by head"
            if part != "v":
                g.make(names[part], run.heads(ops.heads, head_dim), (getattr(ops, part),))
    g.make("scores", scores, (names["q"], names["k"]), (names["q"], names["k"]))
    g.free("q by head", "k by head")
    _replace(g, "scores", "scores scaled", scores)
    _replace(g, "scores scaled", "scores biased", wide, rule=passed_on)
    _replace(g, "scores biased", "scores masked", wide)
    g.make("probabilities fp32", wide, ("scores masked",), ("probabilities fp32",))
    _cast_probabilities(g, scores)
    if names["v"] != ops.v:
        g.make(names["v"], run.heads(ops.heads, ops.value_head_dim), (ops.v,))
    _values(g, ops, names["v"])
    g.free("v by head")


def _cast_probabilities(g: Graph, scores: Size) -> None:
    """In the dtype of the values; in an fp32 model the tensor itself."""
    if is_wide(scores):
        g.rename("probabilities fp32", "probabilities")
    else:
        _replace(g, "probabilities fp32", "probabilities", scores)


def _values(g: Graph, ops: Operands, values: str = "") -> None:
    values = values or ops.v
    size = g.run.heads(ops.heads, ops.value_head_dim)
    g.make("attended by head", size, ("probabilities", values), ("probabilities", values))
    g.make("attended", size, ("attended by head",))
    g.free("attended by head")


def _softmax(g: Graph, ops: Operands, scores: Size) -> None:
    wide = g.run.scores(ops.heads, ops.keys, FP32_BYTES)
    if g.run.dtype_bytes == FP32_BYTES or not g.run.code.eager_upcasts:
        g.make("probabilities", scores, ("scores masked",), ("probabilities",))
    else:
        g.make("scores fp32", wide, ("scores masked",))
        _replace(g, "scores fp32", "probabilities fp32", wide, saves=("probabilities fp32",))
        _cast_probabilities(g, scores)
    g.free("scores masked")


def _softmax_with_sinks(g: Graph, ops: Operands, scores: Size) -> None:  # noqa: ARG001
    """In the dtype of the masked scores, which the code names (so that autocast leaves it)."""
    more = g.run.scores(ops.heads, ops.keys + 1, FP32_BYTES if is_wide(g.size_of("scores masked")) else 0)
    g.make("scores and sinks", more, ("scores masked",), (), passed_on)
    g.hold("largest", g.run.scores(ops.heads, 5))
    g.make("scores without largest", more, ("scores and sinks",), (), passed_on)
    g.free("largest", "scores and sinks")
    g.make("probabilities", more, ("scores without largest",), ("probabilities",))
    g.free("scores masked")


def _replace(g: Graph, old: str, new: str, size: Size, saves: tuple[str, ...] = (), rule: Rule | None = None) -> None:
    g.make(new, size, (old,), saves, rule)
    g.free(old)


def _summed_heads(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """The gradients of the copies are summed to the key head's."""
    return [(tensor, g.gradient(tensor, node)) for tensor in node.inputs]


def _pad(head_dim: int) -> int:
    """Head width as the flash kernel rounds it: to 32 up to 128, else to 64."""
    granule = 32 if head_dim <= 128 else 64
    return -(-head_dim // granule) * granule
