"""The vision towers of Llama 3.2 and 4, and of Gemma 3n and 4."""

from __future__ import annotations

from typing import Any

from planner.architecture.blocks import (
    QKVO,
    convolution,
    embedding,
    layer_norm,
    linear,
    rms_norm,
)
from planner.architecture.config import MAX_TOKENS, Config, UnknownArchitecture
from planner.architecture.families.towers import layer_count, side_patches, tower, vit_layer
from planner.architecture.layers import Layer, Stack, Weight


@tower("mllama_vision_model")
def mllama(config: Config) -> tuple[Stack, ...]:
    """Llama 3.2 Vision: local layers, then gated global ones; embeddings for tiles and aspect ratios."""
    hidden, patch, tiles = config.size("hidden_size"), config.size("patch_size"), config.size("max_num_tiles")
    patches = side_patches(config) ** 2 + 1
    ratios = config.get("supported_aspect_ratios")
    rows = (len(ratios) if isinstance(ratios, list | tuple) else 8) + 1
    at, gated = config.base, "gated_positional_embedding"
    weights = (
        Weight(f"{at}class_embedding", (hidden,), "other"),
        *convolution(f"{at}patch_embedding", hidden, config.size("num_channels"), patch, patch),
        Weight(f"{at}{gated}.gate", (1,), "other"),
        Weight(f"{at}{gated}.embedding", (patches, hidden), "embedding"),
        embedding(f"{at}{gated}.tile_embedding", rows, tiles * patches * hidden),
        *(
            weight
            for side in ("pre", "post")
            for weight in (
                Weight(f"{at}{side}_tile_positional_embedding.gate", (1,), "other"),
                embedding(f"{at}{side}_tile_positional_embedding.embedding", rows, tiles * hidden),
            )
        ),
        *layer_norm(f"{at}layernorm_pre", hidden).weights,
        *layer_norm(f"{at}layernorm_post", hidden).weights,
    )
    gates = tuple(Weight(name, (1,), "other") for name in ("gate_attn", "gate_ffn"))
    options: dict[str, Any] = {
        "hidden": hidden,
        "heads": config.size("num_attention_heads", "attention_heads"),
        "width": config.size("intermediate_size"),
        "norms": ("input_layernorm", "post_attention_layernorm"),
        "names": QKVO,
        "bias": False,
        "channel_bias": True,
    }
    return (
        Stack(f"{at}transformer.layers", "vision", hidden, (vit_layer(config, **options),) * layer_count(config), weights),
        Stack(
            f"{at}global_transformer.layers",
            "vision",
            hidden,
            (vit_layer(config, weights=gates, **options),) * layer_count(config, "num_global_layers"),
        ),
    )


@tower("llama4_vision_model")
def llama4(config: Config) -> tuple[Stack, ...]:
    """Llama 4's tower: rotary positions, an adapter that shuffles pixels into channels."""
    hidden, patch, width = config.size("hidden_size"), config.size("patch_size"), config.size("intermediate_size")
    patches, at = side_patches(config) ** 2 + 1, config.base
    middle, out = config.size("projector_input_dim"), config.size("projector_output_dim")
    weights = (
        Weight(f"{at}class_embedding", (hidden,), "other"),
        Weight(f"{at}positional_embedding_vlm", (patches, hidden), "embedding"),
        *linear(f"{at}patch_embedding.linear", hidden, config.size("num_channels") * patch * patch),
        *layer_norm(f"{at}layernorm_pre", hidden).weights,
        *layer_norm(f"{at}layernorm_post", hidden).weights,
        *linear(f"{at}vision_adapter.mlp.fc1", middle, width),
        *linear(f"{at}vision_adapter.mlp.fc2", out, out),
    )
    layer = vit_layer(
        config,
        hidden=hidden,
        heads=config.size("num_attention_heads"),
        width=width,
        norms=("input_layernorm", "post_attention_layernorm"),
        names=QKVO,
    )
    return (Stack(f"{at}model.layers", "vision", hidden, (layer,) * layer_count(config), weights),)


CLIPPED = tuple(f"{side}_{end}" for side in ("input", "output") for end in ("min", "max"))


def clipped(weights: tuple[Weight, ...]) -> tuple[Weight, ...]:
    """Gemma 4's linears sit in a module with the bounds of their input and output, four buffers of one value."""
    bounds: list[Weight] = []
    for weight in weights:
        path = weight.name.removesuffix(".linear.weight")
        if path != weight.name:
            bounds += [Weight(f"{path}.{name}", (), "other", is_buffer=True) for name in CLIPPED]
    return tuple(bounds)


@tower("gemma4_vision")
def gemma4_vision(config: Config) -> tuple[Stack, ...]:
    """Gemma 4's tower: norms around each mixer and on each head, positions from two tables."""
    hidden, patch, at = config.size("hidden_size"), config.size("patch_size"), config.base
    heads = config.size("num_attention_heads")
    rows = config.size("position_embedding_size", maximum=MAX_TOKENS)
    weights = (
        Weight(f"{at}patch_embedder.position_embedding_table", (2, rows, hidden), "embedding"),
        *linear(f"{at}patch_embedder.input_proj", hidden, 3 * patch * patch),
    )
    if config.flag("standardize"):
        weights += tuple(Weight(f"{at}{name}", (hidden,), "other", is_buffer=True) for name in ("std_bias", "std_scale"))
    layer = vit_layer(
        config,
        hidden=hidden,
        heads=heads,
        kv_heads=config.optional("num_key_value_heads") or heads,
        head_dim=config.optional("head_dim") or max(hidden // heads, 1),
        width=config.size("intermediate_size"),
        norms=("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
        make=rms_norm,
        names=tuple(f"{name}.linear" for name in QKVO),  # type: ignore[arg-type]
        bias=False,
        channel=("gate_proj.linear", "up_proj.linear", "down_proj.linear"),
        qk_norm="per_head",
    )
    if config.flag("use_clipped_linears"):
        inner = (*layer.sequence[0].weights, *layer.channel[0].weights)
        layer = Layer(layer.sequence, layer.channel, layer.norms, clipped(inner))
    return (Stack(f"{at}encoder.layers", "vision", hidden, (layer,) * layer_count(config), weights),)


TIMM_PARAMETERS = {"mobilenetv5_300m_enc": 294_126_912}
"""Parameters of towers built by timm, which this reader takes whole: counted in transformers 5.23's Gemma 3n."""


@tower("gemma3n_vision")
def gemma3n_vision(config: Config) -> tuple[Stack, ...]:
    """Gemma 3n's MobileNet-V5, built by timm: taken as one block of known size."""
    name = config.text("architecture", default="mobilenetv5_300m_enc")
    if name not in TIMM_PARAMETERS:
        raise UnknownArchitecture(f"vision_config.architecture: a tower timm builds, {name[:80]!r}, is not known")
    whole = Weight(f"{config.base}timm_model", (TIMM_PARAMETERS[name],), "other")
    return (Stack(f"{config.base}timm_model", "vision", config.size("hidden_size"), (), (whole,)),)
