"""Decoders with latent attention: keys and values come from one compressed vector a token (DeepSeek-V2 2024)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from planner.architecture.blocks import block, decoder, layer_norm, linear, mlp, num_layers, rms_norm, scale
from planner.architecture.config import Config
from planner.architecture.families.moe import DENSE, SPARSE, after_dense, deepseek_experts, mlp_types
from planner.architecture.families.registry import family
from planner.architecture.layers import (
    Architecture,
    ChannelMixer,
    Indexer,
    LatentAttention,
    Layer,
    MixtureOfExperts,
    Norm,
    Weight,
)


def latent_attention(
    config: Config,
    *,
    path: str = "self_attn",
    with_indexer: bool = False,
    fused_gate: bool = False,
    extra: tuple[Weight, ...] = (),
) -> LatentAttention:
    """Multi-head latent attention; with the indexer of sparse attention when asked.

    ``fused_gate``: queries and an output gate come from one linear over two compressed vectors (A.X K2).
    """
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    query_rank, rank = config.optional("q_lora_rank"), config.size("kv_lora_rank")
    nope, rope = config.size("qk_nope_head_dim", minimum=0), config.size("qk_rope_head_dim")
    value = config.optional("v_head_dim") or max(hidden // heads, 1)
    bias = config.flag("attention_bias")
    if query_rank is None:
        weights = linear(f"{path}.q_proj", heads * (nope + rope), hidden)
    else:
        weights = (*linear(f"{path}.q_a_proj", query_rank, hidden, bias=bias), *scale(f"{path}.q_a_layernorm", query_rank))
        if fused_gate:
            weights += linear(f"{path}.q_gate_proj", heads * (nope + rope + value), 2 * query_rank)
        else:
            weights += linear(f"{path}.q_b_proj", heads * (nope + rope), query_rank)
    weights += (
        *linear(f"{path}.kv_a_proj_with_mqa", rank + rope, hidden, bias=bias),
        *scale(f"{path}.kv_a_layernorm", rank),
        *linear(f"{path}.kv_b_proj", heads * (nope + value), rank),
        *linear(f"{path}.o_proj", hidden, heads * value, bias=bias),
    )
    indexer = sparse_indexer(config) if with_indexer else None
    if indexer is not None:
        weights += indexer_weights(config, indexer, f"{path}.indexer")
    return LatentAttention(heads, query_rank, rank, nope, rope, value, weights + extra, indexer)


def sparse_indexer(config: Config) -> Indexer:
    """The indexer a config describes."""
    return Indexer(config.size("index_n_heads"), config.size("index_head_dim"), config.size("index_topk"))


def indexer_weights(config: Config, indexer: Indexer, path: str) -> tuple[Weight, ...]:
    """Queries from the compressed query, one key for all heads, a weight for each head."""
    hidden = config.size("hidden_size")
    return (
        *linear(f"{path}.wq_b", indexer.num_heads * indexer.head_dim, config.size("q_lora_rank")),
        *linear(f"{path}.wk", indexer.head_dim, hidden),
        *layer_norm(f"{path}.k_norm", indexer.head_dim).weights,
        *linear(f"{path}.weights_proj", indexer.num_heads, hidden, role="router", is_linear=True),
    )


def by_kind(
    mixers: Mapping[str, Callable[[], LatentAttention]],
    mixer_types: tuple[str, ...],
    channels: Mapping[str, Callable[[], ChannelMixer]],
    channel_types: tuple[str, ...],
    assemble: Callable[[LatentAttention, ChannelMixer, str], Layer],
) -> list[Layer]:
    """Layers from a kind of mixer and a kind of channel mixer each; equal ones are one object."""
    made_mixers = {name: mixers[name]() for name in dict.fromkeys(mixer_types)}
    made_channels = {name: channels[name]() for name in dict.fromkeys(channel_types)}
    kinds = list(zip(mixer_types, channel_types, strict=False))
    made = {kind: assemble(made_mixers[kind[0]], made_channels[kind[1]], kind[1]) for kind in dict.fromkeys(kinds)}
    return [made[kind] for kind in kinds]


def latent_decoder(
    config: Config, experts: Callable[[], ChannelMixer], channel_types: tuple[str, ...], *, bias: bool = False
) -> Architecture:
    """Latent attention everywhere, experts where ``channel_types`` says so."""
    layers = by_kind(
        {"": lambda: latent_attention(config)},
        ("",) * len(channel_types),
        {SPARSE: experts, DENSE: lambda: mlp(config, bias=bias)},
        channel_types,
        lambda mixer, channel, _: block(config, mixer, channel),
    )
    return decoder(config, layers)


@family("deepseek_v2")
def deepseek_v2(config: Config) -> Architecture:
    """DeepSeek-V2: experts after the first layers, no balancing bias."""
    first = after_dense(config)
    types = tuple(SPARSE if first(index) else DENSE for index in range(num_layers(config)))
    bias = config.flag("mlp_bias")
    return latent_decoder(config, lambda: deepseek_experts(config, fixed=True, bias=bias), types, bias=bias)


@family("deepseek_v3", "kimi_k2", "mistral4")
def deepseek_v3(config: Config) -> Architecture:
    """DeepSeek-V3 and R1, Kimi K2: experts with a balancing bias after the first layers."""
    first = after_dense(config)
    fixed = config.text("model_type") == "mistral4"
    types = tuple(SPARSE if first(index) else DENSE for index in range(num_layers(config)))
    return latent_decoder(config, lambda: deepseek_experts(config, fixed=fixed), types)


@family("glm4_moe_lite")
def glm4_lite(config: Config) -> Architecture:
    """GLM-4.7-Flash: DeepSeek-V3's build, one dense layer."""
    return latent_decoder(config, lambda: deepseek_experts(config), mlp_types(config, bool))


@family("axk1")
def axk1(config: Config) -> Architecture:
    """A.X K1: DeepSeek-V3's build with a norm after the experts."""
    hidden = config.size("hidden_size")
    frequency = config.optional("moe_layer_freq") or 1
    first = after_dense(config, default=1)

    def experts() -> MixtureOfExperts:
        found = deepseek_experts(config)
        return MixtureOfExperts(
            found.num_experts,
            found.experts_per_token,
            found.intermediate_size,
            found.gated,
            found.activation,
            (*found.weights, *scale("mlp.post_mlp_layernorm", hidden)),
            found.shared_intermediate_size,
        )

    return latent_decoder(config, experts, mlp_types(config, lambda index: first(index) and index % frequency == 0))


@family("youtu", "minicpm3")
def dense_latent(config: Config) -> Architecture:
    """Latent attention with a dense feed-forward block."""
    channel = mlp(config, bias=config.flag("mlp_bias") and config.text("model_type") == "minicpm3")
    return decoder(config, [block(config, latent_attention(config), channel)] * num_layers(config))


@family("deepseek_v32", "glm_moe_dsa")
def sparse_attention(config: Config) -> Architecture:
    """DeepSeek-V3.2, GLM-5: latent attention whose indexer picks the tokens; some layers reuse the last choice."""
    types = indexer_types(config) if config.text("model_type") == "glm_moe_dsa" else ("full",) * num_layers(config)
    layers = by_kind(
        {"full": lambda: latent_attention(config, with_indexer=True), "shared": lambda: latent_attention(config)},
        types,
        {SPARSE: lambda: deepseek_experts(config), DENSE: lambda: mlp(config)},
        mlp_types(config, after_dense(config)),
        lambda mixer, channel, _: block(config, mixer, channel),
    )
    return decoder(config, layers)


def indexer_types(config: Config) -> tuple[str, ...]:
    """``full`` or ``shared`` for each layer: GLM-5's list, its pattern of letters, or its frequency."""
    layers = num_layers(config)
    pattern = config.get("index_topk_pattern")
    frequency = config.optional("index_topk_freq") or 1
    offset = config.optional("index_skip_topk_offset", minimum=0)
    offset = 2 if offset is None else offset

    def rule(index: int) -> str:
        if isinstance(pattern, str):
            return "shared" if index < len(pattern) and pattern[index] == "S" else "full"
        return "shared" if max(index - offset + 1, 0) % frequency else "full"

    return config.layer_types(layers, rule, ("full", "shared"), "indexer_types")


@family("axk2")
def axk2(config: Config) -> Architecture:
    """A.X K2: sparse latent attention with an output gate, norms weighed by a small network."""
    hidden, rank = config.size("hidden_size"), config.size("gated_norm_rank")
    frequency = config.optional("moe_layer_freq") or 1
    first = after_dense(config, default=1)

    def gated_norm(name: str) -> Norm:
        weights = (
            *scale(f"{name}.norm", hidden),
            *linear(f"{name}.mlp.fc1", rank, hidden),
            *linear(f"{name}.mlp.fc2", hidden, rank),
        )
        return Norm(name, hidden, "rms", weights)

    def assemble(mixer: LatentAttention, channel: ChannelMixer, kind: str) -> Layer:
        name = "post_attention_layernorm"
        after = gated_norm(name) if kind == SPARSE else rms_norm(name, hidden)
        return Layer((mixer,), (channel,), (gated_norm("input_layernorm"), after))

    types = mlp_types(config, lambda index: first(index) and index % frequency == 0)
    layers = by_kind(
        {"": lambda: latent_attention(config, with_indexer=True, fused_gate=True)},
        ("",) * len(types),
        {SPARSE: lambda: deepseek_experts(config), DENSE: lambda: mlp(config)},
        types,
        assemble,
    )
    return decoder(config, layers)


def hyper_connection(config: Config, path: str, rows: int, scales: int) -> tuple[Weight, ...]:
    """The mixing of several residual streams around a mixer (hyper-connections, Zhu et al. 2024)."""
    streams, hidden = config.size("hc_mult"), config.size("hidden_size")
    return (
        Weight(f"{path}.fn", (rows, streams * hidden), "other"),
        Weight(f"{path}.base", (rows,), "other"),
        Weight(f"{path}.scale", (scales,), "other"),
    )


def hyper_head(config: Config) -> tuple[Weight, ...]:
    """The mixing of the residual streams after the last layer."""
    streams, hidden = config.size("hc_mult"), config.size("hidden_size")
    path = f"{config.base}hc_head"
    return (
        Weight(f"{path}.hc_fn", (streams, streams * hidden), "other"),
        Weight(f"{path}.hc_base", (streams,), "other"),
        Weight(f"{path}.hc_scale", (1,), "other"),
    )


@family("hy_v4")
def hy_v4(config: Config) -> Architecture:
    """Hunyuan 4: sparse latent attention with sinks and an output gate, several residual streams."""
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    rows = 2 * config.size("hc_mult")
    streams = (*hyper_connection(config, "attn_hc", rows, 2), *hyper_connection(config, "ffn_hc", rows, 2))
    extra = (
        Weight("self_attn.sinks", (heads,), "other"),
        *linear("self_attn.gate_proj", heads * config.size("v_head_dim"), hidden),
    )
    types = config.layer_types(
        num_layers(config), lambda index: "shared" if index and (index - 1) % 4 else "full", ("full", "shared"), "indexer_types"
    )
    layers = by_kind(
        {
            "full": lambda: latent_attention(config, with_indexer=True, extra=extra),
            "shared": lambda: latent_attention(config, extra=extra),
        },
        types,
        {SPARSE: lambda: deepseek_experts(config), DENSE: lambda: mlp(config)},
        mlp_types(config, bool),
        lambda mixer, channel, _: block(config, mixer, channel, weights=streams),
    )
    return decoder(config, layers, weights=hyper_head(config))


@family("longcat_flash")
def longcat(config: Config) -> Architecture:
    """LongCat-Flash: two latent attentions and two dense blocks a layer, experts beside them, some of them identities."""
    hidden = config.size("hidden_size")
    width, zero = config.size("moe_intermediate_size"), config.optional("zero_expert_num", minimum=0) or 0
    count = config.size("num_local_experts", maximum=2**20)
    # transformers allocates gate and up of the identity experts too, but no down
    experts = (
        Weight("mlp.experts.gate_up_proj", (2 * width, hidden), "expert", count + zero),
        Weight("mlp.experts.down_proj", (hidden, width), "expert", count),
    )
    balance = Weight("mlp.router.e_score_correction_bias", (count + zero,), "bias", dtype="fp32", is_buffer=True)
    router = linear("mlp.router.classifier", count + zero, hidden, bias=config.flag("router_bias"), role="router", is_linear=True)
    queries = config.size("qk_nope_head_dim", minimum=0) + config.size("qk_rope_head_dim")
    config.require(config.optional("qk_head_dim") in (None, queries), "qk_head_dim", f"must be the sum of both parts ({queries})")
    sparse = MixtureOfExperts(count + zero, config.size("num_experts_per_tok"), width, True, "silu", (*router, *experts, balance))
    inner = config.size("intermediate_size")
    layer = Layer(
        tuple(latent_attention(config, path=f"self_attn.{index}") for index in (0, 1)),
        (sparse, *(mlp(config, inner, path=f"mlps.{index}") for index in (0, 1))),
        tuple(rms_norm(f"{name}.{index}", hidden) for name in ("input_layernorm", "post_attention_layernorm") for index in (0, 1)),
    )
    return decoder(config, [layer] * config.size("num_layers", maximum=4096))
