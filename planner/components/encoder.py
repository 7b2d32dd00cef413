"""Layers of encoders, and of decoders that read an encoder's output, as transformers 5.23 writes them, without autograd.

An encoder sees every token at once and keeps no cache. A decoder beside it begins with one token, and makes the keys and
values of the encoder's output in its first step: from then on they are its largest cache.
"""

from __future__ import annotations

from collections.abc import Callable

from planner.architecture.layers import Attention, DenseMLP, Layer
from planner.components.activations import activate
from planner.components.attention import attention_forward
from planner.components.graph import Graph, add
from planner.components.mlp import mlp_forward
from planner.components.norms import norm_forward
from planner.components.run import FP32_BYTES, Run
from planner.components.tape import Held, Size, Span

INDEX_BYTES = 8
Block = Callable[[Graph, Layer], None]


def encoder_span(layer: Layer, run: Run, block: Block, kept: dict[str, Size] | None = None) -> Span:
    """One layer from ``x`` to its output, which takes its place. ``kept``: live tensors the layers share."""
    start = {"x": Held(run.hidden(), "workspace")}
    start |= {name: Held(size, "workspace") for name, size in (kept or {}).items()}
    g = Graph(run, start=start)
    block(g, layer)
    g.free("x")
    g.rename("y", "x")
    return g.span()


def bert_block(g: Graph, layer: Layer) -> None:
    """Each mixer is added to its input, then normed (``BertLayer``)."""
    run, (attention, channel) = g.run, _mixers(layer)
    attention_forward(g, attention, "x", "attention")
    add(g, "sum", run.hidden(), "attention", "x")
    norm_forward(g, layer.norms[0], "residual", "sum")
    g.free("sum", "attention")
    mlp_forward(g, channel, "residual", "mlp")
    add(g, "sum", run.hidden(), "mlp", "residual")
    norm_forward(g, layer.norms[1], "y", "sum")
    g.free("sum", "mlp", "residual")


def t5_block(g: Graph, layer: Layer) -> None:
    """Norm before each mixer; attention takes learnt positions as a mask of numbers, copied anew in every layer (``T5Block``)."""
    run, (attention, channel) = g.run, _mixers(layer)
    norm_forward(g, layer.norms[0], "attention norm", "x")
    heads = run.heads(attention.num_heads, attention.head_dim)
    for name in ("q", "k", "v"):
        g.hold(name, heads)
    g.hold("positions for the kernel", position_bias(run, attention))
    g.hold("attended", heads)
    g.free("positions for the kernel")
    g.hold("attention", run.hidden())
    g.free("attended", "q", "k", "v")
    add(g, "residual", run.hidden(), "x", "attention")
    g.free("attention", "attention norm")
    norm_forward(g, layer.norms[1], "mlp norm", "residual")
    mlp_forward(g, channel, "mlp norm", "mlp")
    g.free("mlp norm")
    add(g, "y", run.hidden(), "residual", "mlp")
    g.free("mlp", "residual")


def whisper_block(g: Graph, layer: Layer) -> None:
    """Norm before each mixer; queries, keys and values are laid out head by head (``WhisperEncoderLayer``)."""
    run, (attention, channel) = g.run, _mixers(layer)
    norm_forward(g, layer.norms[0], "attention norm", "x")
    heads = run.heads(attention.num_heads, attention.head_dim)
    g.hold("q", heads)
    g.hold("q scaled", heads)
    g.free("q")
    g.hold("q by head", heads)
    g.free("q scaled")
    for name in ("k", "v"):
        g.hold(name, heads)
        g.hold(f"{name} by head", heads)
        g.free(name)
    g.hold("attended", heads)
    g.hold("log_sum_exp", run.row(attention.num_heads))
    g.free("log_sum_exp")
    g.hold("attended by token", heads)
    g.free("attended")
    g.hold("attention", run.hidden())
    g.free("attended by token", "q by head", "k by head", "v by head", "attention norm")
    add(g, "residual", run.hidden(), "x", "attention")
    g.free("attention")
    norm_forward(g, layer.norms[1], "mlp norm", "residual")
    wide = run.mlp(channel.intermediate_size)
    g.hold("up", wide)
    activate(g, channel.activation, "up", "activated", wide)
    g.free("up", "mlp norm")
    g.hold("mlp", run.hidden())
    g.free("activated")
    add(g, "y", run.hidden(), "residual", "mlp")
    g.free("mlp", "residual")


def modernbert_block(g: Graph, layer: Layer) -> None:
    """Norm before each mixer, none before the first attention; rotation in fp32; windows by a mask (``ModernBertEncoderLayer``).

    The attention's output lives to the end of the layer.
    """
    run, (attention, channel), norms = g.run, _mixers(layer), list(layer.norms)
    if len(norms) > 1:
        norm_forward(g, norms.pop(0), "attention norm", "x")
    heads = run.heads(attention.num_heads, attention.head_dim)
    g.hold("qkv", run.heads(3 * attention.num_heads, attention.head_dim))
    for name in ("q", "k"):
        _rotated_wide(g, name, attention)
    for name in ("q", "k"):
        g.hold(name, heads)
    g.free("q wide", "k wide")
    if attention.window_tokens is not None:
        g.hold("window", Size(batch=run.batch, queries=run.sequence, keys=run.sequence, bytes=run.dtype_bytes))
    else:
        g.hold("log_sum_exp", run.row(attention.num_heads))
    g.hold("attended", heads)
    g.free("window", "log_sum_exp")
    g.hold("attention", run.hidden())
    g.free("attended", "q", "k", "qkv", "attention norm")
    add(g, "residual", run.hidden(), "x", "attention")
    norm_forward(g, norms[0], "mlp norm", "residual")
    mlp_forward(g, channel, "mlp norm", "mlp")
    g.free("mlp norm")
    add(g, "y", run.hidden(), "residual", "mlp")
    g.free("mlp", "residual", "attention")


def _rotated_wide(g: Graph, name: str, attention: Attention) -> None:
    """x · cos + rotate_half(x) · sin on an fp32 copy, made twice; leaves ``{name} wide``."""
    wide = g.run.heads(attention.num_heads, attention.head_dim, FP32_BYTES)
    g.hold("copy", wide)
    g.hold("cos", wide)
    g.free("copy")
    g.hold("copy", wide)
    g.hold("half", g.run.heads(attention.num_heads, max(attention.head_dim // 2, 1), FP32_BYTES))
    g.hold("turned", wide)
    g.free("half", "copy")
    g.hold("sin", wide)
    g.free("turned")
    g.hold(f"{name} wide", wide)
    g.free("cos", "sin")


def window_mask(run: Run) -> Span:
    """The boolean mask that all windowed layers share, made from the distances of all pairs."""
    pairs = {"queries": run.sequence, "keys": run.sequence}
    g = Graph(run)
    for name in ("differences", "distances"):
        g.hold(name, Size(**pairs, int64_bytes=INDEX_BYTES))
    g.free("differences")
    for name in ("within", "within and seen", "mask"):
        g.hold(name, Size(**pairs, bool_bytes=1))
        g.free("distances")
    g.free("within", "within and seen")
    return g.span()


def position_bias(run: Run, attention: Attention) -> Size:
    """One number for each head and pair of tokens, the same for every sequence of the batch."""
    return Size(heads=attention.num_heads, queries=run.sequence, keys=run.sequence, bytes=run.dtype_bytes)


def relative_positions(run: Run, layer: Layer) -> Span:
    """The first layer looks its positions up: distances of all pairs in buckets, near ones each, far ones by logarithm.

    ``T5Attention.compute_bias`` and ``_relative_position_bucket`` work on int64 tensors of sequence · sequence. It is the
    first layer that holds them, beside its norm and projections.
    """
    attention = _mixers(layer)[0]
    pairs = {"queries": run.sequence, "keys": run.sequence}
    index, number = Size(**pairs, int64_bytes=INDEX_BYTES), Size(**pairs, fp32_bytes=4)
    g = Graph(run, start={"x": Held(run.hidden(), "workspace")})
    g.hold("attention norm", run.hidden())
    for name in ("q", "k", "v"):
        g.hold(name, run.heads(attention.num_heads, attention.head_dim))
    for name in ("relative positions", "buckets", "distances"):
        g.hold(name, index)
    g.hold("near", Size(**pairs, bool_bytes=1))
    for name in ("log distances", "scaled"):
        g.hold(name, number)
    g.free("log distances")
    for name in ("far", "far buckets"):
        g.hold(name, index)
        g.free("scaled")
    g.free("far")
    for name in ("last bucket", "far limited"):
        g.hold(name, index)
    g.free("last bucket", "far buckets")
    g.hold("chosen", index)
    g.free("chosen", "distances", "far limited", "near")
    g.hold("position bias", position_bias(run, attention))
    g.free("relative positions", "buckets", "attention norm", "q", "k", "v")
    return g.span()


def first_step(layer: Layer, run: Run, source_tokens: int, *, by_head: bool) -> Span:
    """A decoder layer's first token: keys and values of the encoder's output are made and copied into the cache.

    ``by_head``: they are laid out head by head before that (Whisper). The token's own tensors are left out: one token each.
    """
    g = Graph(run)
    crossed = [mixer for mixer in layer.sequence if isinstance(mixer, Attention) and mixer.kv == "cross"]
    for mixer in crossed:
        sizes = cross_cache(run, mixer, source_tokens)
        for name, size in sizes.items():
            g.hold(f"{name} made", size)
            if by_head:
                g.hold(f"{name} by head", size)
                g.free(f"{name} made")
        for name, size in sizes.items():
            g.hold(name, size, "kv_cache")
        g.free(*(f"{name} {part}" for name in sizes for part in ("made", "by head")))
    return g.span()


def cross_cache(run: Run, mixer: Attention, source_tokens: int) -> dict[str, Size]:
    """Cached keys and values of the encoder's output."""
    rows = {"batch": run.batch, "source_tokens": source_tokens, "heads": mixer.num_kv_heads, "bytes": run.dtype_bytes}
    return {"cross keys": Size(**rows, head_dim=mixer.head_dim), "cross values": Size(**rows, head_dim=mixer.value_head_dim)}


def own_cache(run: Run, mixer: Attention, tokens: int) -> dict[str, Size]:
    """Cached keys and values of the decoder's own tokens."""
    return {f"{name} cached": run.cache(mixer, name, tokens) for name in ("k", "v")}


def _mixers(layer: Layer) -> tuple[Attention, DenseMLP]:
    attention, channel = layer.sequence[0], layer.channel[0]
    assert isinstance(attention, Attention)  # noqa: S101  encoders have nothing else
    assert isinstance(channel, DenseMLP)  # noqa: S101
    return attention, channel
