"""Layers of encoders, and of decoders that read an encoder's output, as transformers 5.23 writes them.

An encoder sees every token at once and keeps no cache. A decoder beside it begins with one token, and makes the keys and
values of the encoder's output in its first step: from then on they are its largest cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

from planner.architecture.layers import Architecture, Attention, DenseMLP, Layer, Weight
from planner.components.activations import activate, in_the_widest
from planner.components.attention import attention_forward
from planner.components.autocast import in_16_bit, is_wide, widened
from planner.components.biased import biased_attention, kernel_back, position_bias
from planner.components.graph import Graph
from planner.components.kernels import Operands, choose_kernel, fused
from planner.components.mlp import mlp_forward
from planner.components.norms import norm_forward
from planner.components.operators import add, linear, multiply
from planner.components.rules import passed_on, sliced
from planner.components.run import FP32_BYTES, Run
from planner.components.tape import Held, Size, Span

INDEX_BYTES = 8
ENCODED = "encoded"
"""What a decoder reads of the encoder."""
Block = Callable[[Graph, Layer], None]


def is_used_as_decoder(architecture: Architecture) -> bool:
    """Whether the layers of an encoder see earlier tokens alone (``is_decoder``): they keep a cache then."""
    first = architecture.decoder.layers[0].sequence[0]
    return architecture.kind == "encoder" and isinstance(first, Attention) and first.causal


def encoder_span(layer: Layer, run: Run, block: Block, kept: dict[str, Size] | None = None) -> Span:
    """One layer from ``x`` to its output, which takes its place. ``kept``: live tensors the layers share."""
    start = {"x": Held(run.hidden(), "workspace")}
    start |= {name: Held(size, "workspace") for name, size in (kept or {}).items()}
    g = Graph(run, start=start)
    block(g, layer)
    g.free("x")
    g.rename("y", "x")
    return g.span()


def bert_block(g: Graph, layer: Layer, *, drops_attention: bool = True, keeps_attention: bool = False) -> None:
    """Each mixer is added to its input, then normed (``BertLayer``, ``BartEncoderLayer``, ``BartDecoderLayer``).

    ``drops_attention``: its output passes a dropout too (not in ``distilbert``'s ``TransformerBlock``); ``keeps_attention``: a
    variable holds it to the end of the layer, and none what was added (``NomicBertLayer``).
    """
    stream, norms = "x", iter(layer.norms)
    for index, (name, forward) in enumerate(_branches(g, layer)):
        forward(stream, name)
        if keeps_attention and name == "attention":
            g.view("attention output", name)
        if drops_attention or name == "mlp":
            drop_out(g, layer, name)
        add(g, f"{name} sum", g.run.hidden(), name, stream)
        if keeps_attention:
            g.free(name)
        norm_forward(g, next(norms), f"{name} residual", f"{name} sum")
        g.free(f"{name} sum", *(() if keeps_attention else (name,)), *((stream,) if index else ()))
        stream = f"{name} residual"
    g.free("attention output")
    g.rename(stream, "y")


def bart_block(g: Graph, layer: Layer, *, drops_mlp: bool = True) -> None:
    """Norm before each mixer (``MBartEncoderLayer``, ``PegasusDecoderLayer``, ``EuroBertDecoderLayer``).

    ``drops_mlp``: the feed-forward block's output passes a dropout too (not in ``XLMRobertaXLOutput``).
    """
    stream, norms = "x", iter(layer.norms)
    for index, (name, forward) in enumerate(_branches(g, layer)):
        norm_forward(g, next(norms), f"{name} norm", stream)
        forward(f"{name} norm", name)
        g.free(f"{name} norm")
        if drops_mlp or name != "mlp":
            drop_out(g, layer, name)
        add(g, f"{name} residual", g.run.hidden(), stream, name)
        g.free(name, *((stream,) if index else ()))
        stream = f"{name} residual"
    g.rename(stream, "y")


def t5_block(g: Graph, layer: Layer) -> None:
    """Norm before each mixer; attention takes learnt positions (``T5Block``)."""
    stream, norms = "x", iter(layer.norms)
    for index, mixer in enumerate(layer.sequence):
        assert isinstance(mixer, Attention)  # noqa: S101  there is nothing else
        name = "cross attention" if mixer.kv == "cross" else "attention"
        norm_forward(g, next(norms), f"{name} norm", stream)
        across = mixer.kv == "cross"
        keys = source_tokens(g) if across else 0
        biased_attention(g, mixer, f"{name} norm", name, encoded=ENCODED if across else "", keys=keys)
        drop_out(g, layer, name)
        add(g, f"{name} residual", g.run.hidden(), stream, name)
        g.free(name, f"{name} norm", *((stream,) if index else ()))
        stream = f"{name} residual"
    norm_forward(g, next(norms), "mlp norm", stream)
    _t5_mlp(g, layer)
    g.free("mlp norm")
    drop_out(g, layer, "mlp")
    add(g, "y", g.run.hidden(), stream, "mlp")
    g.free("mlp", stream)


def _t5_mlp(g: Graph, layer: Layer) -> None:
    """down(drop(act(gate) · up)) or down(drop(act(up))) (``T5DenseGatedActDense``, ``T5DenseActDense``).

    Before the last linear the code casts to its weight's dtype, which autocast undoes.
    """
    with in_16_bit(g):
        _t5_mlp_forward(g, layer)


def _t5_mlp_forward(g: Graph, layer: Layer) -> None:
    run, channel = g.run, layer.channel[0]
    assert isinstance(channel, DenseMLP)  # noqa: S101  there are no experts
    wide, weights = run.mlp(channel.intermediate_size), [(weight,) for weight in channel.weights]
    linear(g, "gate", "mlp norm", wide, weights[0])
    activate(g, channel.activation, "gate", "activated", wide)
    g.free("gate")
    if channel.gated:
        linear(g, "up", "mlp norm", wide, weights[1])
        both = ("activated", "up")
        g.make("product", g.size_of("activated"), both, both, in_the_widest if is_wide(g.size_of("activated")) else None)
        g.free("activated", "up")
        g.rename("product", "activated")
    drop_out(g, layer, "activated")
    if run.autocast and not is_wide(g.size_of("activated")):
        g.make("activated fp32", widened(g.size_of("activated")), ("activated",))
        g.free("activated")
        g.rename("activated fp32", "activated")
    linear(g, "mlp", "activated", run.hidden(), weights[-1])
    g.free("activated")


def drop_out(g: Graph, layer: Layer, name: str) -> None:
    """A dropout in the place of its input; autograd keeps a mask of one byte an element."""
    if not layer.dropout or not g.saving:
        return
    size = g.size_of(name)
    g.make("dropped", size, (name,))
    g.hold(f"{name} mask", mask_of(size))
    g.save_for_last(f"{name} mask")
    g.free(f"{name} mask", name)
    g.rename("dropped", name)


def mask_of(size: Size) -> Size:
    """One byte for each element of a tensor."""
    factors = {name: cast("int", value) for name, value in size.values.items() if not name.endswith("bytes")}
    return Size(**factors, bool_bytes=1)


def source_tokens(g: Graph) -> int:
    """Tokens of the encoder's output that a decoder reads."""
    return cast("int", g.record.sizes[ENCODED].values["sequence"])


def _branches(g: Graph, layer: Layer) -> list[tuple[str, Callable[[str, str], None]]]:
    """The mixers of a layer in their order, by name."""
    found: list[tuple[str, Callable[[str, str], None]]] = []
    for mixer in layer.sequence:
        assert isinstance(mixer, Attention)  # noqa: S101  encoders have nothing else
        if mixer.kv == "cross":
            found.append(("cross attention", partial(_across, g, mixer)))
        else:
            found.append(("attention", partial(attention_forward, g, mixer)))
    channel = layer.channel[0]
    assert isinstance(channel, DenseMLP)  # noqa: S101
    return [*found, ("mlp", partial(mlp_forward, g, channel))]


def _across(g: Graph, mixer: Attention, source: str, target: str) -> None:
    """Attention to the encoder's output: keys and values are made of that."""
    with in_16_bit(g):
        _attend_across(g, mixer, source, target)


def _attend_across(g: Graph, mixer: Attention, source: str, target: str) -> None:
    run, tokens = g.run, source_tokens(g)
    weights: dict[str, tuple[Weight, ...]] = {}
    for weight in mixer.weights:
        module = weight.name.rpartition(".")[0].rpartition(".")[2]
        weights[module] = (*weights.get(module, ()), weight)
    rows = {"batch": run.batch, "sequence": tokens, "heads": mixer.num_heads, "bytes": run.dtype_bytes}
    linear(g, "cross q", source, run.heads(mixer.num_heads, mixer.head_dim), weights.get("q_proj", ()))
    for name, width in (("k", mixer.head_dim), ("v", mixer.value_head_dim)):
        linear(g, f"cross {name}", ENCODED, Size(**rows, head_dim=width), weights.get(f"{name}_proj", ()))
    operands = Operands(
        "cross q", "cross k", "cross v", mixer.num_heads, mixer.num_heads, mixer.head_dim, mixer.value_head_dim, tokens
    )
    if g.is_saved("log_sum_exp"):
        g.record.sizes["log_sum_exp"] = run.row(mixer.num_heads)
        g.rename("log_sum_exp", "own log_sum_exp")
    fused(g, choose_kernel(run, operands, grouped_natively=True), operands)
    linear(g, target, "attended", run.hidden(), weights.get("out_proj", ()))
    g.free("attended", "cross q", "cross k", "cross v")


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
    source = "x"
    if len(norms) > 1:
        source = "attention norm"
        norm_forward(g, norms.pop(0), source, "x")
    with in_16_bit(g):
        _modernbert_attention(g, attention, source)
    g.free("attended", "q", "k", "v", "q part", "k part", "qkv", "attention norm")
    add(g, "residual", run.hidden(), "x", "attention")
    norm_forward(g, norms[0], "mlp norm", "residual")
    mlp_forward(g, channel, "mlp norm", "mlp")
    g.free("mlp norm")
    add(g, "y", run.hidden(), "residual", "mlp")
    g.free("mlp", "residual", "attention")


def _modernbert_attention(g: Graph, attention: Attention, source: str) -> None:
    run = g.run
    heads = run.heads(attention.num_heads, attention.head_dim)
    qkv, output = linears_of(attention.weights)
    linear(g, "qkv", source, run.heads(3 * attention.num_heads, attention.head_dim), qkv)
    g.parts("qkv", dict.fromkeys(("q part", "k part", "v"), heads))
    for name in ("q", "k"):
        _rotated_wide(g, name, attention)
    for name in ("q", "k"):
        g.make(name, heads, (f"{name} wide",))
    g.free("q wide", "k wide")
    _attend(g, attention)
    linear(g, "attention", "attended", run.hidden(), output)


def _attend(g: Graph, attention: Attention) -> None:
    """The kernel: under a window a mask of numbers is made of the shared one in every layer."""
    run = g.run
    saves = ["q", "k", "v", "attended"]
    if attention.window_tokens is not None:
        g.hold("window", Size(batch=run.batch, queries=run.sequence, keys=run.sequence, bytes=run.dtype_bytes))
        saves.append("window")
    if attention.window_tokens is None or g.saving:
        g.hold("log_sum_exp", run.row(attention.num_heads))
        saves.append("log_sum_exp")
    g.make("attended", run.heads(attention.num_heads, attention.head_dim), ("q", "k", "v"), saves, kernel_back)
    g.free("window", "log_sum_exp")


def _rotated_wide(g: Graph, name: str, attention: Attention) -> None:
    """x · cos + rotate_half(x) · sin on an fp32 copy, made twice; leaves ``{name} wide``."""
    wide = g.run.heads(attention.num_heads, attention.head_dim, FP32_BYTES)
    half = g.run.heads(attention.num_heads, max(attention.head_dim // 2, 1), FP32_BYTES)
    g.make(f"{name} copy", wide, (f"{name} part",))
    multiply(g, f"{name} cos", wide, f"{name} copy")
    g.free(f"{name} copy")
    g.make(f"{name} second copy", wide, (f"{name} part",))
    g.view(f"{name} low", f"{name} second copy", sliced, half)
    g.view(f"{name} high", f"{name} second copy", sliced, half)
    g.make(f"{name} half", half, (f"{name} high",))
    g.make(f"{name} turned", wide, (f"{name} half", f"{name} low"), (), passed_on)
    g.free(f"{name} half", f"{name} low", f"{name} high", f"{name} second copy")
    multiply(g, f"{name} sin", wide, f"{name} turned")
    g.free(f"{name} turned")
    add(g, f"{name} wide", wide, f"{name} cos", f"{name} sin")
    g.free(f"{name} cos", f"{name} sin")


def linears_of(weights: Sequence[Weight]) -> list[tuple[Weight, ...]]:
    """Weights and biases of each linear, in their order."""
    modules: dict[str, tuple[Weight, ...]] = {}
    for weight in weights:
        module = weight.name.rpartition(".")[0]
        modules[module] = (*modules.get(module, ()), weight)
    return list(modules.values())


def rotary_tables(run: Run, layers: Sequence[Layer]) -> Size | None:
    """Cosines and sines, of each kind of layers that has its own: with a window and without; None without rotation."""
    attentions = [_mixers(layer)[0] for layer in layers]
    rotated = {attention.window_tokens is None: attention for attention in attentions if attention.rotary_dim}
    if not rotated:
        return None
    width = next(iter(rotated.values())).rotary_dim
    return Size(tables=2 * len(rotated), sequence=run.sequence, head_dim=width, bytes=run.dtype_bytes)


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
