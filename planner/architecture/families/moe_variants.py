"""Decoders with routed experts whose attention or layers differ from the common build."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import ceil

from planner.architecture.blocks import attention, biasless_layer_norm, block, decoder, linear, mlp, moe, num_layers
from planner.architecture.config import Config, Defaults
from planner.architecture.families.llama_like import (
    CHUNKED,
    FULL,
    PRE,
    SANDWICH,
    SLIDING,
    every,
    window_kinds,
)
from planner.architecture.families.moe import DENSE, SPARSE, deepseek_experts, mixed, mlp_types, routed, sparse_decoder
from planner.architecture.families.registry import family
from planner.architecture.layers import Architecture, Attention, ChannelMixer, DenseMLP, Layer, MixtureOfExperts, Weight


@family("mellum", "kolibri1")
def mellum(config: Config) -> Architecture:
    """JetBrains Mellum 2 and Kolibri: windows, a norm on each head."""
    bias = config.flag("attention_bias")
    kolibri = config.text("model_type") == "kolibri1"

    def experts() -> MixtureOfExperts:
        return moe(
            config,
            *routed(config),
            config.size("moe_intermediate_size"),
            shared_width=config.optional("shared_expert_intermediate_size", minimum=0) or 0,
            correction="gate.e_score_correction_bias" if kolibri else "",
        )

    norms = (*PRE, "post_self_attn_layernorm", "post_mlp_layernorm") if kolibri else PRE
    found = sparse_decoder(
        config,
        experts,
        mlp_types=None if kolibri else mlp_types(config, lambda _: True),
        rule=every(5) if kolibri else (lambda _: FULL),
        block_options={"norms": norms},
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="per_head",
    )
    windowed = kolibri and config.optional("sliding_window", minimum=0)
    return without_positions(found) if windowed else found


@family("beam")
def beam(config: Config) -> Architecture:
    """Norms around each mixer, a gate of its own over the attention output."""
    bias = config.flag("attention_bias")
    heads, hidden = config.size("num_attention_heads"), config.size("hidden_size")
    last = num_layers(config) - 1
    gate = linear("self_attn.gate_proj", heads * config.size("head_dim"), hidden)
    return sparse_decoder(
        config,
        lambda: moe(
            config, *routed(config, "num_experts"), config.size("moe_intermediate_size"), correction="gate.e_score_correction_bias"
        ),
        mlp_types=mlp_types(config, lambda index: index >= 3),
        rule=lambda index: FULL if (index + 1) % 6 == 0 or index == last else SLIDING,
        block_options={"norms": SANDWICH},
        decoder_options={"softcap": config.get("final_logit_softcapping") is not None},
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="per_head",
        extra=(Weight("self_attn.gate_bias", (heads,), "bias"), *gate),
    )


@family("afmoe")
def afmoe(config: Config) -> Architecture:
    """Arcee Trinity: norms around each mixer, a gate over the attention output, the balancing bias a parameter."""
    bias = config.flag("attention_bias")
    heads, hidden = config.size("num_attention_heads"), config.size("hidden_size")
    width = config.size("moe_intermediate_size")
    count, per_token = routed(config, "num_experts")
    head_dim = config.optional("head_dim") or max(hidden // heads, 1)
    first = config.size("num_dense_layers", minimum=0)
    period = config.size("global_attn_every_n_layers")

    def experts() -> MixtureOfExperts:
        shared = width * config.size("num_shared_experts", minimum=0)
        balance = (Weight("mlp.expert_bias", (count,), "bias"),)
        return moe(config, count, per_token, width, router="router.gate", router_is_linear=True, shared_width=shared, extra=balance)

    found = sparse_decoder(
        config,
        experts,
        mlp_types=[SPARSE if index >= first else DENSE for index in range(num_layers(config))],
        rule=every(period),
        block_options={"norms": (*PRE, "pre_mlp_layernorm", "post_mlp_layernorm")},
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="per_head",
        extra=linear("self_attn.gate_proj", heads * head_dim, hidden),
    )
    return replace(without_positions(found), decoder_type="afmoe_scaled" if config.flag("mup_enabled") else "")


def without_positions(found: Architecture) -> Architecture:
    """The same, without rotary positions in layers that have no window."""

    def unrotated(layer: Layer) -> Layer:
        mixers = (mixer for mixer in layer.sequence if isinstance(mixer, Attention))
        made = (mixer if mixer.window_tokens is not None else replace(mixer, rotary_dim=0) for mixer in mixers)
        return replace(layer, sequence=tuple(made))

    layers = {layer: unrotated(layer) for layer in dict.fromkeys(found.decoder.layers)}
    return replace(found, decoder=replace(found.decoder, layers=tuple(layers[layer] for layer in found.decoder.layers)))


def rotated_share(config: Config, window: int | None, default: float) -> float:
    """What share of a head is rotated, which ``rope_parameters`` say for each type of layer."""
    rotated = config.mapping("rope_parameters").get(FULL if window is None else SLIDING)
    share = rotated.get("partial_rotary_factor") if isinstance(rotated, dict) else None
    return share if isinstance(share, int | float) and 0 < share <= 1 else default


@family("aria_text")
def aria(config: Config) -> Architecture:
    """Aria: shared experts as one block, experts stored as one tensor of all."""
    bias = config.flag("attention_bias")
    width = config.size("intermediate_size")

    def experts() -> MixtureOfExperts:
        shared = width * config.size("moe_num_shared_experts", minimum=0)
        count, per_token = config.size("moe_num_experts", maximum=2**20), config.size("moe_topk")
        inner_bias = config.flag("mlp_bias")
        return moe(config, count, per_token, width, router="router", shared_width=shared, shared_bias=inner_bias, fused=True)

    return sparse_decoder(config, experts, qkv_bias=bias, output_bias=bias)


@family("laguna")
def laguna(config: Config) -> Architecture:
    """Poolside Laguna: head counts by layer, a gate for each head, the balancing bias a parameter."""
    layers = num_layers(config)
    heads = config.integers("num_attention_heads_per_layer", length=layers) or (config.size("num_attention_heads"),) * layers
    types = mlp_types(config, bool)
    windows = [window for _, window in window_kinds(config, lambda _: FULL)]
    count, per_token = routed(config, "num_experts")
    bias, hidden = config.flag("attention_bias"), config.size("hidden_size")
    per_head = config.get("gating") in (True, "per-head")
    head_dim = config.optional("head_dim") or max(hidden // heads[0], 1)

    def experts() -> MixtureOfExperts:
        balance = (Weight("mlp.gate.e_score_correction_bias", (count,), "bias"),)
        shared = config.size("shared_expert_intermediate_size", minimum=0)
        return moe(config, count, per_token, config.size("moe_intermediate_size"), shared_width=shared, extra=balance)

    def layer(window: int | None, mlp_type: str, width: int) -> Layer:
        gates = linear("self_attn.g_proj", width * (1 if per_head else head_dim), hidden)
        mixer = attention(
            config, heads=max(width, 1), qkv_bias=bias, output_bias=bias, qk_norm="per_head", window_tokens=window, extra=gates
        )
        share = rotated_share(config, window, 0.5 if window is None else 1.0)
        mixer = replace(mixer, rotary_dim=int(mixer.head_dim * share))
        return block(config, mixer, experts() if mlp_type == SPARSE else mlp(config))

    kinds = list(zip(windows, types, heads, strict=False))
    made = {kind: layer(*kind) for kind in dict.fromkeys(kinds)}
    found = decoder(config, [made[kind] for kind in kinds])
    capped = config.number("moe_router_logit_softcapping", default=0) > 0
    return replace(found, decoder_type="laguna_capped") if capped else found


@family("cohere2_moe")
def cohere_moe(config: Config) -> Architecture:
    """Command-R's parallel build with experts."""
    bias = config.flag("attention_bias")
    first = config.optional("first_k_dense_replace", minimum=0) or 0
    before, after = (config.size(name) for name in ("prefix_dense_sliding_window_pattern", "sliding_window_pattern"))
    width = config.size("intermediate_size")

    def experts() -> MixtureOfExperts:
        shared = width * config.size("num_shared_experts", minimum=0)
        return moe(config, *routed(config, "num_experts"), width, shared_width=shared)

    return sparse_decoder(
        config,
        experts,
        mlp_types=mlp_types(config, lambda index: index >= first),
        rule=lambda index: every(before)(index) if index < first else every(after)(index - first),
        dense=lambda: mlp(config, config.optional("prefix_dense_intermediate_size") or width),
        block_options={"norms": PRE[:1], "norm": biasless_layer_norm, "parallel": True},
        decoder_options={"norm": biasless_layer_norm},
        qkv_bias=bias,
        output_bias=bias,
    )


MIMO_ROTATED = 0.334
"""The share of a head that is rotated (``MiMoV2FlashConfig``)."""


@family("mimo_v2_flash")
def mimo(config: Config) -> Architecture:
    """MiMo-V2: values narrower than keys; windowed layers have twice the key-value heads, and sinks."""
    layers = num_layers(config)
    types = config.layer_types(layers, lambda index: FULL if index == 0 or (index + 1) % 6 == 0 else SLIDING, (FULL, SLIDING))
    bias = config.flag("attention_bias")

    kv_heads = config.size("num_key_value_heads")

    def mixer(window: int | None) -> Attention:
        found = attention(
            config,
            kv_heads=kv_heads * 2 if window else kv_heads,
            value_head_dim=config.size("v_head_dim"),
            qkv_bias=bias,
            window_tokens=window,
            sinks=window is not None,
        )
        share = rotated_share(config, window, MIMO_ROTATED)
        return replace(found, rotary_dim=2 * ceil(int(found.head_dim * share) / 2))

    before = config.optional("sliding_window_size")
    window = config.size("sliding_window") if before is None else before + 1
    return decoder(
        config,
        mixed(
            [window if name == SLIDING else None for name in types],
            mlp_types(config, bool),
            mixer,
            {SPARSE: lambda: deepseek_experts(config), DENSE: lambda: mlp(config)},
            lambda mixer, channel: block(config, mixer, channel),
        ),
    )


@family("llama4_text")
def llama4(config: Config) -> Architecture:
    """Llama 4: chunked layers with rotary embedding, full ones without; experts in every n-th layer."""
    layers = num_layers(config)
    interval = config.size("no_rope_layer_interval")
    rotary = config.integers("no_rope_layers") or tuple(int((index + 1) % interval != 0) for index in range(layers))
    types = config.layer_types(layers, lambda index: CHUNKED if index < len(rotary) and rotary[index] else FULL, (FULL, CHUNKED))
    step = config.size("interleave_moe_layer_step")
    sparse = config.integers("moe_layers")
    sparse = tuple(range(step - 1, layers, step)) if sparse is None else sparse
    bias, width = config.flag("attention_bias"), config.size("intermediate_size")

    def mixer(chunk: int | None) -> Attention:
        return attention(config, qkv_bias=bias, output_bias=bias, chunk_tokens=chunk)

    chunk = config.size("attention_chunk_size") if CHUNKED in types else None
    at = "feed_forward"
    channels: dict[str, Callable[[], ChannelMixer]] = {
        SPARSE: lambda: moe(
            config,
            *routed(config),
            width,
            path=at,
            router="router",
            router_is_linear=True,
            shared="shared_expert",
            shared_width=width,
            fused=True,
        ),
        DENSE: lambda: mlp(config, config.size("intermediate_size_mlp"), path=at),
    }
    return decoder(
        config,
        mixed(
            [chunk if name == CHUNKED else None for name in types],
            [SPARSE if index in sparse else DENSE for index in range(layers)],
            mixer,
            channels,
            lambda mixer, channel: block(config, mixer, channel),
        ),
    )


@family("dbrx")
def dbrx(config: Config) -> Architecture:
    """DBRX: one linear for queries, keys and values; experts stored as one tensor of all."""
    attn = config.child("attn_config", Defaults(values={"kv_n_heads": 1}))
    ffn = config.child("ffn_config", Defaults(values={"ffn_hidden_size": 3584, "moe_num_experts": 4, "moe_top_k": 1}))
    heads, hidden = config.size("num_attention_heads"), config.size("hidden_size")
    config.require(hidden % heads == 0, "n_heads", f"must divide d_model ({hidden}), got {heads}")
    width, count = ffn.size("ffn_hidden_size"), ffn.size("moe_num_experts")
    at = "ffn.experts.mlp"
    weights = tuple(Weight(f"{at}.{name}", (width, hidden), "expert", count) for name in ("w1", "v1", "w2"))
    channel = MixtureOfExperts(
        count,
        ffn.size("moe_top_k"),
        width,
        True,
        "silu",
        (*linear("ffn.router.layer", count, hidden, role="router", is_linear=True), *weights),
    )
    mixer = attention(
        config,
        path="norm_attn_norm.attn",
        names=("", "", "", "out_proj"),
        fused="Wqkv",
        heads=heads,
        kv_heads=attn.size("kv_n_heads"),
        head_dim=max(hidden // heads, 1),
    )
    layer = block(config, mixer, channel, norms=("norm_attn_norm.norm_1", "norm_attn_norm.norm_2"), norm=biasless_layer_norm)
    return decoder(
        config, [layer] * num_layers(config), norm=biasless_layer_norm, norm_name="norm_f", embed="wte", layers_name="blocks"
    )


@family("minimax_m3_vl_text")
def minimax_m3(config: Config) -> Architecture:
    """MiniMax-M3: some layers score blocks of the cache with a small indexer first."""
    layers = num_layers(config)
    sparse_attention = "minimax_m3_sparse"
    types = config.layer_types(layers, lambda _: FULL, (FULL, sparse_attention))
    hidden = config.size("hidden_size")
    width, heads = config.size("index_head_dim"), config.size("index_n_heads")
    indexer = (
        *linear("self_attn.indexer.q_proj", heads * width, hidden),
        *linear("self_attn.indexer.k_proj", width, hidden),
        Weight("self_attn.indexer.q_norm.weight", (width,), "norm"),
        Weight("self_attn.indexer.k_norm.weight", (width,), "norm"),
    )

    def experts() -> MixtureOfExperts:
        shared = config.size("shared_intermediate_size", minimum=0)
        extra = mlp(config, shared, path="mlp.shared_experts", fused="gate_up_proj").weights
        return moe(
            config, *routed(config), config.size("intermediate_size"), correction="gate.e_score_correction_bias", extra=extra
        )

    def dense() -> DenseMLP:
        return mlp(config, config.size("dense_intermediate_size"), fused="gate_up_proj")

    made = {
        (name, kind): block(
            config,
            attention(config, qk_norm="per_head", extra=indexer if name == sparse_attention else ()),
            experts() if kind == SPARSE else dense(),
        )
        for name in dict.fromkeys(types)
        for kind in (SPARSE, DENSE)
    }
    return decoder(config, [made[kind] for kind in zip(types, mlp_types(config, lambda _: True), strict=False)])
