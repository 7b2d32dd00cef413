"""Dense rotary decoders with LayerNorm: Phi, StableLM, StarCoder 2, Persimmon, Command-R, OLMo 1."""

from __future__ import annotations

from planner.architecture.blocks import (
    bare_layer_norm,
    biasless_layer_norm,
    decoder,
    layer_norm,
    mlp,
)
from planner.architecture.config import Config
from planner.architecture.families.llama_like import PRE, dense, every, normed_by_head
from planner.architecture.families.registry import family
from planner.architecture.layers import Architecture, Weight


@family("jais2", "nemotron")
def layer_norms(config: Config) -> Architecture:
    """LayerNorm with bias, a feed-forward block without a gate."""
    bias = config.flag("attention_bias")
    channel = mlp(config, gated=False, bias=config.flag("mlp_bias"))
    return decoder(config, dense(config, channel, norm=layer_norm, qkv_bias=bias, output_bias=bias), norm=layer_norm)


@family("olmo")
def olmo(config: Config) -> Architecture:
    """OLMo 1: LayerNorm without scale and bias."""
    bias = config.flag("attention_bias")
    layers = dense(config, mlp(config), norm=bare_layer_norm, qkv_bias=bias, output_bias=bias)
    return decoder(config, layers, norm=bare_layer_norm)


@family("cohere", "cohere2")
def cohere(config: Config) -> Architecture:
    """Command-R: one norm, both mixers side by side; Command-R7B windows three of four layers."""
    bias = config.flag("attention_bias")
    heads, hidden = config.size("num_attention_heads"), config.size("hidden_size")
    head_dim = config.optional("head_dim") or max(hidden // heads, 1)
    kv_heads = config.optional("num_key_value_heads") or heads
    second = config.text("model_type") == "cohere2"
    qk = () if second or not config.flag("use_qk_norm") else cohere_head_norms(heads, kv_heads, head_dim)
    layers = dense(
        config,
        mlp(config),
        rule=every(config.optional("sliding_window_pattern", minimum=0) or 4) if second else None,
        norms=("input_layernorm",),
        norm=biasless_layer_norm,
        parallel=True,
        qkv_bias=bias,
        output_bias=bias,
        head_dim=head_dim if second else None,
        extra=qk,
    )
    return decoder(config, normed_by_head(layers) if qk else layers, norm=biasless_layer_norm)


def cohere_head_norms(heads: int, kv_heads: int, head_dim: int) -> tuple[Weight, ...]:
    """Command-R+ scales every value of every head."""
    return (
        Weight("self_attn.q_norm.weight", (heads, head_dim), "norm"),
        Weight("self_attn.k_norm.weight", (kv_heads, head_dim), "norm"),
    )


@family("starcoder2")
def starcoder2(config: Config) -> Architecture:
    """LayerNorm, GPT-2's feed-forward names, one switch for all biases."""
    bias = config.flag("use_bias")
    channel = mlp(config, gated=False, bias=bias, names=("c_fc", "c_proj"))
    return decoder(config, dense(config, channel, norm=layer_norm, qkv_bias=bias, output_bias=bias), norm=layer_norm)


@family("stablelm")
def stablelm(config: Config) -> Architecture:
    """StableLM 2: LayerNorm; side-by-side mixers with one norm, and norms of each head, behind switches."""
    heads, hidden = config.size("num_attention_heads"), config.size("hidden_size")
    parallel = config.flag("use_parallel_residual")
    kv_heads = config.optional("num_key_value_heads") or heads
    qk = stablelm_head_norms(heads, kv_heads, hidden // heads) if config.flag("qk_layernorm") else ()
    layers = dense(
        config,
        mlp(config),
        norms=PRE[:1] if parallel else PRE,
        norm=layer_norm,
        parallel=parallel,
        qkv_bias=config.flag("use_qkv_bias"),
        head_dim=max(hidden // heads, 1),
        extra=qk,
    )
    return decoder(config, layers, norm=layer_norm)


def stablelm_head_norms(heads: int, kv_heads: int, head_dim: int) -> tuple[Weight, ...]:
    """A LayerNorm of its own for each head, without bias."""
    return (
        Weight("self_attn.q_layernorm.norms.*.weight", (head_dim,), "norm", heads),
        Weight("self_attn.k_layernorm.norms.*.weight", (head_dim,), "norm", kv_heads),
    )


@family("phi")
def phi(config: Config) -> Architecture:
    """Phi 1 to 2: one LayerNorm, both mixers side by side, biases everywhere, the head too."""
    heads, hidden = config.size("num_attention_heads"), config.size("hidden_size")
    channel = mlp(config, gated=False, bias=True, names=("fc1", "fc2"))
    layers = dense(
        config,
        channel,
        norms=PRE[:1],
        norm=layer_norm,
        parallel=True,
        names=("q_proj", "k_proj", "v_proj", "dense"),
        qkv_bias=True,
        output_bias=True,
        extra=persimmon_head_norms(hidden // heads) if config.flag("qk_layernorm") else (),
    )
    layers = normed_by_head(layers) if config.flag("qk_layernorm") else layers
    return decoder(config, layers, norm=layer_norm, norm_name="final_layernorm", head_bias=True)


def persimmon_head_norms(head_dim: int) -> tuple[Weight, ...]:
    """A LayerNorm with bias over each query head, and over each key head."""
    names = ("self_attn.q_layernorm", "self_attn.k_layernorm")
    return tuple(weight for name in names for weight in layer_norm(name, head_dim).weights)


@family("persimmon")
def persimmon(config: Config) -> Architecture:
    """Persimmon: LayerNorm, one linear for queries, keys and values, no gate."""
    heads, hidden = config.size("num_attention_heads"), config.size("hidden_size")
    head_dim = max(hidden // heads, 1)
    layers = dense(
        config,
        mlp(config, gated=False, bias=True, names=("dense_h_to_4h", "dense_4h_to_h")),
        norm=layer_norm,
        fused="query_key_value",
        names=("", "", "", "dense"),
        qkv_bias=True,
        output_bias=True,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        extra=persimmon_head_norms(head_dim) if config.flag("qk_layernorm") else (),
    )
    layers = normed_by_head(layers) if config.flag("qk_layernorm") else layers
    return decoder(config, layers, norm=layer_norm, norm_name="final_layernorm")
