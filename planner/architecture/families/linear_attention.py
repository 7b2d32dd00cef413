"""Linear attention, lightning attention and delta rules, in hybrids with softmax attention."""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.blocks import (
    attention,
    decoder,
    head_counts,
    linear,
    mlp,
    moe,
    num_layers,
    scale,
    with_head,
)
from planner.architecture.config import Config
from planner.architecture.families.hybrids import LINEAR, hybrid
from planner.architecture.families.latent import latent_attention
from planner.architecture.families.llama_like import FULL, PRE
from planner.architecture.families.moe import (
    DENSE,
    SPARSE,
    after_dense,
    deepseek_experts,
    mlp_types,
    qwen_experts,
    qwen_sparse,
    routed,
)
from planner.architecture.families.registry import family
from planner.architecture.layers import (
    Architecture,
    Recurrent,
    Weight,
)
from planner.architecture.recurrent import (
    delta_widths,
    gated_delta_net,
    kimi_delta,
)


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
        {DENSE: lambda: mlp(config), SPARSE: lambda: qwen_experts(config, fused=not first)},
        channel_types,
    )
    return decoder(config, built)


@family("olmo_hybrid")
def olmo_hybrid(config: Config) -> Architecture:
    """OLMo Hybrid: gated delta nets with norms before, OLMo 2's attention with norms after the mixers."""
    layers, heads = num_layers(config), config.size("num_attention_heads")
    hidden, bias = config.size("hidden_size"), config.flag("attention_bias")
    types = config.layer_types(
        layers, lambda index: FULL if index % 4 == 3 or (layers < 4 and index == layers - 1) else LINEAR, (LINEAR, FULL)
    )
    filled = with_defaults(config, linear_num_key_heads=heads, linear_num_value_heads=heads)
    key_dim = filled.optional("linear_key_head_dim") or int(0.75 * hidden / filled.size("linear_num_key_heads"))
    filled = with_defaults(filled, linear_key_head_dim=key_dim, linear_value_head_dim=2 * key_dim)

    def delta() -> Recurrent:
        keys, values, count = delta_widths(filled)
        widths = {"q_proj": keys, "k_proj": keys, "v_proj": values, "a_proj": count, "b_proj": count, "g_proj": values}
        projections = tuple(weight for name, width in widths.items() for weight in linear(f"linear_attn.{name}", width, hidden))
        return gated_delta_net(filled, projections=projections, path="linear_attn", norm="o_norm", output="o_proj")

    rotary = config.mapping("rope_parameters").get("rope_theta", 0) is not None  # null in the published config: no positions
    built = hybrid(
        config,
        types,
        {FULL: lambda: attention(config, qkv_bias=bias, output_bias=bias, qk_norm="full_width", rotary=rotary), LINEAR: delta},
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
        chunk_tokens=chunk,
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
