"""Sparse latent attention in llama.cpp's graphs (DeepSeek-V3.2, GLM-5): a scorer of keys alone picks the cells that are attended.

Source: llama.cpp ``src/models/deepseek32.cpp``, ``glm-dsa.cpp``, ``src/llama-graph.cpp`` (``build_attn`` over
``llm_graph_input_attn_k_dsa``), ``src/llama-kv-cache-dsa.cpp`` (0.5.0-dev, ggml 0.25.3), with the fused lightning indexer.
The order of statements is the order of nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.architecture.layers import Indexer, LatentAttention
from planner.engines.llama_cpp.graph import (
    F16,
    F32,
    INT32,
    INT64,
    Tensor,
    given,
    like,
    made,
    packed,
    product,
    reshape,
    stored,
    view,
    written,
)
from planner.engines.llama_cpp.sketch import ROTATED_HEADS, Sketch
from planner.formats import GGML_TYPES


@dataclass(slots=True)
class Scorer:
    """The inputs of the scorers' cache, shared by all layers: what masks it, where this batch's rows go, what rotates them."""

    mask: Tensor
    key_rows: Tensor
    rotation: Tensor


def scorer_of(sketch: Sketch, indexer: Indexer) -> Scorer:
    """The scorers' inputs, made for the first layer that asks."""
    found = sketch.scorer
    if not isinstance(found, Scorer):
        context, width = sketch.context, indexer.head_dim
        rotation = width & -width if width % ROTATED_HEADS == 0 else ROTATED_HEADS
        found = sketch.scorer = Scorer(
            mask=given(context.cells, context.tokens // context.streams, 1, context.streams, element_bytes=F16),
            key_rows=given(context.tokens, element_bytes=INT64),
            rotation=given(rotation, rotation, element_bytes=F32),
        )
    return found


def best_cells(sketch: Sketch, indexer: Indexer, x: Tensor, queries: Tensor) -> Tensor:
    """Numbers of the cells with the highest scores, (cells kept, tokens of a stream, 1, streams).

    ``queries``: the latent queries of the layer, (query rank, tokens).
    """
    scorer, context = scorer_of(sketch, indexer), sketch.context
    width, heads, tokens, streams = indexer.head_dim, indexer.num_heads, context.tokens, context.streams
    q = reshape(sketch.linear("wq_b", heads * width, queries), width, heads, tokens)
    q = like("rope", q, sketch.positions)
    k = like("norm", sketch.linear("indexer_k", width, x))
    k = like("add", like("mul", k, sketch.parameter(values=width)), sketch.parameter(values=width))
    k = like("rope", reshape(k, width, 1, tokens), sketch.positions)
    q, k = product(scorer.rotation, q), product(scorer.rotation, k)
    held = _held(sketch, indexer)
    flat = view(k, (width, tokens), (k.nb[2],))
    target = reshape(held, width, context.cells * streams) if streams > 1 else held
    sketch.graph.expand(written(target, flat, scorer.key_rows))
    weights = sketch.linear("weights_proj", heads, x)
    keys = view(_held(sketch, indexer), (width, 1, context.cells, streams))
    q = view(q, (width, heads, tokens // streams, streams), (q.nb[1], q.nb[2], q.nb[3] // streams))
    weights = view(
        weights, (heads, tokens // streams, 1, streams), (weights.nb[1], weights.nb[2] // streams, weights.nb[3] // streams)
    )
    scores = made("lightning_indexer", (context.cells, tokens // streams, 1, streams), q, keys, like("scale", weights), scorer.mask)
    kept = min(context.cells, indexer.top_k)
    return packed(made("top_k", (kept, *scores.ne[1:]), scores, element_bytes=INT32))


def masked_but(mask: Tensor, cells: Tensor) -> Tensor:
    """``mask``, and nothing but ``cells`` seen: a mask full of −∞ with zeros written where they are."""
    count, tokens, _, streams = mask.ne
    closed = like("fill", mask)
    closed = view(closed, (1, count, tokens, streams), (mask.nb[0], mask.nb[1], mask.nb[2]))
    chosen = view(cells, (cells.ne[0], tokens, streams), (cells.nb[1], cells.nb[2]))
    zeros = like("fill", Tensor("none", (1, cells.ne[0], tokens, streams), F32))
    opened = written(closed, zeros, chosen)
    return like("add", view(opened, mask.ne, (opened.nb[2], opened.nb[3], opened.nb[3])), mask)


def _held(sketch: Sketch, indexer: Indexer) -> Tensor:
    context, kind = sketch.context, GGML_TYPES[sketch.context.type_k]
    size = context.cells * context.streams * kind.row_bytes(indexer.head_dim)
    return stored((indexer.head_dim, context.cells, context.streams, 1), sketch.cache_device, kind.block_bytes, size)


def is_sparse_latent(mixer: object) -> bool:
    """Whether a mixer attends to cells that a scorer picked."""
    return isinstance(mixer, LatentAttention) and mixer.indexer is not None
