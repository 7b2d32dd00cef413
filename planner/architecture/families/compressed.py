"""DeepSeek-V4: a window beside compressed entries of older tokens."""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.blocks import block, decoder, linear, moe, num_layers, scale
from planner.architecture.config import Config
from planner.architecture.families.latent import hyper_connection, hyper_head, sparse_indexer
from planner.architecture.families.registry import family
from planner.architecture.layers import (
    Architecture,
    Attention,
    Compression,
    Indexer,
    Layer,
    MixtureOfExperts,
    Weight,
)

SLIDING, CSA, HCA = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"


@family("deepseek_v4")
def deepseek_v4(config: Config) -> Architecture:
    """DeepSeek-V4: one windowed key-value head beside compressed entries of 4 or 128 tokens, several residual streams."""
    rows = (2 + config.size("hc_mult")) * config.size("hc_mult")
    streams = (*hyper_connection(config, "attn_hc", rows, 3), *hyper_connection(config, "ffn_hc", rows, 3))
    types = compressed_types(config)
    channels = v4_mlp_types(config)
    mixers = {name: compressed_attention(config, name) for name in dict.fromkeys(types)}
    experts = {name: v4_experts(config, hashed=name == "hash_moe") for name in dict.fromkeys(channels)}
    kinds = list(zip(types, channels, strict=False))
    made = {kind: wide(block(config, mixers[kind[0]], experts[kind[1]], weights=streams)) for kind in dict.fromkeys(kinds)}
    found = decoder(config, [made[kind] for kind in kinds], weights=in_fp32(hyper_head(config)))
    assert found.final_norm is not None  # noqa: S101  the decoder has one
    return replace(found, final_norm=replace(found.final_norm, weights=in_fp32(found.final_norm.weights)))


def wide(layer: Layer) -> Layer:
    """The layer with what the class keeps in fp32 marked: norms, sinks, position biases (``_keep_in_fp32_modules_strict``)."""
    return replace(
        layer,
        sequence=tuple(replace(mixer, weights=in_fp32(mixer.weights)) for mixer in layer.sequence),
        norms=tuple(replace(norm, weights=in_fp32(norm.weights)) for norm in layer.norms),
        weights=in_fp32(layer.weights),
    )


def in_fp32(weights: tuple[Weight, ...]) -> tuple[Weight, ...]:
    """Those that are no product's."""
    return tuple(
        replace(weight, dtype="fp32") if weight.role in ("norm", "other") and not weight.is_buffer else weight for weight in weights
    )


def compressed_types(config: Config) -> tuple[str, ...]:
    """DeepSeek-V4's layer kinds: the list, else a compression ratio for each layer, else two strong ones, then in turn."""
    layers = num_layers(config)
    ratios = config.integers("compress_ratios")
    names = {0: SLIDING, 4: CSA, 128: HCA}
    for ratio in sorted(set(ratios or ()) - set(names)):
        config.reader.fault("compress_ratios", f"must hold only 0, 4 and 128; got {ratio}")
    if ratios is not None and len(ratios) < layers:
        config.reader.fault("compress_ratios", f"must have one entry for each of the {layers} layers, got {len(ratios)}")

    def rule(index: int) -> str:
        if ratios is not None:
            return names.get(ratios[index] if index < len(ratios) else 0, SLIDING)
        return HCA if index < 2 or index % 2 == 0 else CSA

    return config.layer_types(layers, rule, (SLIDING, CSA, HCA))


def v4_mlp_types(config: Config) -> tuple[str, ...]:
    """DeepSeek-V4's first layers choose experts by a hash of the token."""
    hashed = config.optional("num_hash_layers", minimum=0)
    first = 3 if hashed is None else hashed
    return config.layer_types(
        num_layers(config), lambda index: "hash_moe" if index < first else "moe", ("moe", "hash_moe"), "mlp_layer_types"
    )


def v4_experts(config: Config, *, hashed: bool) -> MixtureOfExperts:
    """DeepSeek-V4's experts: a table from token to experts, or a balancing bias, beside the router."""
    width, count = config.size("moe_intermediate_size"), config.size("n_routed_experts", maximum=2**20)
    per_token = config.size("num_experts_per_tok")
    table = Weight(
        "mlp.gate.tid2eid", (config.size("vocab_size", maximum=2**27), per_token), "other", dtype="int64", is_buffer=True
    )
    return moe(
        config,
        count,
        per_token,
        width,
        shared_width=width,
        shared_bias=config.flag("mlp_bias"),
        correction="" if hashed else "gate.e_score_correction_bias",
        extra=(table,) if hashed else (),
    )


def compressed_attention(config: Config, kind: str) -> Attention:
    """One key-value head with a window, its keys serving as values, beside compressed entries of older tokens."""
    hidden, heads, width = config.size("hidden_size"), config.size("num_attention_heads"), config.size("head_dim")
    rank, groups, group_rank = config.size("q_lora_rank"), config.size("o_groups"), config.size("o_lora_rank")
    at = "self_attn"
    weights = (
        Weight(f"{at}.sinks", (heads,), "other"),
        *linear(f"{at}.q_a_proj", rank, hidden),
        *scale(f"{at}.q_a_norm", rank),
        *linear(f"{at}.q_b_proj", heads * width, rank),
        *linear(f"{at}.kv_proj", width, hidden),
        *scale(f"{at}.kv_norm", width),
        *linear(f"{at}.o_a_proj", groups * group_rank, heads * width // groups),
        *linear(f"{at}.o_b_proj", hidden, groups * group_rank),
    )
    compression = None
    if kind == CSA:
        compression = Compression(compress_rate(config, CSA, 4), 2, sparse_indexer(config))
        weights += compressor(config, f"{at}.compressor", width, compression.rate_tokens, 2)
        weights += csa_indexer(config, f"{at}.compressor.indexer", sparse_indexer(config), compression.rate_tokens)
    elif kind == HCA:
        compression = Compression(compress_rate(config, HCA, 128))
        weights += compressor(config, f"{at}.compressor", width, compression.rate_tokens, 1)
    return Attention(
        num_heads=heads,
        num_kv_heads=1,
        head_dim=width,
        value_head_dim=width,
        weights=weights,
        window_tokens=config.size("sliding_window"),
        rotary_dim=config.optional("qk_rope_head_dim") or width // 8,
        has_sinks=True,
        compression=compression,
    )


def compress_rate(config: Config, kind: str, default: int) -> int:
    """Tokens an entry stands for."""
    rates = config.mapping("compress_rates")
    legacy = config.optional("compress_rate_csa" if kind == CSA else "compress_rate_hca")
    rate = legacy or rates.get(kind, default)
    if isinstance(rate, bool) or not isinstance(rate, int) or not 1 <= rate <= 2**20:
        config.reader.fault("compress_rates", f"must map {kind} to a whole number of tokens")
        return default
    return rate


def compressor(config: Config, path: str, width: int, rate: int, series: int) -> tuple[Weight, ...]:
    """Projects tokens and gates, and sums windows of ``rate`` tokens into one entry."""
    hidden = config.size("hidden_size")
    return (
        Weight(f"{path}.position_bias", (rate, series * width), "other"),
        *linear(f"{path}.kv_proj", series * width, hidden),
        *linear(f"{path}.gate_proj", series * width, hidden),
        *scale(f"{path}.kv_norm", width),
    )


def csa_indexer(config: Config, path: str, indexer: Indexer, rate: int) -> tuple[Weight, ...]:
    """The indexer over compressed entries, with a compressor of its own."""
    return (
        *compressor(config, path, indexer.head_dim, rate, 2),
        *linear(f"{path}.q_b_proj", indexer.num_heads * indexer.head_dim, config.size("q_lora_rank")),
        *linear(f"{path}.scorer.weights_proj", indexer.num_heads, config.size("hidden_size"), role="router", is_linear=True),
    )
