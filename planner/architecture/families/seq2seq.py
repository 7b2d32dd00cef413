"""Encoder–decoders: T5, BART and their kin, Whisper."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from planner.architecture.blocks import (
    QKVO,
    attention,
    convolution,
    embedding,
    layer_norm,
    linear,
    mlp,
    rms_norm,
)
from planner.architecture.config import MAX_LAYERS, MAX_TOKENS, MAX_VOCABULARY, Config, UnknownArchitecture, dtype_of
from planner.architecture.families.registry import family
from planner.architecture.layers import Architecture, Attention, DenseMLP, Layer, Norm, Stack, Weight


def encoder_decoder(
    config: Config,
    *,
    embeddings: tuple[Weight, ...],
    encoder: Stack,
    decoder: Stack,
    head: tuple[Weight, ...] = (),
    norm: Norm | None = None,
    tied: bool = True,
    context: int | None = None,
) -> Architecture:
    """A model whose decoder reads an encoder's output."""
    return Architecture(
        model_type=config.text("model_type"),
        model_class=config.defaults.model_class,
        kind="encoder-decoder",
        hidden_size=decoder.hidden_size,
        vocab_size=config.size("vocab_size", maximum=MAX_VOCABULARY),
        max_context_tokens=context,
        dtype=dtype_of(config),
        tied_head=tied,
        embeddings=embeddings,
        head=head,
        final_norm=norm,
        decoder=decoder,
        towers=(encoder,),
    )


@family("t5", "mt5", "umt5")
def t5(config: Config) -> Architecture:
    """T5: RMSNorm, relative positions learned in the first layer (UMT5: in every layer), a head tied in transformers 5."""
    if config.defaults.model_class.endswith(("EncoderModel", "Classification", "Answering")):
        raise UnknownArchitecture(f"{config.defaults.model_class} is not read; the encoder–decoder is")
    hidden = config.size("hidden_size")
    vocabulary = config.size("vocab_size", maximum=MAX_VOCABULARY)
    layers = config.size("num_hidden_layers", maximum=MAX_LAYERS)
    decoder_layers = config.optional("num_decoder_layers", maximum=MAX_LAYERS) or layers
    encoder = Stack(
        "encoder.block",
        "encoder",
        hidden,
        t5_layers(config, layers, cross=False),
        rms_norm("encoder.final_layer_norm", hidden).weights,
    )
    decoder = Stack("decoder.block", "decoder", hidden, t5_layers(config, decoder_layers, cross=True))
    return encoder_decoder(
        config,
        embeddings=(embedding("shared", vocabulary, hidden),),
        encoder=encoder,
        decoder=decoder,
        norm=rms_norm("decoder.final_layer_norm", hidden),
    )


def t5_layers(config: Config, count: int, *, cross: bool) -> tuple[Layer, ...]:
    """The layers of one of T5's stacks."""
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    everywhere = config.text("model_type") == "umt5"
    activation = config.text("feed_forward_proj", default="relu")
    gated = activation.startswith("gated")
    last = 2 if cross else 1

    def mixer(place: int, name: str, *, positions: bool) -> Attention:
        at = f"layer.{place}.{name}"
        table = embedding(f"{at}.relative_attention_bias", config.size("relative_attention_num_buckets"), heads)
        return attention(
            config,
            path=at,
            names=("q", "k", "v", "o"),
            heads=heads,
            kv_heads=heads,
            head_dim=config.size("head_dim"),
            kv="cross" if place == 1 else "own",
            causal=cross,
            rotary=False,
            extra=(replace(table, role="other"),) if positions else (),
        )

    channel = mlp(
        config,
        config.size("d_ff"),
        gated=gated,
        path=f"layer.{last}.DenseReluDense",
        names=("wi_0", "wi_1", "wo") if gated else ("wi", "wo"),
    )
    # transformers takes the polynomial for "gated-gelu" (T5Config.__post_init__)
    channel = replace(channel, activation="gelu_new" if activation == "gated-gelu" else activation.removeprefix("gated-"))

    def layer(*, positions: bool) -> Layer:
        mixers = [mixer(0, "SelfAttention", positions=positions)]
        if cross:
            mixers.append(mixer(1, "EncDecAttention", positions=False))
        norms = tuple(rms_norm(f"layer.{place}.layer_norm", hidden) for place in range(last + 1))
        return Layer(tuple(mixers), (channel,), norms, dropout=config.number("dropout_rate", default=0.1) > 0)

    first = layer(positions=True)
    return (first,) + ((first if everywhere else layer(positions=False)),) * (count - 1)


def bart_layer(config: Config, side: str, *, silent_keys: bool = False) -> Layer:
    """One layer of BART's encoder or decoder. ``silent_keys``: keys have no bias (Whisper)."""
    hidden, heads = config.size("d_model"), config.size(f"{side}_attention_heads")
    crossed = side == "decoder"
    config.require(hidden % heads == 0, f"{side}_attention_heads", f"must divide d_model ({hidden}), got {heads}")

    def mixer(path: str, *, cross: bool) -> Attention:
        found = attention(
            config,
            path=path,
            names=(*QKVO[:3], "out_proj"),
            heads=heads,
            kv_heads=heads,
            head_dim=max(hidden // heads, 1),
            hidden=hidden,
            qkv_bias=True,
            output_bias=True,
            rotary=False,
            causal=crossed,
            kv="cross" if cross else "own",
        )
        kept = tuple(weight for weight in found.weights if not (silent_keys and weight.name.endswith("k_proj.bias")))
        return replace(found, weights=kept)

    channel: DenseMLP = mlp(
        config, config.size(f"{side}_ffn_dim"), gated=False, bias=True, path="", names=("fc1", "fc2"), hidden=hidden
    )
    names = ["self_attn_layer_norm", "final_layer_norm"]
    mixers = [mixer("self_attn", cross=False)]
    if crossed:
        mixers.append(mixer("encoder_attn", cross=True))
        names.insert(1, "encoder_attn_layer_norm")
    dropout = config.number("dropout", default=0.1) > 0
    return Layer(tuple(mixers), (channel,), tuple(layer_norm(name, hidden) for name in names), dropout=dropout)


def bart_stack(config: Config, side: str, weights: tuple[Weight, ...], *, silent_keys: bool = False) -> Stack:
    """BART's encoder or decoder with its positions and norms."""
    layer = bart_layer(config, side, silent_keys=silent_keys)
    count = config.size(f"{side}_layers", minimum=0, maximum=MAX_LAYERS)
    kind: Literal["decoder", "encoder"] = "decoder" if side == "decoder" else "encoder"
    return Stack(f"{config.base}{side}.layers", kind, config.size("d_model"), (layer,) * count, weights)


def only_generation(config: Config) -> None:
    """Refuse classes these readers do not build."""
    if config.defaults.model_class.endswith(("ForCausalLM", "Classification", "Answering")):
        raise UnknownArchitecture(f"{config.defaults.model_class} is not read; the encoder–decoder is")


@family("bart", "mbart", "pegasus", "blenderbot", "blenderbot-small", "plbart", "m2m_100", "marian")
def bart(config: Config) -> Architecture:
    """BART and its kin: they differ in their positions and in norms over the embeddings and after the layers."""
    only_generation(config)
    kind, hidden = config.text("model_type"), config.size("d_model")
    vocabulary = config.size("vocab_size", maximum=MAX_VOCABULARY)
    rows = config.size("max_position_embeddings", maximum=MAX_TOKENS)
    offset = 2 if kind in ("bart", "mbart", "plbart") else 0
    stacks = {}
    for side in ("encoder", "decoder"):
        at = f"{config.base}{side}"
        weights: tuple[Weight, ...] = ()
        if kind == "m2m_100":
            weights = (Weight(f"{at}.embed_positions.weights", (rows + 2, hidden), "other", is_buffer=True),)
        else:
            table = embedding(f"{at}.embed_positions", rows + offset, hidden)
            weights = (replace(table, fixed=kind in ("pegasus", "marian")),)
        if kind in ("bart", "mbart", "plbart", "blenderbot-small"):
            weights += layer_norm(f"{at}.layernorm_embedding", hidden).weights
        if kind in ("mbart", "pegasus", "blenderbot", "m2m_100"):
            weights += layer_norm(f"{at}.layer_norm", hidden).weights
        stacks[side] = bart_stack(config, side, weights)
    tied = config.flag("tie_word_embeddings")
    head: tuple[Weight, ...] = ()
    if config.head and kind != "m2m_100":
        head = (Weight("final_logits_bias", (1, vocabulary), "bias", is_buffer=True),)
    if not tied or config.get("share_encoder_decoder_embeddings") is False:
        raise UnknownArchitecture("an encoder–decoder whose embeddings are not shared is not read")
    return encoder_decoder(
        config,
        embeddings=(embedding(f"{config.base}shared", vocabulary, hidden),),
        encoder=stacks["encoder"],
        decoder=stacks["decoder"],
        head=head,
        context=rows,
    )


@family("whisper")
def whisper(config: Config) -> Architecture:
    """Whisper: two convolutions over the spectrogram, learned positions, keys without bias."""
    only_generation(config)
    hidden, vocabulary = config.size("d_model"), config.size("vocab_size", maximum=MAX_VOCABULARY)
    source, target = (config.size(name, maximum=MAX_TOKENS) for name in ("max_source_positions", "max_target_positions"))
    at = f"{config.base}encoder"
    front = (
        *convolution(f"{at}.conv1", hidden, config.size("num_mel_bins"), 3, bias=True),
        *convolution(f"{at}.conv2", hidden, hidden, 3, bias=True),
        embedding(f"{at}.embed_positions", source, hidden),
        *layer_norm(f"{at}.layer_norm", hidden).weights,
    )
    at = f"{config.base}decoder"
    tied = config.flag("tie_word_embeddings", default=True)
    return encoder_decoder(
        config,
        embeddings=(embedding(f"{at}.embed_tokens", vocabulary, hidden), embedding(f"{at}.embed_positions", target, hidden)),
        encoder=replace(bart_stack(config, "encoder", front, silent_keys=True), kind="audio"),
        decoder=bart_stack(config, "decoder", (), silent_keys=True),
        norm=layer_norm(f"{at}.layer_norm", hidden),
        head=() if tied or not config.head else linear("proj_out", vocabulary, hidden, role="head"),
        tied=tied,
        context=target,
    )
