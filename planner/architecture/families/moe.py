"""Decoders with routed experts and per-head keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from planner.architecture.blocks import attention, block, decoder, layer_norm, linear, mlp, moe, num_layers
from planner.architecture.config import Config
from planner.architecture.families.llama_like import (
    FULL,
    POST,
    PRE,
    SLIDING,
    every,
    pattern_windows,
    rotated_by_layer,
    window_kinds,
)
from planner.architecture.families.registry import family
from planner.architecture.layers import Architecture, Attention, ChannelMixer, Layer, MixtureOfExperts, Weight

DENSE, SPARSE = "dense", "sparse"


def mixed(
    windows: Sequence[int | None],
    mlp_types: Sequence[str],
    mixer: Callable[[int | None], Attention],
    channels: dict[str, Callable[[], ChannelMixer]],
    assemble: Callable[[Attention, ChannelMixer], Layer],
) -> list[Layer]:
    """Layers that differ in their window and in having experts or not; equal ones are one object."""
    kinds = list(zip(windows, mlp_types, strict=False))
    mixers = {window: mixer(window) for window in dict.fromkeys(windows)}
    blocks = {name: channels[name]() for name in dict.fromkeys(mlp_types)}
    made = {kind: assemble(mixers[kind[0]], blocks[kind[1]]) for kind in dict.fromkeys(kinds)}
    return [made[kind] for kind in kinds]


def sparse_decoder(
    config: Config,
    experts: Callable[[], ChannelMixer],
    *,
    mlp_types: Sequence[str] | None = None,
    rule: Callable[[int], str] | None = None,
    dense: Callable[[], ChannelMixer] | None = None,
    block_options: dict[str, Any] | None = None,
    decoder_options: dict[str, Any] | None = None,
    **options: Any,
) -> Architecture:
    """A decoder whose layers hold experts, or a dense block where ``mlp_types`` says so. ``options`` are attention's."""
    windows = [window for _, window in window_kinds(config, rule)]
    layers = mixed(
        windows,
        mlp_types or (SPARSE,) * len(windows),
        lambda window: attention(config, window_tokens=window, **options),
        {SPARSE: experts, DENSE: dense or (lambda: mlp(config))},
        lambda mixer, channel: block(config, mixer, channel, **(block_options or {})),
    )
    return decoder(config, layers, **(decoder_options or {}))


def mlp_types(config: Config, rule: Callable[[int], bool]) -> tuple[str, ...]:
    """Dense or sparse for each layer: ``mlp_layer_types``, else where ``rule`` holds the layer has experts."""
    return config.layer_types(
        num_layers(config), lambda index: SPARSE if rule(index) else DENSE, (SPARSE, DENSE), "mlp_layer_types"
    )


def after_dense(config: Config, *names: str, default: int = 0) -> Callable[[int], bool]:
    """Experts from layer ``first_k_dense_replace`` (or another such key) on."""
    first = config.optional(*(names or ("first_k_dense_replace",)), minimum=0)
    return lambda index: index >= (default if first is None else first)


def qwen_sparse(config: Config) -> tuple[str, ...]:
    """Qwen: experts in every ``decoder_sparse_step``-th layer outside ``mlp_only_layers``."""
    dense_layers = set(config.integers("mlp_only_layers") or ())
    step = config.size("decoder_sparse_step")
    some = config.size("num_experts", minimum=0) > 0
    return tuple(
        SPARSE if some and index not in dense_layers and (index + 1) % step == 0 else DENSE for index in range(num_layers(config))
    )


def routed(config: Config, *count: str) -> tuple[int, int]:
    """How many experts a layer has, and how many a token takes."""
    return config.size(*(count or ("num_local_experts", "num_experts")), maximum=2**20), config.size("num_experts_per_tok")


@family("mixtral", "minimax_m2", "olmoe", "flex_olmo", "phimoe")
def mixtral(config: Config) -> Architecture:
    """Mixtral, MiniMax-M2, OLMoE, Phi-3.5-MoE: experts in every layer."""
    kind = config.text("model_type")
    full_width = kind in ("minimax_m2", "olmoe", "flex_olmo")
    bias = config.flag("attention_bias")
    phi = kind == "phimoe"
    norms = (
        {"norms": POST if kind == "flex_olmo" else PRE, "norm": layer_norm}
        if phi
        else {"norms": POST if kind == "flex_olmo" else PRE}
    )

    def experts() -> MixtureOfExperts:
        count, per_token = routed(config)
        return moe(
            config,
            count,
            2 if phi else per_token,  # sparsemixer chooses two whatever the config says
            config.size("intermediate_size"),
            router="router" if phi else "gate",
            router_is_linear=phi,
            correction="e_score_correction_bias" if kind == "minimax_m2" else "",
        )

    return sparse_decoder(
        config,
        experts,
        block_options=norms,
        decoder_options={"norm": layer_norm, "head_bias": config.flag("lm_head_bias")} if phi else None,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="full_width" if full_width else "none",
    )


def qwen_experts(config: Config, *, fused: bool = False) -> MixtureOfExperts:
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


@family("qwen2_moe")
def qwen2_moe(config: Config) -> Architecture:
    """Qwen1.5-MoE and Qwen2-MoE: a gated shared expert beside the routed ones."""
    first = config.size("max_window_layers", minimum=0)
    used = config.flag("use_sliding_window")
    return sparse_decoder(
        config,
        lambda: qwen_experts(config),
        mlp_types=qwen_sparse(config),
        rule=lambda index: SLIDING if used and index % 2 == 0 and index < first else FULL,
        qkv_bias=config.flag("qkv_bias"),
    )


@family("qwen3_moe")
def qwen3_moe(config: Config) -> Architecture:
    """Qwen3-MoE: a norm on each head, no shared expert."""
    bias = config.flag("attention_bias")
    used = config.flag("use_sliding_window") and config.optional("sliding_window", minimum=0)
    return sparse_decoder(
        config,
        lambda: moe(config, *routed(config, "num_experts"), config.size("moe_intermediate_size")),
        mlp_types=qwen_sparse(config),
        rule=lambda _: SLIDING if used else FULL,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="per_head",
    )


@family("flint")
def flint(config: Config) -> Architecture:
    """Qwen3-MoE's build with attention sinks, a shared expert and windows."""
    bias = config.flag("attention_bias")
    last = num_layers(config) - 1
    dense_layers = config.integers("mlp_only_layers")
    step = config.size("decoder_sparse_step")
    some = config.size("num_experts", minimum=0) > 0

    def experts() -> MixtureOfExperts:
        shared = config.size("shared_expert_intermediate_size", minimum=0)
        return moe(
            config,
            *routed(config, "num_experts"),
            config.size("moe_intermediate_size"),
            shared="shared_expert",
            shared_width=shared,
        )

    return sparse_decoder(
        config,
        experts,
        mlp_types=[
            SPARSE
            if some and index not in ((0, 1) if dense_layers is None else dense_layers) and (index + 1) % step == 0
            else DENSE
            for index in range(last + 1)
        ],
        rule=lambda index: FULL if index < 2 or index % 4 == 1 or index == last else SLIDING,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="per_head",
        sinks=True,
    )


@family("granitemoe", "granitemoeshared", "granitemoe_swa")
def granite_moe(config: Config) -> Architecture:
    """Granite 3 MoE, with a shared block beside the experts and with sinks in its later forms."""
    bias = config.flag("attention_bias")
    swa = config.text("model_type") == "granitemoe_swa"
    found = sparse_decoder(
        config,
        lambda: granite_experts(config),
        rule=(lambda index: SLIDING if index % 4 else FULL) if swa else None,
        qkv_bias=bias,
        output_bias=bias,
        sinks=swa,
    )
    return rotated_by_layer(config, found) if swa else found


def granite_experts(config: Config) -> MixtureOfExperts:
    """Granite's experts, stored as one tensor of all, and the shared block beside them."""
    found = moe(config, *routed(config), config.size("intermediate_size"), path="block_sparse_moe", router="router", fused=True)
    shared = config.optional("shared_intermediate_size", minimum=0) or 0
    return replace(found, weights=found.weights + granite_shared(config), shared_intermediate_size=shared)


def granite_shared(config: Config) -> tuple[Weight, ...]:
    """Granite's shared block: one linear for gate and up, one down."""
    width = config.optional("shared_intermediate_size", minimum=0) or 0
    hidden = config.size("hidden_size")
    if not width:
        return ()
    return (*linear("shared_mlp.input_linear", 2 * width, hidden), *linear("shared_mlp.output_linear", hidden, width))


@family("gpt_oss")
def gpt_oss(config: Config) -> Architecture:
    """gpt-oss: sinks, biases everywhere, every second layer windowed."""
    bias = config.flag("attention_bias")
    return sparse_decoder(
        config,
        lambda: moe(
            config, *routed(config), config.size("intermediate_size"), router="router", router_bias=True, fused=True, bias=True
        ),
        rule=every(2),
        qkv_bias=bias,
        output_bias=bias,
        sinks=True,
    )


@family("ernie4_5_moe")
def ernie_moe(config: Config) -> Architecture:
    """ERNIE 4.5: experts in a range of layers; the balancing bias is a parameter."""
    bias = config.flag("use_bias")
    layers = num_layers(config)
    first = config.size("moe_layer_start_index", minimum=0)
    last = config.size("moe_layer_end_index", minimum=-1)
    interval = config.size("moe_layer_interval")
    count, per_token = routed(config, "moe_num_experts")
    width = config.size("moe_intermediate_size")
    statics = Weight("mlp.gate.moe_statics.e_score_correction_bias", (1, count), "bias", dtype="fp32")

    def experts() -> MixtureOfExperts:
        shared = width * config.size("moe_num_shared_experts", minimum=0)
        return moe(config, count, per_token, width, shared_width=shared, shared_bias=bias, extra=(statics,))

    return sparse_decoder(
        config,
        experts,
        mlp_types=[
            SPARSE if (index + 1) % interval == 0 and first <= index <= (layers - 1 if last == -1 else last) else DENSE
            for index in range(layers)
        ],
        dense=lambda: mlp(config, bias=bias),
        decoder_options={"head_bias": bias},
        qkv_bias=bias,
        output_bias=bias,
    )


@family("hunyuan_v1_moe")
def hunyuan_moe(config: Config) -> Architecture:
    """Tencent Hunyuan-A13B: one shared expert, head norms."""
    bias = config.flag("attention_bias")

    def experts() -> MixtureOfExperts:
        width = config.size("intermediate_size")
        count, per_token = routed(config)
        found = moe(
            config, count, per_token, width, router="gate.wg", router_is_linear=True, shared="shared_mlp", shared_width=width
        )
        kept = (replace(weight, dtype="fp32") if weight.role == "router" else weight for weight in found.weights)
        return replace(found, weights=tuple(kept))

    names = ("query_layernorm", "key_layernorm")
    return sparse_decoder(config, experts, qkv_bias=bias, output_bias=bias, qk_norm="per_head", qk_norm_names=names)


def deepseek_experts(config: Config, *, fixed: bool = False, bias: bool = False) -> MixtureOfExperts:
    """Experts as DeepSeek arranges them: shared ones as one wide block, a balancing bias in the router."""
    width = config.size("moe_intermediate_size")
    count = config.size("n_routed_experts", "num_local_experts", "num_experts", maximum=2**20)
    shared = width * (config.optional("n_shared_experts", "num_shared_experts", minimum=0) or 0)
    return moe(
        config,
        count,
        config.size("num_experts_per_tok"),
        width,
        shared_width=shared,
        shared_bias=bias,
        correction="" if fixed else "gate.e_score_correction_bias",
    )


@family("dots1", "glm4_moe", "solar_open", "glm4v_moe_text")
def glm4_moe(config: Config) -> Architecture:
    """GLM-4.5/4.6, dots.llm1, Solar Open: DeepSeek's experts with per-head keys and values."""
    bias = config.flag("attention_bias")
    kind = config.text("model_type")
    head_norms = kind == "dots1" or config.flag("use_qk_norm")
    first = after_dense(config)
    unwindowed = config.optional("max_window_layers", minimum=0) or 0
    used = kind == "dots1" and config.optional("sliding_window", minimum=0)
    return sparse_decoder(
        config,
        lambda: deepseek_experts(config),
        mlp_types=[SPARSE if first(index) else DENSE for index in range(num_layers(config))],
        rule=(lambda index: SLIDING if used and index >= unwindowed else FULL) if kind == "dots1" else None,
        qkv_bias=bias,
        output_bias=bias and kind == "dots1",
        qk_norm="per_head" if head_norms else "none",
    )


@family("exaone_moe")
def exaone_moe(config: Config) -> Architecture:
    """K-EXAONE: DeepSeek's experts, a norm on each head, hybrid windows."""
    return sparse_decoder(
        config,
        lambda: deepseek_experts(config),
        mlp_types=mlp_types(config, after_dense(config)),
        rule=pattern_windows(config),
        qk_norm="per_head",
    )


@family("hy_v3")
def hy_v3(config: Config) -> Architecture:
    """Hunyuan 3: a shared expert, the balancing bias beside the router."""
    bias, inner_bias = config.flag("attention_bias"), config.flag("mlp_bias")
    width = config.size("moe_intermediate_size")

    def experts() -> MixtureOfExperts:
        shared = width * config.size("num_shared_experts", minimum=0) or config.size("intermediate_size")
        balance = "e_score_correction_bias"
        return moe(config, *routed(config, "num_experts"), width, shared_width=shared, shared_bias=inner_bias, correction=balance)

    found = sparse_decoder(
        config,
        experts,
        mlp_types=mlp_types(config, bool),
        dense=lambda: mlp(config, bias=inner_bias),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="per_head",
    )
    return found if config.flag("enable_moe_fp32_combine", default=True) else replace(found, decoder_type="hy_v3_narrow")
