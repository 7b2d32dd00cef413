"""DeepSeek-V4's layers as transformers 5.23 writes them, without autograd.

Several residual streams are collapsed into one in front of each mixer and mixed again behind it. One key head, whose keys are the
values too, sees a window and entries that stand for windows of older tokens; attention is computed eagerly, with sinks in fp32.
"""

from __future__ import annotations

from typing import cast

from planner.architecture.layers import Attention, Compression, Layer, MixtureOfExperts, Norm
from planner.components.cache import compressed_cache
from planner.components.graph import Graph
from planner.components.moe import moe_forward
from planner.components.norms import norm_forward
from planner.components.run import FP32_BYTES
from planner.components.tape import Size
from planner.modelled import NotModelled
from planner.symbolic.amount import smallest


def streams_of(layer: Layer) -> int:
    """How many residual streams run through a layer (``hc_mult``)."""
    mixing = next((weight for weight in layer.weights if weight.name.startswith("attn_hc.") and len(weight.shape) == 2), None)
    return mixing.shape[1] // layer.norms[0].width if mixing is not None else 1


def hyper_layer(g: Graph, layer: Layer) -> None:
    """``x`` to ``y``, all streams (``DeepseekV4DecoderLayer``); what attention weighed lives to the end."""
    if g.saving or not g.run.cached:
        raise NotModelled("training of layers with several residual streams has no closed form yet")
    attention, experts = cast("Attention", layer.sequence[0]), cast("MixtureOfExperts", layer.channel[0])
    _collapse(g, "attention in")
    norm_forward(g, layer.norms[0], "attention norm", "attention in")
    _attention(g, attention, "attention norm", "attention")
    g.free("attention norm")
    _spread(g, "streams")
    _collapse(g, "mlp in")
    g.free("attention in")
    norm_forward(g, layer.norms[1], "mlp norm", "mlp in")
    moe_forward(g, experts, "mlp norm", "mlp")
    g.free("mlp norm")
    _spread(g, "y")
    g.free("streams", "mlp in", "attention", "weights of attention", "mlp")


def _collapse(g: Graph, name: str) -> None:
    """All streams weighed into one (``DeepseekV4HyperConnection``): weights from an fp32 copy that is normed, then the sum."""
    run = g.run
    wide = run.heads(run.streams, run.hidden_size, FP32_BYTES)
    g.hold("streams fp32", wide)
    g.hold("square", wide)
    g.free("square")
    g.hold("streams normed", wide)
    g.free("streams fp32", "streams normed")
    g.hold("streams weighed", wide)
    g.hold("sum fp32", run.upcast(run.hidden_size))
    g.free("streams weighed")
    g.hold(name, run.hidden())
    g.free("sum fp32")


def _spread(g: Graph, name: str) -> None:
    """The mixer's output on every stream, and the streams mixed."""
    for part in ("spread", "mixed", name):
        g.hold(part, g.run.stream())
    g.free("spread", "mixed")


def _attention(g: Graph, mixer: Attention, source: str, target: str) -> None:  # noqa: ARG001  it stays
    """``DeepseekV4Attention``: queries through a low rank, one key, entries of older tokens, grouped output projection."""
    run, heads, width = g.run, mixer.num_heads, mixer.head_dim
    shapes = {weight.name.split(".")[-2]: weight.shape for weight in mixer.weights if len(weight.shape) == 2}
    rank, groups_width = shapes["q_a_proj"][0], shapes["o_a_proj"][0]
    g.hold("q low", run.rows(rank))
    norm_forward(g, Norm("q_a_norm", rank, "rms", ()), "q residual", "q low")
    g.free("q low")
    _queries(g, mixer)
    g.hold("k part", run.rows(width))
    norm_forward(g, Norm("kv_norm", width, "rms", ()), "k", "k part")
    g.free("k part")
    _rotate(g, "k", 1, mixer)
    cells = run.past_cells(mixer) + run.sequence
    g.relabel("k past", "workspace")
    g.hold("k cached", run.cache(mixer, "k", cells), "kv_cache")
    g.consume("k past")
    if mixer.compression is None:
        g.relabel("v past", "workspace")
        g.hold("v cached", run.cache(mixer, "v", cells), "kv_cache")
        g.consume("v past")
    g.free("k rotated")
    entries = _compress(g, mixer, mixer.compression) if mixer.compression is not None else 0
    _attend(g, mixer, cells + entries, joined=mixer.compression is not None)
    _rotate(g, "attended", heads, mixer)
    g.hold("grouped", run.heads(heads, width))
    g.hold("by group", run.rows(groups_width))
    g.hold("groups joined", run.rows(groups_width))
    g.free("by group", "grouped")
    g.hold(target, run.hidden())
    g.free("keys joined", "mask joined", "block bias", "q residual", "q rotated", "attended rotated", "groups joined")


def _queries(g: Graph, mixer: Attention) -> None:
    """Normed without a weight, head by head, and rotated in part."""
    every, wide = g.run.heads(mixer.num_heads, mixer.head_dim), g.run.heads(mixer.num_heads, mixer.head_dim, FP32_BYTES)
    g.hold("q projected", every)
    g.hold("q fp32", wide)
    g.hold("q square", wide)
    g.free("q fp32", "q square")
    g.hold("q", every)
    g.free("q projected")
    _rotate(g, "q", mixer.num_heads, mixer)


def _rotate(g: Graph, name: str, heads: int, mixer: Attention, width: int = 0) -> None:
    """The last part of each head in fp32, cast back and joined with the rest: ``{name} rotated`` takes the place of ``name``."""
    run, part = g.run, mixer.rotary_dim
    wide, narrow = run.heads(heads, part, FP32_BYTES), run.heads(heads, part)
    g.hold("part fp32", wide)
    g.hold("cos", wide)
    g.free("part fp32")
    g.hold("turned", narrow)
    g.hold("turned fp32", wide)
    g.free("turned")
    g.hold("sin", wide)
    g.free("turned fp32")
    g.hold("sum", wide)
    g.free("cos", "sin")
    g.hold("part", narrow)
    g.free("sum")
    g.hold(f"{name} rotated", run.heads(heads, width or mixer.head_dim))
    g.free("part", name)


def _attend(g: Graph, mixer: Attention, keys: int, *, joined: bool) -> None:
    """Scores, mask, sinks beside them in fp32, softmax, values; the cast weights are returned."""
    run, heads = g.run, mixer.num_heads
    rows = {"batch": run.batch, "keys": keys, "bytes": run.dtype_bytes}
    if joined:
        g.hold("keys joined", Size(**rows, head_dim=mixer.head_dim))
        g.hold("mask joined", Size(**rows, queries=run.sequence))
    scores, beside = run.scores(heads, keys), run.scores(heads, keys + 1, FP32_BYTES)
    every = Size(**rows, heads=heads, head_dim=mixer.head_dim)
    g.hold("keys by head", every)
    g.hold("scores", scores)
    g.free("keys by head")
    for name, before in (("scores scaled", "scores"), ("scores masked", "scores scaled")):
        g.hold(name, scores)
        g.free(before)
    for name, before in (("scores and sinks", ""), ("scores without largest", "scores and sinks")):
        g.hold(name, beside)
        g.free(before)
    g.hold("probabilities", beside)
    g.hold("weights of attention", scores)
    g.free("scores masked")
    g.hold("keys by head", every)
    g.hold("attended by head", run.heads(heads, mixer.head_dim))
    g.free("keys by head")
    g.hold("attended", run.heads(heads, mixer.head_dim))
    g.free("attended by head", "scores without largest", "probabilities")


def _compress(g: Graph, mixer: Attention, compression: Compression) -> int:
    """Entries of finished windows; the cache keeps them and what waits for the next window. Returns how many entries there are."""
    run, past = g.run, g.run.past_tokens
    entries = (past + run.sequence) // compression.rate_tokens
    g.relabel("compressed past", "workspace")
    g.hold("compressed cached", compressed_cache(mixer, run, past + run.sequence, whole=not past), "kv_cache")
    g.consume("compressed past")
    _windows(g, compression, mixer.head_dim)
    if compression.indexer is not None:
        _index(g, mixer, compression, entries)
    g.free("gates", "windows", "gates of windows")
    if run.sequence > 1:
        g.hold("block bias", Size(batch=run.batch, queries=run.sequence, entries=entries, bytes=run.dtype_bytes))
    return entries


def _windows(g: Graph, compression: Compression, width: int) -> None:
    """Gates in fp32, softmax over each window, the weighed sum; two series are laid out side by side."""
    run, finished = g.run, g.run.sequence // compression.rate_tokens
    tokens = finished * compression.rate_tokens
    rows = {"batch": run.batch, "tokens": tokens, "features": compression.series * width}
    wide, narrow = Size(**rows, fp32_bytes=4), Size(**rows, bytes=run.dtype_bytes)
    g.hold("gates", wide)
    if compression.series > 1:
        g.hold("windows", narrow)
        g.hold("gates of windows", wide)
    g.hold("shares", wide)
    g.hold("shares cast", narrow)
    g.free("shares")
    g.hold("weighed", narrow)
    g.free("shares cast", "weighed")


def _index(g: Graph, mixer: Attention, compression: Compression, entries: int) -> None:
    """Small heads score every entry for every query in fp32; the product lays the entries out for each query."""
    run, indexer = g.run, compression.indexer
    assert indexer is not None  # noqa: S101  the caller has looked
    heads, width = indexer.num_heads, indexer.head_dim
    g.hold("index q", run.heads(heads, width))
    _rotate(g, "index q", heads, mixer, width)
    wide = run.heads(heads, width, FP32_BYTES)
    scores = Size(batch=run.batch, queries=run.sequence, heads=heads, entries=entries, fp32_bytes=4)
    g.hold("index q fp32", wide)
    g.hold("index q laid out", wide)
    g.hold("index k laid out", Size(batch=run.batch, queries=run.sequence, head_dim=width, entries=entries, fp32_bytes=4))
    g.hold("index scores", scores)
    g.free("index k laid out", "index q laid out", "index q fp32")
    g.hold("index positive", scores)
    g.hold("index scaled", scores)
    g.free("index positive", "index scores")
    g.hold("index weighed", scores)
    g.free("index weighed", "index scaled")
    chosen = Size(batch=run.batch, queries=run.sequence, top_k=smallest(indexer.top_k, entries), int64_bytes=8)
    for name in ("index places", "index invalid", "index chosen"):
        g.hold(name, chosen)
    g.free("index places", "index invalid", "index chosen", "index q rotated")
