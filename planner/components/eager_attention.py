"""Attention written out: the eager code of transformers for softmax(q · kᵀ) · v, family by family.

Each reads queries, keys and values by name and leaves ``attended`` and ``probabilities``.
"""

from __future__ import annotations

from planner.components.autocast import is_wide, narrowed
from planner.components.graph import Graph, Node
from planner.components.kernels import Operands, repeat_keys, summed_heads
from planner.components.rules import Gradients, Rule, broadcast, passed_on
from planner.components.run import FP32_BYTES, Run
from planner.components.tape import Size
from planner.modelled import NotModelled


def eager(g: Graph, ops: Operands, *, softcap: bool, sinks: bool, query_by_head: bool, dropout: bool = False) -> None:
    """``eager_attention_forward``: scores, scale, cap, mask, softmax in fp32, values; the probabilities are returned.

    ``sinks`` (gpt-oss): a column of sinks beside the scores, softmax in the model's dtype. ``query_by_head``: queries lie
    head by head already; else the product copies those of several sequences, and keys and values that are not repeated.
    ``dropout``: the probabilities pass one in training. Over fp32 weights autocast casts what each product reads, and a mask of
    fp32 numbers makes the scores fp32.
    """
    run, repeated = g.run, repeat_keys(g, ops)
    if run.autocast and (run.code.subtracts_largest or (sinks and run.code.sinks == "scale")):
        raise NotModelled("training.precision: these sinks of attention under autocast have no closed form yet")
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
    elif run.code.subtracts_largest:
        _softmax_of_differences(g, ops, sinks=sinks)
    elif sinks and run.code.sinks == "scale":
        _log_sum_exp(g, ops)
        _softmax(g, ops, scores)
    else:
        (_softmax_with_sinks if sinks else _softmax)(g, ops, scores)
    if dropout and g.saving:
        _dropped(g, ops, scores)
    probabilities, values = _narrow(g, "probabilities"), _narrow(g, repeated.v)
    v = _by_head(g, ops, values, ops.value_head_dim, lies=False)
    g.make("attended", run.heads(ops.heads, ops.value_head_dim), (probabilities, v), (probabilities, v))
    g.free(*({v, values, probabilities} - {repeated.v, "probabilities"}))
    if sinks and run.code.sinks == "scale":
        _scaled_by_sinks(g, ops)
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
        g.view(f"{name} by head", name, summed_heads, size)
    elif several and (shared or not (ops.grouped or lies or g.run.cached)):
        g.make(f"{name} by head", size, (name,), (), summed_heads)
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


def _softmax_of_differences(g: Graph, ops: Operands, *, sinks: bool) -> None:
    """Scores, with a column of sinks or without, less the largest of each row; then a softmax in their dtype (MiMo-V2)."""
    size, last = g.run.scores(ops.heads, ops.keys + int(sinks)), "scores masked"
    if sinks:
        _replace(g, last, "scores and sinks", size, rule=passed_on)
        last = "scores and sinks"
    g.make("largest", g.run.scores(ops.heads, 1), (last,), ("largest indices",), _row_rule)
    g.hold("largest indices", _row(g, ops, "int64_bytes", 8))
    g.make("scores without largest", size, (last, "largest"), (), _less_row)
    g.free("largest", "largest indices", last)
    g.make("probabilities", size, ("scores without largest",), ("probabilities",))
    g.free("scores without largest")


def _row_rule(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """``value_selecting_reduction_backward``: zeros of all scores, the row's gradient put in its place."""
    return [(tensor, g.gradient(tensor, node)) for tensor in node.inputs]


def _less_row(g: Graph, node: Node, gradient: str) -> Gradients:
    """The gradient itself, and its negative, as large until it is summed to the rows."""
    scores, row = node.inputs
    negative = g.held(f"d {row} rows", node, g.record.sizes[scores])
    made = g.gradient(row, node)
    g.consume(negative)
    return [(scores, g.share(gradient)), (row, made)]


def _log_sum_exp(g: Graph, ops: Operands) -> None:
    """log Σ exp of each row of masked scores, and from it what scales the row's output (Granite with sinks)."""
    rows = _row(g, ops, "bytes", g.run.dtype_bytes)
    g.make("row sums", rows, ("scores masked",), ("scores masked", "row sums"), _log_sum_exp_rule)
    g.make("sink scale", _row(g, ops, "fp32_bytes", 4), ("row sums",), ("sink scale",))


def _log_sum_exp_rule(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """``logsumexp_backward``: grad · exp(scores − result), three tensors of the scores' size."""
    (tensor,) = node.inputs
    size = g.record.sizes[tensor]
    moments = [g.held(f"{node.out} {moment}", node, size) for moment in ("difference", "exponential")]
    made = g.gradient(tensor, node)
    g.consume(*moments)
    return [(tensor, made)]


def _scaled_by_sinks(g: Graph, ops: Operands) -> None:
    size = g.run.heads(ops.heads, ops.value_head_dim)
    inputs = ("attended", "sink scale")
    g.make("attended scaled", size, inputs, inputs, broadcast)
    g.free("attended", "sink scale", "row sums")
    g.rename("attended scaled", "attended")


def _row(g: Graph, ops: Operands, what: str, size_bytes: int) -> Size:
    """One number for each head and query."""
    return Size(batch=g.run.batch, heads=ops.heads, queries=g.run.sequence, **{what: size_bytes})


def _replace(g: Graph, old: str, new: str, size: Size, saves: tuple[str, ...] = (), rule: Rule | None = None) -> None:
    g.make(new, size, (old,), saves, rule)
    g.free(old)
