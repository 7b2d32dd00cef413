"""State-space models, Mamba and Mamba-2, and their hybrids with attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from planner.architecture.blocks import (
    attention,
    block,
    decoder,
    experts,
    linear,
    mlp,
    moe,
    num_layers,
    rms_norm,
)
from planner.architecture.config import Config
from planner.architecture.families.hybrids import LINEAR, PRE_FF, hybrid
from planner.architecture.families.llama_like import FULL
from planner.architecture.families.moe import (
    DENSE,
    SPARSE,
    granite_experts,
    granite_shared,
    routed,
)
from planner.architecture.families.registry import family
from planner.architecture.layers import (
    Architecture,
    ChannelMixer,
    Layer,
    MixtureOfExperts,
    Recurrent,
    SequenceMixer,
    Weight,
)
from planner.architecture.recurrent import (
    mamba1,
    mamba2,
    mamba2_of,
    step_rank,
)


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
        bare_norms=config.text("model_type") == "falcon_mamba",
    )
    return decoder(config, [state_space_layer(config, mixer)] * num_layers(config), norm_name="norm_f", embed="embeddings")


def state_space_layer(config: Config, mixer: Recurrent) -> Layer:
    """A mixer with its norm; its output is added to the input in fp32 unless the config says otherwise."""
    layer = block(config, mixer, None, norms=("norm",))
    return replace(layer, residual_in_fp32=config.flag("residual_in_fp32", default=True))


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
        chunk_tokens=config.optional("chunk_size") or 256,
    )
    return decoder(config, [state_space_layer(config, mixer)] * num_layers(config), norm_name="norm_f", embed="embeddings")


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
    state_space = mamba2_of(
        config, norm=config.flag("mamba_rms_norm"), output_bias=config.flag("projectors_bias"), scaled_input=True
    )
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
            chunk_tokens=config.optional("mamba_chunk_size", "chunk_size") or 128,
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
