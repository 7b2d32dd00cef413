"""State-space models, linear attention, short convolutions, and their hybrids with attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from planner.architecture.blocks import (
    attention,
    block,
    convolution,
    decoder,
    experts,
    head_counts,
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
from planner.architecture.families.latent import latent_attention
from planner.architecture.families.llama_like import FULL, PRE, SLIDING
from planner.architecture.families.moe import (
    DENSE,
    SPARSE,
    after_dense,
    deepseek_experts,
    granite_experts,
    granite_shared,
    mlp_types,
    qwen_sparse,
    routed,
)
from planner.architecture.families.registry import family
from planner.architecture.layers import (
    Architecture,
    ChannelMixer,
    Layer,
    MixtureOfExperts,
    Norm,
    Recurrent,
    SequenceMixer,
    Weight,
)
from planner.architecture.recurrent import (
    delta_widths,
    gated_delta_net,
    kimi_delta,
    mamba1,
    mamba2,
    mamba2_of,
    short_convolution,
    step_rank,
)

LINEAR = "linear_attention"
PRE_FF = ("input_layernorm", "pre_ff_layernorm")


def hybrid(
    config: Config,
    types: tuple[str, ...],
    mixers: dict[str, Callable[[], SequenceMixer]],
    channels: dict[str, Callable[[], ChannelMixer]],
    channel_types: tuple[str, ...] | None = None,
    norms: dict[str, tuple[str, ...]] | tuple[str, ...] = PRE,
    **options: Any,
) -> list[Layer]:
    """Layers from kinds of sequence mixers and of channel mixers; equal ones are one object."""
    channel_types = channel_types or (DENSE,) * len(types)
    made_mixers = {name: mixers[name]() for name in dict.fromkeys(types)}
    made_channels = {name: channels[name]() for name in dict.fromkeys(channel_types)}

    def layer(kind: tuple[str, str]) -> Layer:
        names = norms[kind[0]] if isinstance(norms, dict) else norms
        return block(config, made_mixers[kind[0]], made_channels[kind[1]], norms=names, **options)

    kinds = list(zip(types, channel_types, strict=False))
    made = {kind: layer(kind) for kind in dict.fromkeys(kinds)}
    return [made[kind] for kind in kinds]


@family("mamba", "falcon_mamba")
def mamba(config: Config) -> Architecture:
    """Mamba and Falcon-Mamba: nothing but selective state spaces."""
    mixer = mamba1(
        config,
        path="mixer",
        inner=config.optional("intermediate_size") or int(config.number("expand", default=2) * config.size("hidden_size")),
        state=config.size("state_size"),
        kernel=config.size("conv_kernel"),
        rank=step_rank(config, "time_step_rank"),
        bias=config.flag("use_bias"),
        conv_bias=config.flag("use_conv_bias"),
    )
    layer = block(config, mixer, None, norms=("norm",))
    return decoder(config, [layer] * num_layers(config), norm_name="norm_f", embed="embeddings")


@family("mamba2")
def mamba_2(config: Config) -> Architecture:
    """Mamba-2 and Mamba-Codestral."""
    mixer = mamba2(
        config,
        path="mixer",
        inner=int(config.number("expand", default=2) * config.size("hidden_size")),
        heads=config.size("num_heads"),
        head_dim=config.size("head_dim"),
        state=config.size("state_size"),
        groups=config.size("n_groups"),
        kernel=config.size("conv_kernel"),
        bias=config.flag("use_bias"),
        conv_bias=config.flag("use_conv_bias"),
    )
    layer = block(config, mixer, None, norms=("norm",))
    return decoder(config, [layer] * num_layers(config), norm_name="norm_f", embed="embeddings")


@family("jamba")
def jamba(config: Config) -> Architecture:
    """Jamba: one attention layer in eight, experts in every second."""
    layers = num_layers(config)
    period, offset = config.size("attn_layer_period"), config.size("attn_layer_offset", minimum=0)
    expert_period, expert_offset = config.size("expert_layer_period"), config.size("expert_layer_offset", minimum=0)
    some = config.size("num_experts") > 1

    def state_space() -> Recurrent:
        return mamba1(
            config,
            path="mamba",
            inner=int(config.number("mamba_expand", default=2) * config.size("hidden_size")),
            state=config.size("mamba_d_state"),
            kernel=config.size("mamba_d_conv"),
            rank=step_rank(config, "mamba_dt_rank"),
            bias=config.flag("mamba_proj_bias"),
            conv_bias=config.flag("mamba_conv_bias"),
            norms=True,
        )

    at = "feed_forward"
    built = hybrid(
        config,
        tuple(FULL if index % period == offset else LINEAR for index in range(layers)),
        {FULL: lambda: attention(config, rotary=False), LINEAR: state_space},
        {
            DENSE: lambda: mlp(config, path=at),
            SPARSE: lambda: moe(config, *routed(config, "num_experts"), config.size("intermediate_size"), path=at, router="router"),
        },
        tuple(SPARSE if some and index % expert_period == expert_offset else DENSE for index in range(layers)),
        norms=PRE_FF,
    )
    return decoder(config, built, norm_name="final_layernorm")


@family("bamba")
def bamba(config: Config) -> Architecture:
    """Bamba: Mamba-2 with a few attention layers."""
    bias = config.flag("attention_bias")
    full = set(config.integers("attn_layer_indices") or ())
    built = hybrid(
        config,
        tuple(FULL if index in full else LINEAR for index in range(num_layers(config))),
        {FULL: lambda: attention(config, qkv_bias=bias, output_bias=bias), LINEAR: lambda: mamba2_of(config)},
        {DENSE: lambda: mlp(config, path="feed_forward", bias=config.flag("mlp_bias"))},
        norms=PRE_FF,
    )
    return decoder(config, built, norm_name="final_layernorm")


@family("falcon_h1")
def falcon_h1(config: Config) -> Architecture:
    """Falcon-H1: attention and Mamba-2 side by side in every layer."""
    bias = config.flag("attention_bias")
    hidden = config.size("hidden_size")
    state_space = mamba2_of(config, norm=config.flag("mamba_rms_norm"), output_bias=config.flag("projectors_bias"))
    layer = Layer(
        (attention(config, qkv_bias=bias, output_bias=bias), state_space),
        (mlp(config, path="feed_forward", bias=config.flag("mlp_bias")),),
        tuple(rms_norm(name, hidden) for name in PRE_FF),
        parallel=True,
    )
    return decoder(config, [layer] * num_layers(config), norm_name="final_layernorm")


@family("granitemoehybrid")
def granite_hybrid(config: Config) -> Architecture:
    """Granite 4: Mamba-2 with a few attention layers, experts and a shared block, or the shared block alone."""
    bias = config.flag("attention_bias")
    rotary = config.text("position_embedding_type") == "rope"
    width = config.size("shared_intermediate_size")
    some = config.size("num_local_experts", minimum=0) > 0

    def channel() -> ChannelMixer:
        if some:
            return granite_experts(config)
        return replace(mlp(config, width), weights=granite_shared(config), fused_gate_up=True)

    built = hybrid(
        config,
        config.layer_types(num_layers(config), lambda _: LINEAR, (LINEAR, FULL)),
        {
            FULL: lambda: attention(config, qkv_bias=bias, output_bias=bias, rotary=rotary),
            LINEAR: lambda: mamba2_of(config),
        },
        {DENSE: channel},
    )
    return decoder(config, built)


@family("nemotron_h")
def nemotron_h(config: Config) -> Architecture:
    """Nemotron-H and Nano 2/3: each layer is one mixer, Mamba-2, attention, dense or experts."""
    types = nemotron_types(config)
    heads, width = config.size("mamba_num_heads"), config.size("mamba_head_dim")

    def state_space() -> Recurrent:
        return mamba2(
            config,
            path="mixer",
            inner=heads * width,
            heads=heads,
            head_dim=width,
            state=config.size("ssm_state_size"),
            groups=config.size("mamba_n_groups", "n_groups"),
            kernel=config.size("mamba_d_conv", "conv_kernel"),
            bias=config.flag("use_bias"),
            conv_bias=config.flag("mamba_conv_bias", "use_conv_bias"),
        )

    made: dict[str, Callable[[], tuple[SequenceMixer | None, ChannelMixer | None]]] = {
        LINEAR: lambda: (state_space(), None),
        FULL: lambda: (attention(config, path="mixer", rotary=False), None),
        "mlp": lambda: (None, replace(mlp(config, path="mixer", gated=False, bias=config.flag("mlp_bias")), activation="relu2")),
        "moe": lambda: (None, nemotron_experts(config)),
    }
    layers = {name: block(config, *made[name](), norms=("norm",)) for name in dict.fromkeys(types)}
    return decoder(config, [layers[name] for name in types], norm_name="norm_f", embed="embeddings", can_tie=False)


def nemotron_types(config: Config) -> tuple[str, ...]:
    """The kind of each layer: a list of names, or a pattern of letters (M Mamba, E experts, * attention, - dense)."""
    letters = {"M": LINEAR, "E": "moe", "*": FULL, "-": "mlp"}
    pattern = config.text("hybrid_override_pattern")
    names = config.names("layer_types", "layers_block_type")
    if names is None and not pattern:
        return (LINEAR, "moe", FULL, "mlp")
    if names is None:
        for letter in sorted(set(pattern) - set(letters)):
            config.reader.fault("hybrid_override_pattern", f"must hold only the letters {' '.join(letters)}; got {letter!r}")
        names = tuple(letters.get(letter, LINEAR) for letter in pattern)
    return config.layer_types(
        len(names), lambda index: names[index], (LINEAR, FULL, "mlp", "moe"), "layer_types", "layers_block_type"
    )


def nemotron_experts(config: Config) -> MixtureOfExperts:
    """Experts without a gate, in a narrower latent space when ``moe_latent_size`` says so."""
    hidden, bias = config.size("hidden_size"), config.flag("mlp_bias")
    latent = config.optional("moe_latent_size")
    width, shared = config.size("moe_intermediate_size"), config.size("moe_shared_expert_intermediate_size")
    count, per_token = routed(config, "n_routed_experts")
    weights = (
        *linear("mixer.gate", count, hidden, role="router"),
        Weight("mixer.gate.e_score_correction_bias", (count,), "bias", dtype="fp32", is_buffer=True),
        *experts("mixer.experts", count, latent or hidden, width, gated=False),
        *mlp(config, shared, path="mixer.shared_experts", gated=False, bias=bias).weights,
    )
    if latent:
        weights += linear("mixer.fc1_latent_proj", latent, hidden, bias=bias)
        weights += linear("mixer.fc2_latent_proj", hidden, latent, bias=bias)
    return MixtureOfExperts(count, min(per_token, count), width, False, "relu2", weights, shared)


def qwen_next_types(config: Config) -> tuple[str, ...]:
    """One full layer in ``full_attention_interval``."""
    interval = config.optional("full_attention_interval") or 4
    return config.layer_types(num_layers(config), lambda index: LINEAR if (index + 1) % interval else FULL, (LINEAR, FULL))


def qwen_delta(config: Config, *, fused: bool) -> Recurrent:
    """Qwen's gated delta net: two fused projections in Qwen3-Next, four in Qwen3.5."""
    keys, values, heads = delta_widths(config)
    widths = {"in_proj_qkvz": 2 * (keys + values), "in_proj_ba": 2 * heads}
    if not fused:
        widths = {"in_proj_qkv": 2 * keys + values, "in_proj_z": values, "in_proj_b": heads, "in_proj_a": heads}
    hidden = config.size("hidden_size")
    projections = tuple(weight for name, width in widths.items() for weight in linear(f"linear_attn.{name}", width, hidden))
    return gated_delta_net(config, projections=projections, path="linear_attn", norm="norm", output="out_proj")


def qwen_next_experts(config: Config, *, fused: bool) -> MixtureOfExperts:
    """Routed experts and a gated shared one."""
    return moe(
        config,
        *routed(config, "num_experts"),
        config.size("moe_intermediate_size"),
        shared="shared_expert",
        shared_width=config.size("shared_expert_intermediate_size", minimum=0),
        shared_gate=True,
        fused=fused,
    )


@family("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
def qwen3_next(config: Config) -> Architecture:
    """Qwen3-Next, Qwen3.5 and 3.6: gated delta nets, one gated full-attention layer in four."""
    kind = config.text("model_type")
    bias = config.flag("attention_bias")
    first = kind == "qwen3_next"
    channel_types = qwen_sparse(config) if first else (DENSE if kind == "qwen3_5_text" else SPARSE,) * num_layers(config)
    built = hybrid(
        config,
        qwen_next_types(config),
        {
            FULL: lambda: attention(config, qkv_bias=bias, output_bias=bias, qk_norm="per_head", output_gate=True),
            LINEAR: lambda: qwen_delta(config, fused=first),
        },
        {DENSE: lambda: mlp(config), SPARSE: lambda: qwen_next_experts(config, fused=not first)},
        channel_types,
    )
    return decoder(config, built)


@family("olmo_hybrid")
def olmo_hybrid(config: Config) -> Architecture:
    """OLMo Hybrid: gated delta nets with norms before, OLMo 2's attention with norms after the mixers."""
    layers, heads = num_layers(config), config.size("num_attention_heads")
    hidden, bias = config.size("hidden_size"), config.flag("attention_bias")
    types = config.layer_types(
        layers, lambda index: FULL if index % 4 == 3 or layers < 4 and index == layers - 1 else LINEAR, (LINEAR, FULL)
    )
    filled = with_defaults(config, linear_num_key_heads=heads, linear_num_value_heads=heads)
    key_dim = filled.optional("linear_key_head_dim") or int(0.75 * hidden / filled.size("linear_num_key_heads"))
    filled = with_defaults(filled, linear_key_head_dim=key_dim, linear_value_head_dim=2 * key_dim)

    def delta() -> Recurrent:
        keys, values, count = delta_widths(filled)
        widths = {"q_proj": keys, "k_proj": keys, "v_proj": values, "a_proj": count, "b_proj": count, "g_proj": values}
        projections = tuple(weight for name, width in widths.items() for weight in linear(f"linear_attn.{name}", width, hidden))
        return gated_delta_net(filled, projections=projections, path="linear_attn", norm="o_norm", output="o_proj")

    built = hybrid(
        config,
        types,
        {FULL: lambda: attention(config, qkv_bias=bias, output_bias=bias, qk_norm="full_width"), LINEAR: delta},
        {DENSE: lambda: mlp(config)},
        norms={FULL: ("post_attention_layernorm", "post_feedforward_layernorm"), LINEAR: PRE},
    )
    return decoder(config, built)


def with_defaults(config: Config, **values: int) -> Config:
    """The same config with other defaults where its type has none; null reads as absent for these keys."""
    given = {key: value for key, value in config.values.items() if key not in values or value is not None}
    known = {**config.defaults.values, **{key: value for key, value in values.items() if config.defaults.values.get(key) is None}}
    found = Config(given, replace(config.defaults, values=known), reader=config.reader, base=config.base, head=config.head)
    found.sources, found.notes, found.read = config.sources, config.notes, config.read
    return found


@family("minimax")
def minimax(config: Config) -> Architecture:
    """MiniMax-01: lightning attention, softmax attention in some layers, experts everywhere."""
    hidden = config.size("hidden_size")
    heads, _, head_dim = head_counts(config)
    chunk = config.size("block_size")
    buffers = {"slope_rate": (heads, 1, 1), "query_decay": (heads, chunk, 1), "key_decay": (heads, chunk, 1)}
    buffers["diagonal_decay"] = (1, heads, chunk, chunk)  # type: ignore[assignment]
    path = "self_attn"
    weights = (
        *scale(f"{path}.norm", heads * head_dim),
        *linear(f"{path}.qkv_proj", 3 * heads * head_dim, hidden),
        *linear(f"{path}.out_proj", hidden, heads * head_dim),
        *linear(f"{path}.output_gate", heads * head_dim, hidden),
        *(Weight(f"{path}.{name}", shape, "other", is_buffer=True) for name, shape in buffers.items()),
    )
    lightning = Recurrent(
        "lightning",
        weights,
        state_numel=heads * head_dim * head_dim,
        state_dtype=None,
        num_heads=heads,
        head_dim=head_dim,
        state_dim=head_dim,
        inner_dim=heads * head_dim,
    )
    built = hybrid(
        config,
        config.layer_types(num_layers(config), lambda index: FULL if (index + 1) % 2 else LINEAR, (LINEAR, FULL)),
        {FULL: lambda: attention(config), LINEAR: lambda: lightning},
        {DENSE: lambda: moe(config, *routed(config), config.size("intermediate_size"))},
    )
    return decoder(config, built)


@family("kimi_linear")
def kimi_linear(config: Config) -> Architecture:
    """Kimi Linear: Kimi delta attention, latent attention without rotary embedding in some layers, experts."""
    inner = config.mapping("linear_attn_config")
    hidden = config.size("hidden_size")
    linear_config = Config(inner, config.defaults, reader=config.reader.child("linear_attn_config"))
    heads = linear_config.size("num_heads") if "num_heads" in inner else config.size("linear_num_heads")
    head_dim = linear_config.size("head_dim") if "head_dim" in inner else config.size("linear_head_dim")
    kernel = (
        linear_config.size("short_conv_kernel_size") if "short_conv_kernel_size" in inner else config.size("linear_conv_kernel_dim")
    )
    full = linear_config.integers("full_attn_layers")
    linear_config.integers("kda_layers")
    width = heads * head_dim
    gates = (
        Weight("self_attn.forget_gate.dt_bias", (width,), "other"),
        Weight("self_attn.forget_gate.A_log", (1, 1, heads, 1), "other"),
        *linear("self_attn.forget_gate.f_a_proj", head_dim, hidden),
        *linear("self_attn.forget_gate.f_b_proj", width, head_dim),
        *linear("self_attn.g_a_proj", head_dim, hidden),
        *linear("self_attn.g_b_proj", width, head_dim),
    )

    def rule(index: int) -> str:
        if full is not None and "kda_layers" in inner:
            return FULL if index + 1 in full else LINEAR
        return FULL if index and index % 4 == 0 else LINEAR

    built = hybrid(
        config,
        config.layer_types(num_layers(config), rule, (LINEAR, FULL)),
        {
            FULL: lambda: latent_attention(config),
            LINEAR: lambda: kimi_delta(config, heads=heads, head_dim=head_dim, kernel=kernel, gates=gates),
        },
        {DENSE: lambda: mlp(config), SPARSE: lambda: deepseek_experts(config)},
        mlp_types(config, after_dense(config, default=1)),
    )
    return decoder(config, built, can_tie=False)


@family("bailing_hybrid")
def bailing(config: Config) -> Architecture:
    """Ling/Ring 2.5 linear: Kimi delta attention, gated latent attention in one layer of a group, experts."""
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    # a config transformers saved has its own keys: there head_dim is the rotary part's
    head_dim, count = config.size("linear_head_dim", "head_dim"), config.size("linear_num_heads", "num_attention_heads")
    group, width = config.size("layer_group_size"), count * head_dim
    gates = (
        Weight("self_attn.forget_gate.A_log", (count,), "other"),
        Weight("self_attn.forget_gate.dt_bias", (width,), "other"),
        *linear("self_attn.forget_gate.f_proj", width, hidden),
        *linear("self_attn.g_proj", width, hidden),
    )
    kernel = config.size("linear_conv_kernel_dim", "short_conv_kernel_size")
    plain = with_head(config, q_lora_rank=None)
    built = hybrid(
        config,
        config.layer_types(num_layers(config), lambda index: LINEAR if (index + 1) % group else FULL, (LINEAR, FULL)),
        {
            FULL: lambda: latent_attention(plain, extra=linear("self_attn.g_proj", heads, hidden)),
            LINEAR: lambda: kimi_delta(config, heads=count, head_dim=head_dim, kernel=kernel, gates=gates),
        },
        {DENSE: lambda: mlp(config), SPARSE: lambda: deepseek_experts(config)},
        mlp_types(config, after_dense(config)),
    )
    return decoder(config, built, can_tie=False)


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
    return decoder(config, built, norm_name="embedding_norm")


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
    hidden, heads = config.size("hidden_size", "embedding_dim"), config.size("num_heads")
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
    count = config.size("num_hidden_layers", "num_blocks", maximum=4096)
    return decoder(config, [layer] * count, can_tie=False, norm_name="out_norm", embed="embeddings", layers_name="blocks")


def rms_norm_with_bias(name: str, width: int) -> Norm:
    """RMSNorm with a scale and a bias."""
    return Norm(name, width, "rms", (*scale(name, width), Weight(f"{name}.bias", (width,), "bias")))


def rounded(value: float, multiple: int) -> int:
    """Up to the next multiple."""
    return int((value + multiple - 1) // multiple * multiple)


def zamba_types(config: Config) -> tuple[str, ...]:
    """``hybrid`` where the shared transformer precedes the state space."""
    layers = num_layers(config)
    if config.text("model_type") == "zamba2":
        default = (
            (LINEAR,)
            + ((LINEAR,) * 5 + ("hybrid",)) * 7
            + (LINEAR,) * 4
            + ("hybrid",)
            + (LINEAR,) * 3
            + ("hybrid",)
            + (LINEAR,) * 2
        )
        return config.layer_types(
            layers, lambda index: default[index] if index < len(default) else LINEAR, (LINEAR, "hybrid"), "layers_block_type"
        )
    period, offset = config.size("attn_layer_period"), config.size("attn_layer_offset", minimum=0)
    return config.layer_types(
        layers,
        lambda index: "hybrid" if index == 2 or (index > 2 and (index - 3) % period == offset) else LINEAR,
        (LINEAR, "hybrid"),
        "layers_block_type",
    )


@family("zamba")
def zamba(config: Config) -> Architecture:
    """Zamba: Mamba with one transformer block whose weights serve several layers."""
    hidden = config.size("hidden_size")
    wide = config.optional("attention_hidden_size") or 2 * hidden
    heads = config.size("num_attention_heads")
    head_dim = config.optional("attention_head_dim") or max(2 * hidden // heads, 1)
    kv_heads = config.optional("num_key_value_heads") or heads
    shared = zamba_attention(config, "shared_transf", wide, heads, kv_heads, head_dim)
    channel = mlp(config, path="shared_transf.feed_forward")
    norms = (
        *rms_norm("shared_transf.input_layernorm", wide).weights,
        *rms_norm("shared_transf.pre_ff_layernorm", hidden).weights,
    )
    types = zamba_types(config)
    plain = block(config, zamba_mamba(config, "mamba"), None, norms=("input_layernorm",))
    inner = zamba_mamba(config, "mamba_decoder.mamba")
    tail = linear("linear", hidden, hidden)
    first, later = (
        block(config, inner, replace(channel, weights=weights), norms=("mamba_decoder.input_layernorm",), weights=tail + own)
        for weights, own in ((channel.weights, norms), ((), ()))
    )
    first = replace(first, sequence=(shared, inner))
    # transformers shares the block by the same switch that ties the head
    later = replace(later, sequence=(replace(shared, weights=()), inner)) if config.flag("tie_word_embeddings") else first
    start = types.index("hybrid") if "hybrid" in types else -1
    layers = [plain if name == LINEAR else first if index == start else later for index, name in enumerate(types)]
    return decoder(config, layers, norm_name="final_layernorm")


def zamba_attention(config: Config, path: str, wide: int, heads: int, kv_heads: int, head_dim: int) -> Any:
    """Attention over the layer's input beside the embeddings: twice the hidden size in, once out."""
    mixer = attention(
        config,
        path=f"{path}.self_attn",
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden=wide,
        rotary=config.flag("use_mem_rope"),
    )
    output = linear(f"{path}.self_attn.o_proj", config.size("hidden_size"), heads * head_dim)
    return replace(mixer, weights=(*mixer.weights[:-1], *output))


def zamba_mamba(config: Config, path: str) -> Recurrent:
    """Zamba's Mamba: the step and state projections in heads."""
    hidden, heads = config.size("hidden_size"), config.size("n_mamba_heads")
    inner = int(config.number("mamba_expand", default=2) * hidden)
    state, kernel, rank = config.size("mamba_d_state"), config.size("mamba_d_conv"), step_rank(config, "mamba_dt_rank")
    width = inner // heads
    bias = config.flag("mamba_proj_bias")
    weights = (
        Weight(f"{path}.x_proj_weight", (heads, rank + 2 * state, width), "other"),
        Weight(f"{path}.dt_proj_weight", (heads, width, rank), "other"),
        Weight(f"{path}.dt_proj_bias", (heads, width), "bias"),
        Weight(f"{path}.A_log", (heads, width, state), "other"),
        Weight(f"{path}.D", (heads, width), "other"),
        *convolution(f"{path}.conv1d", inner, 1, kernel, bias=config.flag("mamba_conv_bias")),
        *linear(f"{path}.in_proj", 2 * inner, hidden, bias=bias),
        *linear(f"{path}.out_proj", hidden, inner, bias=bias),
    )
    return Recurrent(
        "mamba",
        weights,
        conv_channels=inner,
        conv_kernel=kernel,
        state_numel=inner * state,
        num_heads=heads,
        state_dim=state,
        inner_dim=inner,
    )


@family("zamba2")
def zamba2(config: Config) -> Architecture:
    """Zamba2: Mamba-2 with transformer blocks whose weights serve several layers, adapted by low-rank pairs."""
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    types = zamba_types(config)
    hybrids = [index for index, name in enumerate(types) if name == "hybrid"]
    blocks = config.size("num_mem_blocks")
    plain = block(config, zamba2_mamba(config, "mamba"), None, norms=("input_layernorm",))
    inner = zamba2_mamba(config, "mamba_decoder.mamba")
    bare = attention(
        config,
        heads=heads,
        head_dim=max(2 * hidden // heads, 1),
        kv_heads=config.optional("num_key_value_heads") or heads,
        hidden=2 * hidden,
    )
    width = config.optional("intermediate_size") or 4 * hidden
    channel = replace(mlp(config, width, fused="gate_up_proj"), weights=(), activation=config.text("hidden_act", default="gelu"))
    base = block(config, inner, channel, norms=("mamba_decoder.input_layernorm",), weights=linear("linear", hidden, hidden))
    base = replace(base, sequence=(replace(bare, weights=()), inner))
    owners = {
        index: replace(base, weights=base.weights + zamba2_block(config, len(hybrids), order % blocks, bare.weights, width))
        for order, index in enumerate(hybrids)
        if order < blocks or not config.flag("tie_word_embeddings")
    }
    layers = [plain if name == LINEAR else owners.get(index, base) for index, name in enumerate(types)]
    return decoder(config, layers, norm_name="final_layernorm")


def zamba2_block(config: Config, hybrids: int, order: int, attended: tuple[Weight, ...], width: int) -> tuple[Weight, ...]:
    """One shared block: attention, feed-forward, norms, and an adapter for each layer it serves."""
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    rank, bias, at = config.size("adapter_rank"), config.flag("add_bias_linear"), "shared_transformer"
    served = [index for index in range(hybrids) if index % config.size("num_mem_blocks") == order]
    adapted = {"feed_forward.gate_up_proj_adapter_list": (hidden, 2 * width)}
    if config.flag("use_shared_attention_adapter"):
        adapted |= {f"self_attn.linear_{name}_adapter_list": (2 * hidden, 2 * hidden) for name in "qkv"}
    return (
        *(replace(weight, name=f"{at}.{weight.name}") for weight in attended[:-1]),
        *linear(f"{at}.self_attn.o_proj", hidden, heads * max(2 * hidden // heads, 1)),
        *mlp(config, width, path=f"{at}.feed_forward", fused="gate_up_proj", bias=bias).weights,
        *scale(f"{at}.input_layernorm", 2 * hidden),
        *scale(f"{at}.pre_ff_layernorm", hidden),
        *(
            weight
            for index in served
            for name, (inputs, outputs) in adapted.items()
            for weight in (
                *linear(f"{at}.{name}.{index}.0", rank, inputs),
                *linear(f"{at}.{name}.{index}.1", outputs, rank),
            )
        ),
    )


def zamba2_mamba(config: Config, path: str) -> Recurrent:
    """Zamba2's Mamba-2."""
    inner, heads = int(config.number("mamba_expand", default=2) * config.size("hidden_size")), config.size("n_mamba_heads")
    return mamba2(
        config,
        path=path,
        inner=inner,
        heads=heads,
        head_dim=inner // heads,
        state=config.size("mamba_d_state"),
        groups=config.size("mamba_ngroups"),
        kernel=config.size("mamba_d_conv"),
        bias=config.flag("add_bias_linear"),
        conv_bias=True,
    )
