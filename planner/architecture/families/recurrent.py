"""Short convolutions and other recurrences: LFM2, RecurrentGemma, RWKV, xLSTM."""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.blocks import (
    attention,
    block,
    convolution,
    decoder,
    layer_norm,
    linear,
    mlp,
    moe,
    num_layers,
    rms_norm,
    scale,
    with_head,
)
from planner.architecture.config import Config
from planner.architecture.families.hybrids import LINEAR, hybrid
from planner.architecture.families.llama_like import FULL, SLIDING
from planner.architecture.families.moe import (
    DENSE,
    SPARSE,
    routed,
)
from planner.architecture.families.registry import family
from planner.architecture.layers import (
    Architecture,
    MixtureOfExperts,
    Norm,
    Recurrent,
    SequenceMixer,
    Weight,
)
from planner.architecture.recurrent import (
    short_convolution,
)


@family("lfm2", "lfm2_moe")
def lfm2(config: Config) -> Architecture:
    """LFM2: short convolutions, attention in some layers."""
    layers = num_layers(config)
    full = config.integers("full_attn_idxs")
    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    sparse = config.text("model_type") == "lfm2_moe"
    first = config.size("num_dense_layers", minimum=0) if sparse else layers

    def routed_experts() -> MixtureOfExperts:
        balance = "expert_bias" if config.flag("use_expert_bias") else ""
        return moe(config, *routed(config), config.size("moe_intermediate_size"), path="feed_forward", correction=balance)

    width = config.size("intermediate_size") if sparse else lfm2_width(config)
    built = hybrid(
        config,
        config.layer_types(layers, lambda index: FULL if full is None or index in full else "conv", ("conv", FULL)),
        {
            FULL: lambda: attention(config, names=names, qk_norm="per_head", qk_norm_names=("q_layernorm", "k_layernorm")),
            "conv": lambda: short_convolution(
                config, path="conv", kernel=config.size("conv_L_cache"), bias=config.flag("conv_bias")
            ),
        },
        {DENSE: lambda: mlp(config, width, path="feed_forward", names=("w1", "w3", "w2")), SPARSE: routed_experts},
        tuple(DENSE if index < first else SPARSE for index in range(layers)),
        norms=("operator_norm", "ffn_norm"),
    )
    return decoder(renamed_tie(config), built, norm_name="embedding_norm")


def lfm2_width(config: Config) -> int:
    """LFM2 shrinks the given width to two thirds, times a factor, rounded up to a multiple."""
    width = config.size("block_ff_dim", "intermediate_size")
    if not config.flag("block_auto_adjust_ff_dim"):
        return width
    width = 2 * width // 3
    if config.get("block_ffn_dim_multiplier") is not None:
        width = int(config.number("block_ffn_dim_multiplier", default=1.0) * width)
        multiple = config.size("block_multiple_of")
        width = multiple * ((width + multiple - 1) // multiple)
    return max(width, 1)


def renamed_tie(config: Config) -> Config:
    """Configs of LFM2 say ``tie_embedding``."""
    if "tie_embedding" not in config.values:
        return config
    return with_head(config, tie_word_embeddings=config.flag("tie_embedding", default=True))


@family("lfm3")
def lfm3(config: Config) -> Architecture:
    """LFM3: short convolutions, full and windowed attention, norms around each mixer."""
    bias, hidden = config.flag("attention_bias"), config.size("hidden_size")
    heads = config.size("num_attention_heads")
    gate = linear("self_attn.g_proj", heads, hidden) if config.flag("use_attention_gate") else ()
    rule = lambda index: FULL if index % 4 == 2 else SLIDING if index and index % 4 == 0 else "conv"  # noqa: E731
    norms = ("operator_norm", "ffn_norm")

    def mixer(window: int | None) -> SequenceMixer:
        return attention(config, qkv_bias=bias, output_bias=bias, qk_norm="per_head", window_tokens=window, extra=gate)

    built = hybrid(
        config,
        config.layer_types(num_layers(config), rule, ("conv", FULL, SLIDING)),
        {
            FULL: lambda: mixer(None),
            SLIDING: lambda: mixer(config.size("sliding_window")),
            "conv": lambda: short_convolution(
                config, path="conv", kernel=config.size("conv_L_cache"), bias=config.flag("conv_bias")
            ),
        },
        {DENSE: lambda: mlp(config, path="feed_forward", names=("w1", "w3", "w2"))},
        norms=(*norms, "post_operator_norm", "post_ffn_norm") if config.flag("use_sandwich_norm") else norms,
    )
    found = decoder(config, built, norm_name="embedding_norm")
    return found if config.flag("use_sandwich_norm") else replace(found, decoder_type="lfm3_normed_before")


@family("recurrent_gemma")
def recurrent_gemma(config: Config) -> Architecture:
    """RecurrentGemma (Griffin 2024): real-gated linear recurrent units, windowed attention in one layer of three."""
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    width, kernel = config.optional("lru_width") or hidden, config.size("conv1d_width")
    head_dim, block_width = config.optional("head_dim") or max(hidden // heads, 1), max(width // heads, 1)
    pattern = config.names("block_types") or ("recurrent", "recurrent", "attention")
    types = tuple(pattern[index % len(pattern)] for index in range(num_layers(config)))
    at = "temporal_block"
    gates = ("input_gate", "recurrent_gate")
    weights = (
        *linear(f"{at}.linear_y", width, hidden, bias=True),
        *linear(f"{at}.linear_x", width, hidden, bias=True),
        *linear(f"{at}.linear_out", hidden, width, bias=True),
        *convolution(f"{at}.conv_1d", width, 1, kernel, bias=True),
        Weight(f"{at}.rg_lru.recurrent_param", (width,), "other"),
        *(Weight(f"{at}.rg_lru.{gate}_weight", (heads, block_width, block_width), "other") for gate in gates),
        *(Weight(f"{at}.rg_lru.{gate}_bias", (heads, block_width), "bias") for gate in gates),
    )
    recurrent = Recurrent(
        "rg_lru",
        weights,
        conv_channels=width,
        conv_kernel=kernel,
        state_numel=width,
        num_heads=heads,
        head_dim=block_width,
        inner_dim=width,
    )
    bias = config.flag("attention_bias")
    for name in sorted(set(types) - {"recurrent", "attention"}):
        config.reader.fault("block_types", f"must hold only recurrent and attention, got {name[:40]!r}")
    built = hybrid(
        config,
        tuple(FULL if name == "attention" else LINEAR for name in types),
        {
            FULL: lambda: attention(
                config,
                path=at,
                head_dim=head_dim,
                qkv_bias=bias,
                output_bias=True,
                window_tokens=config.size("attention_window_size"),
            ),
            LINEAR: lambda: recurrent,
        },
        {DENSE: lambda: mlp(config, config.size("intermediate_size", minimum=2) // 2, path="mlp_block", bias=True)},
        norms=("temporal_pre_norm", "channel_pre_norm"),
    )
    return decoder(config, built, norm_name="final_norm", softcap=True)


@family("rwkv")
def rwkv(config: Config) -> Architecture:
    """RWKV-4: time mixing with five running values a channel, channel mixing with a receptance gate."""
    hidden = config.size("hidden_size")
    width = config.optional("attention_hidden_size") or hidden
    inner = config.optional("intermediate_size") or 4 * hidden
    mixer = Recurrent(
        "rwkv",
        (
            *(Weight(f"attention.{name}", (width,), "other") for name in ("time_decay", "time_first")),
            *(Weight(f"attention.time_mix_{name}", (1, 1, hidden), "other") for name in ("key", "value", "receptance")),
            *(weight for name in ("key", "value", "receptance") for weight in linear(f"attention.{name}", width, hidden)),
            *linear("attention.output", hidden, width),
        ),
        state_numel=2 * hidden + 3 * width,
        inner_dim=width,
    )
    channel = replace(
        mlp(config, inner, gated=False),
        weights=(
            *(Weight(f"feed_forward.time_mix_{name}", (1, 1, hidden), "other") for name in ("key", "receptance")),
            *linear("feed_forward.key", inner, hidden),
            *linear("feed_forward.receptance", hidden, hidden),
            *linear("feed_forward.value", hidden, inner),
        ),
    )
    rest, first = (
        block(config, mixer, channel, norms=norms, norm=layer_norm) for norms in (("ln1", "ln2"), ("pre_ln", "ln1", "ln2"))
    )
    named = with_head(config, head="head" if config.head else "")
    layers = [first] + [rest] * (num_layers(config) - 1)
    return decoder(named, layers, norm=layer_norm, norm_name="ln_out", embed="embeddings", layers_name="blocks")


@family("xlstm")
def xlstm(config: Config) -> Architecture:
    """xLSTM 7B (Beck et al. 2025): matrix memories with exponential gates."""
    hidden, heads = config.size("hidden_size"), config.size("num_heads")
    config.require(config.optional("embedding_dim") in (None, hidden), "embedding_dim", f"must be hidden_size ({hidden})")
    bias = config.flag("use_bias")
    keys = int(hidden * config.number("qk_dim_factor", default=0.5))
    values = int(hidden * config.number("v_dim_factor", default=1.0))
    inner = rounded(hidden * config.number("ffn_proj_factor", default=2.667), config.size("ffn_round_up_to_multiple_of"))
    fused = config.text("weight_mode", default="single") == "fused"
    at = "mlstm_layer"
    gates = ("igate_preact", "fgate_preact")
    if fused:
        projections = (
            *linear(f"{at}.qkv_opreact", 2 * keys + 2 * values, hidden, bias=bias),
            *linear(f"{at}.ifgate_preact", 2 * heads, hidden, bias=True),
        )
        up = linear("ffn.proj_up_gate_z", 2 * inner, hidden, bias=bias)
    else:
        widths = {"q": keys, "k": keys, "v": values, "ogate_preact": values}
        projections = (
            *(weight for name, width in widths.items() for weight in linear(f"{at}.{name}", width, hidden, bias=bias)),
            *(weight for name in gates for weight in linear(f"{at}.{name}", heads, hidden, bias=True)),
        )
        up = tuple(weight for name in ("proj_up_gate", "proj_up") for weight in linear(f"ffn.{name}", inner, hidden, bias=bias))
    inner_norm = (rms_norm_with_bias if bias else rms_norm)(f"{at}.multihead_norm", heads * (values // heads))
    mixer = Recurrent(
        "mlstm",
        (*projections, *inner_norm.weights, *linear(f"{at}.out_proj", hidden, values, bias=bias)),
        state_numel=heads * ((keys // heads) * (values // heads) + keys // heads + 1),
        num_heads=heads,
        head_dim=values // heads,
        state_dim=keys // heads,
        inner_dim=values,
    )
    channel = replace(mlp(config, inner), weights=(*up, *linear("ffn.proj_down", hidden, inner, bias=bias)), activation="silu")
    layer = block(config, mixer, channel, norms=("norm_mlstm", "norm_ffn"), norm=rms_norm_with_bias if bias else rms_norm)
    count = config.optional("num_blocks", maximum=4096) or num_layers(config)
    return decoder(config, [layer] * count, can_tie=False, norm_name="out_norm", embed="embeddings", layers_name="blocks")


def rms_norm_with_bias(name: str, width: int) -> Norm:
    """RMSNorm with a scale and a bias."""
    return Norm(name, width, "rms", (*scale(name, width), Weight(f"{name}.bias", (width,), "bias")))


def rounded(value: float, multiple: int) -> int:
    """Up to the next multiple."""
    return int((value + multiple - 1) // multiple * multiple)
