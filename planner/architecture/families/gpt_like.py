"""The decoders before Llama: GPT-2 and its kin, with learned, rotary or ALiBi positions and LayerNorm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from planner.architecture.blocks import (
    QKVO,
    attention,
    bare_layer_norm,
    biasless_layer_norm,
    block,
    decoder,
    embedding,
    layer_norm,
    linear,
    mlp,
    num_layers,
    with_head,
)
from planner.architecture.config import MAX_TOKENS, Config, UnknownArchitecture
from planner.architecture.families.registry import family
from planner.architecture.layers import Architecture, Attention, Layer, Weight


def head_dim_of(config: Config) -> tuple[int, int, int]:
    """Hidden size, heads, and the width of a head these models derive from them."""
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    config.require(hidden % heads == 0, "num_attention_heads", f"must divide hidden_size ({hidden}), got {heads}")
    return hidden, heads, max(hidden // heads, 1)


def full_attention(config: Config, *, path: str, **options: Any) -> Attention:
    """Attention with keys and values for every head."""
    _, heads, head_dim = head_dim_of(config)
    return attention(config, path=path, heads=heads, kv_heads=heads, head_dim=head_dim, **options)


def positions(config: Config, name: str, extra: int = 0) -> Weight:
    """A learned embedding of positions."""
    rows = config.size("max_position_embeddings", maximum=MAX_TOKENS) + extra
    return embedding(f"{config.base}{name}", rows, config.size("hidden_size"))


def inner_width(config: Config, name: str) -> int:
    """Width of the feed-forward block: four times the hidden size unless said."""
    return config.optional(name) or 4 * config.size("hidden_size")


def with_dropout(config: Config, mixer: Attention) -> Attention:
    """Attention whose probabilities pass a dropout in training unless the config says otherwise."""
    return replace(mixer, dropout=config.number("attn_pdrop", default=0.1) > 0)


def gpt2_decoder(config: Config, layer: Layer, *, norm_name: str = "ln_f", learned: bool = True, **options: Any) -> Architecture:
    """Token embedding ``wte``, layers ``h``, and learned positions ``wpe``."""
    embeddings = (positions(config, "wpe"),) if learned else ()
    names: dict[str, Any] = {"embed": "wte", "layers_name": "h", "norm": layer_norm} | options
    return decoder(config, [layer] * num_layers(config), norm_name=norm_name, embeddings=embeddings, **names)


def refuse_cross_attention(config: Config) -> None:
    """A decoder that also reads an encoder is another model."""
    if config.flag("add_cross_attention"):
        raise UnknownArchitecture("add_cross_attention: a decoder that reads an encoder is not read by this family")


@family("gpt2", "gpt-sw3")
def gpt2(config: Config) -> Architecture:
    """GPT-2: learned positions, one linear for queries, keys and values."""
    refuse_cross_attention(config)
    mixer = full_attention(
        config, path="attn", fused="c_attn", names=("", "", "", "c_proj"), qkv_bias=True, output_bias=True, rotary=False
    )
    channel = mlp(config, inner_width(config, "n_inner"), gated=False, bias=True, names=("c_fc", "c_proj"))
    return gpt2_decoder(
        config, block(config, with_dropout(config, mixer), channel, norms=("ln_1", "ln_2"), norm=layer_norm, dropout=0.1)
    )


@family("gpt_bigcode")
def gpt_bigcode(config: Config) -> Architecture:
    """StarCoder 1, SantaCoder: GPT-2 with one key-value head."""
    refuse_cross_attention(config)
    _, heads, head_dim = head_dim_of(config)
    mixer = attention(
        config,
        path="attn",
        fused="c_attn",
        names=("", "", "", "c_proj"),
        heads=heads,
        kv_heads=1 if config.flag("multi_query") else heads,
        head_dim=head_dim,
        qkv_bias=True,
        output_bias=True,
        rotary=False,
    )
    channel = mlp(config, inner_width(config, "n_inner"), gated=False, bias=True, names=("c_fc", "c_proj"))
    return gpt2_decoder(
        config, block(config, with_dropout(config, mixer), channel, norms=("ln_1", "ln_2"), norm=layer_norm, dropout=0.1)
    )


@family("gpt_neo")
def gpt_neo(config: Config) -> Architecture:
    """GPT-Neo: local layers mask to a window but cache everything."""
    mixer = full_attention(config, path="attn.attention", names=(*QKVO[:3], "out_proj"), output_bias=True, rotary=False)
    channel = mlp(config, inner_width(config, "intermediate_size"), gated=False, bias=True, names=("c_fc", "c_proj"))
    return gpt2_decoder(config, block(config, mixer, channel, norms=("ln_1", "ln_2"), norm=layer_norm))


@family("gptj", "codegen")
def gptj(config: Config) -> Architecture:
    """GPT-J and CodeGen: one norm, both mixers side by side, part of each head rotated."""
    fused = "qkv_proj" if config.text("model_type") == "codegen" else ""
    mixer = full_attention(config, path="attn", names=(*QKVO[:3], "out_proj"), fused=fused)
    mixer = replace(mixer, rotary_dim=config.optional("rotary_dim") or mixer.head_dim)
    channel = mlp(config, inner_width(config, "n_inner"), gated=False, bias=True, names=("fc_in", "fc_out"))
    layer = block(config, mixer, channel, norms=("ln_1",), norm=layer_norm, parallel=True)
    return gpt2_decoder(config, layer, learned=False, head_bias=True)


@family("gpt_neox")
def gpt_neox(config: Config) -> Architecture:
    """GPT-NeoX, Pythia: both mixers side by side, each with its norm."""
    bias = config.flag("attention_bias")
    mixer = full_attention(
        config, path="attention", fused="query_key_value", names=("", "", "", "dense"), qkv_bias=bias, output_bias=bias
    )
    channel = mlp(config, gated=False, bias=True, names=("dense_h_to_4h", "dense_4h_to_h"))
    layer = block(config, mixer, channel, norm=layer_norm, parallel=config.flag("use_parallel_residual"))
    return decoder(config, [layer] * num_layers(config), norm=layer_norm, norm_name="final_layer_norm", embed="embed_in")


@family("gpt_neox_japanese")
def gpt_neox_japanese(config: Config) -> Architecture:
    """GPT-NeoX without biases but one, on the last layer's attention."""
    hidden = config.size("hidden_size")
    mixer = full_attention(config, path="attention", fused="query_key_value", names=("", "", "", "dense"))
    width = int(hidden * config.number("intermediate_multiple_size", default=4))
    mixer = replace(mixer, dropout=config.number("attention_dropout", default=0.1) > 0)
    channel = mlp(config, width, gated=False, names=("dense_h_to_4h", "dense_4h_to_h"))
    layer = block(config, mixer, channel, norm=layer_norm)
    last = replace(layer, weights=(Weight("attention.dense_bias", (hidden,), "bias"),))
    layers = [layer] * (num_layers(config) - 1) + [last]
    named = with_head(config, head="embed_out") if config.head == "lm_head" else config
    return decoder(named, layers, norm=layer_norm, norm_name="final_layer_norm", embed="embed_in")


@family("bloom")
def bloom(config: Config) -> Architecture:
    """BLOOM: ALiBi positions, a norm on the embeddings."""
    if config.says("n_embed"):  # how its class was told the width first, and its checkpoints tell it still
        config = with_head(config, hidden_size=config.get("n_embed"))
    hidden = config.size("hidden_size")
    mixer = full_attention(
        config,
        path="self_attention",
        fused="query_key_value",
        names=("", "", "", "dense"),
        qkv_bias=True,
        output_bias=True,
        rotary=False,
    )
    channel = mlp(config, 4 * hidden, gated=False, bias=True, names=("dense_h_to_4h", "dense_4h_to_h"))
    channel = replace(channel, activation="bloom_gelu")
    first = layer_norm(f"{config.base}word_embeddings_layernorm", hidden).weights
    layer = block(config, mixer, channel, norm=layer_norm)
    return gpt2_decoder(config, layer, learned=False, embed="word_embeddings", weights=first)


@family("falcon")
def falcon(config: Config) -> Architecture:
    """Falcon: multi-query (7B) or grouped (40B, 180B) keys and values; the grouped ones are cached for every head."""
    hidden, heads, head_dim = head_dim_of(config)
    grouped, multi_query = config.flag("new_decoder_architecture"), config.flag("multi_query")
    bias, parallel = config.flag("bias"), config.flag("parallel_attn")
    kv_heads = (config.optional("num_kv_heads") or heads) if grouped else 1 if multi_query else heads
    mixer = attention(
        config,
        path="self_attention",
        fused="query_key_value",
        names=("", "", "", "dense"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        qkv_bias=bias,
        output_bias=bias,
        rotary=not config.flag("alibi"),
    )
    mixer = replace(mixer, cached_kv_heads=heads if grouped else None)
    channel = mlp(
        config,
        config.optional("ffn_hidden_size") or 4 * hidden,
        gated=False,
        bias=bias,
        names=("dense_h_to_4h", "dense_4h_to_h"),
    )
    count = config.optional("num_ln_in_parallel_attn") or (2 if grouped else 1)
    norms = ("input_layernorm", "post_attention_layernorm")
    if parallel:
        norms = ("ln_attn", "ln_mlp") if count == 2 else norms[:1]  # type: ignore[assignment]
    layer = block(config, mixer, channel, norms=norms, norm=layer_norm, parallel=parallel)
    return gpt2_decoder(config, layer, learned=False, embed="word_embeddings")


@family("mpt")
def mpt(config: Config) -> Architecture:
    """MPT: ALiBi positions, no biases."""
    mixer = full_attention(config, path="attn", fused="Wqkv", names=("", "", "", "out_proj"), rotary=False)
    channel = mlp(config, 4 * config.size("hidden_size"), gated=False, path="ffn", names=("up_proj", "down_proj"))
    channel = replace(channel, activation="gelu")
    layer = block(config, mixer, channel, norms=("norm_1", "norm_2"), norm=biasless_layer_norm)
    found = gpt2_decoder(config, layer, norm_name="norm_f", learned=False, norm=biasless_layer_norm, layers_name="blocks")
    attending = config.mapping("attn_config")
    plain = not attending.get("clip_qkv") and not attending.get("attn_pdrop")
    return replace(
        found,
        max_context_tokens=config.optional("max_seq_len", maximum=MAX_TOKENS),
        decoder_type="" if plain else "mpt_clipped_or_dropped",
    )


def bart_like_layer(config: Config, width: int, *, bias: bool = True, norm: Any = layer_norm) -> Layer:
    """The decoder layer of OPT, XGLM and BioGPT: BART's names, norms before or after the mixers."""
    mixer = full_attention(config, path="self_attn", names=(*QKVO[:3], "out_proj"), qkv_bias=bias, output_bias=bias, rotary=False)
    channel = mlp(config, width, gated=False, bias=bias, path="", names=("fc1", "fc2"))
    return block(config, mixer, channel, norms=("self_attn_layer_norm", "final_layer_norm"), norm=norm, dropout=0.1)


@family("opt")
def opt(config: Config) -> Architecture:
    """OPT: learned positions with an offset of two; embeddings narrower than the layers in the 350M."""
    hidden, width = config.size("hidden_size"), config.optional("word_embed_proj_dim")
    norm = layer_norm if config.flag("layer_norm_elementwise_affine", default=True) else bare_layer_norm
    layer = bart_like_layer(config, config.size("ffn_dim"), bias=config.flag("enable_bias", default=True), norm=norm)
    inner = with_head(config, base=f"{config.base}decoder.")
    projected = width is not None and width != hidden
    at = inner.base
    projections = (
        (*linear(f"{at}project_in", hidden, width), *linear(f"{at}project_out", width, hidden)) if projected and width else ()
    )
    last = norm if config.flag("do_layer_norm_before") and config.get("_remove_final_layer_norm") is not True else None
    found = decoder(
        inner,
        [layer] * num_layers(config),
        norm=last,
        norm_name="final_layer_norm",
        embeddings=(positions(inner, "embed_positions", 2),),
        weights=projections,
    )
    if not config.flag("do_layer_norm_before"):  # the 350M
        found = replace(found, decoder_type="opt_normed_after")
    return narrow_embedding(found, width) if projected and width else found


def narrow_embedding(found: Architecture, width: int) -> Architecture:
    """The token embedding and the head over another width than the layers'."""
    table = found.embeddings[0]
    head = tuple(replace(weight, shape=(weight.shape[0], width)) if len(weight.shape) == 2 else weight for weight in found.head)
    return replace(found, embeddings=(replace(table, shape=(table.shape[0], width)), *found.embeddings[1:]), head=head)


@family("xglm", "biogpt")
def xglm(config: Config) -> Architecture:
    """XGLM: computed positions; BioGPT: learned ones."""
    refuse_cross_attention(config)
    bio = config.text("model_type") == "biogpt"
    layer = bart_like_layer(config, config.size("intermediate_size" if bio else "ffn_dim"))
    named = with_head(config, head="output_projection") if bio and config.head == "lm_head" else config
    if not bio:
        return sinusoidal(named, layer)
    learned = (positions(config, "embed_positions", 2),)
    return decoder(named, [layer] * num_layers(config), norm=layer_norm, norm_name="layer_norm", embeddings=learned)


def sinusoidal(config: Config, layer: Layer) -> Architecture:
    """XGLM around its layers: positions are computed, attention's probabilities pass a dropout."""
    dropped = config.number("attention_dropout", default=0.1) > 0
    mixers = tuple(replace(mixer, dropout=dropped) for mixer in layer.sequence if isinstance(mixer, Attention))
    layers = [replace(layer, sequence=mixers)] * num_layers(config)
    found = decoder(config, layers, norm=layer_norm, norm_name="layer_norm")
    plain = config.number("activation_dropout", default=0) == config.number("layerdrop", default=0) == 0
    return found if plain else replace(found, decoder_type="xglm_dropped_within")


@family("openai-gpt")
def openai_gpt(config: Config) -> Architecture:
    """The first GPT: norms after the mixers, none at the end."""
    mixer = full_attention(
        config, path="attn", fused="c_attn", names=("", "", "", "c_proj"), qkv_bias=True, output_bias=True, rotary=False
    )
    channel = mlp(config, 4 * config.size("hidden_size"), gated=False, bias=True, names=("c_fc", "c_proj"))
    layer = block(config, mixer, channel, norms=("ln_1", "ln_2"), norm=layer_norm)
    return decoder(
        config,
        [layer] * num_layers(config),
        norm=None,
        embed="tokens_embed",
        layers_name="h",
        embeddings=(positions(config, "positions_embed"),),
    )


@family("ctrl")
def ctrl(config: Config) -> Architecture:
    """CTRL: computed positions, a bias on the head."""
    names = ("Wq", "Wk", "Wv", "dense")
    mixer = full_attention(config, path="multi_head_attention", names=names, qkv_bias=True, output_bias=True, rotary=False)
    channel = mlp(config, config.size("dff"), gated=False, bias=True, path="ffn", names=("0", "2"))
    channel = replace(channel, activation="relu")
    layer = block(config, mixer, channel, norms=("layernorm1", "layernorm2"), norm=layer_norm, dropout=0.1)
    return gpt2_decoder(config, layer, norm_name="layernorm", learned=False, embed="w", head_bias=True)
