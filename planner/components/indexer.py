"""The indexer of sparse attention: scores every cached token by a few small heads and lets the best through the mask.

As transformers 5.23 writes it for DeepSeek-V3.2 and GLM-5: scores of all pairs in fp32, then a boolean mask.
"""

from __future__ import annotations

from planner.architecture.layers import LatentAttention
from planner.components.graph import Graph
from planner.components.rotary import Rotated, rotate
from planner.components.run import FP32_BYTES
from planner.components.tape import Size
from planner.symbolic.amount import smallest


def index_forward(g: Graph, mixer: LatentAttention, keys: int) -> None:
    """From the compressed query to ``mask chosen``, the boolean mask of this layer. No gradient passes (``torch.no_grad``)."""
    indexer, run = mixer.indexer, g.run
    assert indexer is not None  # noqa: S101  the caller has looked
    heads, width = indexer.num_heads, indexer.head_dim
    g.hold("index q", run.heads(heads, width))
    rotate(g, run.code.indexer_rotary, [Rotated("index q part", heads, mixer.qk_rope_head_dim, mixer.qk_rope_head_dim)])
    g.hold("index q joined", run.heads(heads, width))
    g.relabel("index past", "workspace")
    keeper = "kv_cache" if run.cached else "workspace"
    g.hold("index cached", Size(batch=run.batch, tokens=keys, features=width, bytes=run.dtype_bytes), keeper)
    g.consume("index past")
    _scores(g, heads, width, keys)
    _choose(g, smallest(indexer.top_k, keys), keys)


def _scores(g: Graph, heads: int, width: int, keys: int) -> None:
    """relu(q · kᵀ · scale) for each indexer head.

    ``torch.matmul`` expands the keys over the queries; it can fold both into one batch without a copy for one
    sequence or one query only.
    """
    run = g.run
    scores = Size(batch=run.batch, queries=run.sequence, heads=heads, keys=keys, fp32_bytes=4)
    g.hold("index q fp32", run.heads(heads, width, FP32_BYTES))
    copies = run.batch != 1 and run.sequence != 1
    g.hold("index k fp32", Size(batch=run.batch, head_dim=width, keys=keys, fp32_bytes=4))
    if copies:
        g.hold("index k expanded", Size(batch=run.batch, queries=run.sequence, head_dim=width, keys=keys, fp32_bytes=4))
    g.hold("index scores", scores)
    if copies:
        g.free("index k expanded")
    g.free("index k fp32", "index q fp32")
    for new, old in (("index scaled", "index scores"), ("index positive", "index scaled")):
        g.hold(new, scores)
        g.free(old)


def _choose(g: Graph, top_k: int, keys: int) -> None:
    """The heads' weighted sum, the mask, the best tokens, and a mask that lets them alone through."""
    run = g.run
    pairs = {"batch": run.batch, "queries": run.sequence, "keys": keys}
    chosen = {"batch": run.batch, "queries": run.sequence, "top_k": top_k}
    boolean = Size(**pairs, bool_bytes=1)
    g.hold("index sum", Size(**pairs, fp32_bytes=4))
    g.hold("index future", boolean)
    g.hold("index masked", Size(**pairs, fp32_bytes=4))
    g.free("index future", "index sum")
    g.hold("index values", Size(**chosen, fp32_bytes=4))
    g.hold("index places", Size(**chosen, int64_bytes=8))
    g.free("index values")
    g.hold("index chosen", Size(**chosen, int32_bytes=4))
    g.free(
        "index places",
        *(() if run.cached else ("index cached",)),
        "index q joined",
        "index q part rotated",
        "index q",
        "index positive",
        "index masked",
    )
    g.hold("mask ones", boolean)
    g.hold("index chosen int64", Size(**chosen, int64_bytes=8))
    g.hold("mask scattered", boolean)
    g.free("mask ones", "index chosen int64")
    g.hold("mask allowed", boolean)
    g.hold("mask chosen", boolean)
    g.free("mask allowed")
