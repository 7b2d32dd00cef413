"""Zamba: state spaces with transformer blocks whose weights serve several layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from planner.architecture.blocks import (
    attention,
    block,
    convolution,
    decoder,
    linear,
    mlp,
    num_layers,
    rms_norm,
    scale,
)
from planner.architecture.config import Config
from planner.architecture.families.hybrids import LINEAR
from planner.architecture.families.registry import family
from planner.architecture.layers import (
    Architecture,
    Recurrent,
    Weight,
)
from planner.architecture.recurrent import (
    mamba2,
    step_rank,
)


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
        head_dim=config.optional("attention_head_dim") or max(2 * hidden // heads, 1),
        kv_heads=config.optional("num_key_value_heads") or heads,
        hidden=2 * hidden,
        rotary=config.flag("use_mem_rope"),
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
    hidden, inner = config.size("hidden_size"), attended[-1].shape[1]
    rank, bias, at = config.size("adapter_rank"), config.flag("add_bias_linear"), "shared_transformer"
    served = [index for index in range(hybrids) if index % config.size("num_mem_blocks") == order]
    adapted = {"feed_forward.gate_up_proj_adapter_list": (hidden, 2 * width)}
    if config.flag("use_shared_attention_adapter"):
        adapted |= {f"self_attn.linear_{name}_adapter_list": (2 * hidden, 2 * hidden) for name in "qkv"}
    return (
        *(replace(weight, name=f"{at}.{weight.name}") for weight in attended[:-1]),
        *linear(f"{at}.self_attn.o_proj", hidden, inner),
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
        chunk_tokens=config.optional("chunk_size") or 256,
    )
