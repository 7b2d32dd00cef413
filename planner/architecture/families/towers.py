"""Vision towers: each reads its own object of a config into stacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from planner.architecture.blocks import (
    QKVO,
    attention,
    convolution,
    embedding,
    layer_norm,
    linear,
    mlp,
    rms_norm,
    scale,
)
from planner.architecture.config import MAX_LAYERS, MAX_TOKENS, Config
from planner.architecture.families.registry import SUB_CONFIGS
from planner.architecture.layers import Layer, Norm, Stack, Weight

ReadTower = Callable[[Config], tuple[Stack, ...]]
TOWERS: dict[str, ReadTower] = {}
OUT = (*QKVO[:3], "out_proj")
MakeNorm = Callable[[str, int], Norm]


def tower(*model_types: str) -> Callable[[ReadTower], ReadTower]:
    """Register the decorated function as the reader of these model types."""

    def register(read: ReadTower) -> ReadTower:
        TOWERS.update(dict.fromkeys(model_types, read))
        SUB_CONFIGS.update(model_types)
        return read

    return register


def vit_layer(
    config: Config,
    *,
    hidden: int,
    heads: int,
    width: int,
    norms: tuple[str, ...],
    make: MakeNorm = layer_norm,
    path: str = "self_attn",
    names: tuple[str, str, str, str] = OUT,
    fused: str = "",
    bias: bool = True,
    output_bias: bool | None = None,
    channel: tuple[str, ...] = ("fc1", "fc2"),
    channel_path: str = "mlp",
    channel_bias: bool | None = None,
    head_dim: int | None = None,
    kv_heads: int | None = None,
    qk_norm: Literal["none", "per_head"] = "none",
    window_tokens: int | None = None,
    weights: tuple[Weight, ...] = (),
) -> Layer:
    """A transformer layer that looks both ways. ``channel``: names of up and down, or of gate, up and down."""
    config.require(
        hidden % heads == 0 or head_dim is not None, "num_attention_heads", f"must divide the hidden size ({hidden}), got {heads}"
    )
    mixer = attention(
        config,
        path=path,
        names=names,
        fused=fused,
        heads=heads,
        kv_heads=kv_heads or heads,
        head_dim=head_dim or max(hidden // heads, 1),
        hidden=hidden,
        qkv_bias=bias,
        output_bias=bias if output_bias is None else output_bias,
        qk_norm=qk_norm,
        window_tokens=window_tokens,
        causal=False,
    )
    block = mlp(
        config,
        width,
        gated=len(channel) == 3,
        bias=bias if channel_bias is None else channel_bias,
        path=channel_path,
        names=channel,
        hidden=hidden,
    )
    return Layer((mixer,), (block,), tuple(make(name, hidden) for name in norms), weights)


def side_patches(config: Config) -> int:
    """Patches along one side of the image."""
    return max(config.size("image_size") // config.size("patch_size"), 1)


def layer_count(config: Config, *names: str) -> int:
    """How many layers the tower has."""
    return config.size(*(names or ("num_hidden_layers",)), minimum=0, maximum=MAX_LAYERS)


@tower("clip_vision_model", "siglip_vision_model", "siglip2_vision_model", "idefics2_vision", "idefics3_vision", "smolvlm_vision")
def clip(config: Config) -> tuple[Stack, ...]:
    """CLIP (a class token, a norm before the layers), SigLIP (a pooling head behind a switch) and their kin."""
    kind, hidden = config.text("model_type", default="clip_vision_model"), config.size("hidden_size")
    patch, side = config.size("patch_size"), config.size("num_channels")
    is_clip, flat = kind == "clip_vision_model", kind == "siglip2_vision_model"
    at = f"{config.base}embeddings"
    if flat:
        weights = linear(f"{at}.patch_embedding", hidden, side * patch * patch, bias=True)
        count = config.size("num_patches")
    else:
        weights = convolution(f"{at}.patch_embedding", hidden, side, patch, patch, bias=not is_clip)
        count = side_patches(config) ** 2
    weights += (embedding(f"{at}.position_embedding", count + (1 if is_clip else 0), hidden),)
    if is_clip:
        weights += (Weight(f"{at}.class_embedding", (hidden,), "other"), *layer_norm(f"{config.base}pre_layrnorm", hidden).weights)
    weights += layer_norm(f"{config.base}post_layernorm", hidden).weights
    width = config.size("intermediate_size")
    if "siglip" in kind and config.flag("vision_use_head", default=True):
        weights += pooling_head(f"{config.base}head", hidden, width)
    layer = vit_layer(
        config, hidden=hidden, heads=config.size("num_attention_heads"), width=width, norms=("layer_norm1", "layer_norm2")
    )
    return (Stack(f"{config.base}encoder.layers", "vision", hidden, (layer,) * layer_count(config), weights),)


def pooling_head(path: str, hidden: int, width: int) -> tuple[Weight, ...]:
    """SigLIP's attention pooling with one learned query."""
    return (
        Weight(f"{path}.probe", (1, 1, hidden), "other"),
        Weight(f"{path}.attention.in_proj_weight", (3 * hidden, hidden), "other"),
        Weight(f"{path}.attention.in_proj_bias", (3 * hidden,), "bias"),
        *linear(f"{path}.attention.out_proj", hidden, hidden, bias=True),
        *layer_norm(f"{path}.layernorm", hidden).weights,
        *linear(f"{path}.mlp.fc1", width, hidden, bias=True),
        *linear(f"{path}.mlp.fc2", hidden, width, bias=True),
    )


@tower("pixtral")
def pixtral(config: Config) -> tuple[Stack, ...]:
    """Pixtral's tower: rotary positions in two dimensions, RMSNorm, gated feed-forward, no biases."""
    hidden, patch = config.size("hidden_size"), config.size("patch_size")
    weights = (
        *convolution(f"{config.base}patch_conv", hidden, config.size("num_channels"), patch, patch),
        *rms_norm(f"{config.base}ln_pre", hidden).weights,
    )
    layer = vit_layer(
        config,
        hidden=hidden,
        heads=config.size("num_attention_heads"),
        width=config.size("intermediate_size"),
        norms=("attention_norm", "ffn_norm"),
        make=rms_norm,
        path="attention",
        names=QKVO,
        bias=False,
        channel=("gate_proj", "up_proj", "down_proj"),
        channel_path="feed_forward",
    )
    return (Stack(f"{config.base}transformer.layers", "vision", hidden, (layer,) * layer_count(config), weights),)


def patches_3d(config: Config, hidden: int, *, bias: bool) -> tuple[Weight, ...]:
    """A convolution over patches of a few frames."""
    patch = config.size("patch_size")
    shape = (hidden, config.size("in_channels", "num_channels"), config.size("temporal_patch_size"), patch, patch)
    return convolution(f"{config.base}patch_embed.proj", *shape, bias=bias)


def qwen_blocks(config: Config, layer: Layer, hidden: int, weights: tuple[Weight, ...]) -> tuple[Stack, ...]:
    """Qwen's tower: ``depth`` layers named blocks."""
    return (Stack(f"{config.base}blocks", "vision", hidden, (layer,) * layer_count(config, "depth"), weights),)


@tower("qwen2_vl_vision")
def qwen2_vl(config: Config) -> tuple[Stack, ...]:
    """Qwen2-VL: the merger projects to the text's hidden size, called ``hidden_size`` here."""
    hidden, out = config.size("embed_dim"), config.size("hidden_size")
    merged = hidden * config.size("spatial_merge_size") ** 2
    at = f"{config.base}merger"
    weights = (
        *patches_3d(config, hidden, bias=False),
        *layer_norm(f"{at}.ln_q", hidden).weights,
        *linear(f"{at}.mlp.0", merged, merged, bias=True),
        *linear(f"{at}.mlp.2", out, merged, bias=True),
    )
    width = int(hidden * config.number("mlp_ratio", default=4))
    layer = vit_layer(
        config,
        hidden=hidden,
        heads=config.size("num_heads"),
        width=width,
        norms=("norm1", "norm2"),
        path="attn",
        names=("", "", "", "proj"),
        fused="qkv",
    )
    return qwen_blocks(config, layer, hidden, weights)


@tower("qwen2_5_vl_vision")
def qwen2_5_vl(config: Config) -> tuple[Stack, ...]:
    """Qwen2.5-VL: RMSNorm, gated feed-forward, most layers windowed."""
    hidden = config.size("hidden_size")
    merged = hidden * config.size("spatial_merge_size") ** 2
    at = f"{config.base}merger"
    weights = (
        *patches_3d(config, hidden, bias=False),
        *rms_norm(f"{at}.ln_q", hidden).weights,
        *linear(f"{at}.mlp.0", merged, merged, bias=True),
        *linear(f"{at}.mlp.2", config.size("out_hidden_size"), merged, bias=True),
    )
    layer = vit_layer(
        config,
        hidden=hidden,
        heads=config.size("num_heads"),
        width=config.size("intermediate_size"),
        norms=("norm1", "norm2"),
        make=rms_norm,
        path="attn",
        names=("", "", "", "proj"),
        fused="qkv",
        channel=("gate_proj", "up_proj", "down_proj"),
    )
    return qwen_blocks(config, layer, hidden, weights)


@tower("qwen3_vl_vision", "qwen3_vl_moe_vision", "qwen3_5_vision", "qwen3_5_moe_vision")
def qwen3_vl(config: Config) -> tuple[Stack, ...]:
    """Qwen3-VL (with mergers at several depths) and Qwen3.5 (with one)."""
    hidden, out = config.size("hidden_size"), config.size("out_hidden_size")
    merged = hidden * config.size("spatial_merge_size") ** 2
    deep = config.integers("deepstack_visual_indexes") or () if "qwen3_vl" in config.text("model_type") else ()

    def merger(path: str, normed: int) -> tuple[Weight, ...]:
        return (
            *layer_norm(f"{path}.norm", normed).weights,
            *linear(f"{path}.linear_fc1", merged, merged, bias=True),
            *linear(f"{path}.linear_fc2", out, merged, bias=True),
        )

    weights = (
        *patches_3d(config, hidden, bias=True),
        embedding(f"{config.base}pos_embed", config.size("num_position_embeddings", maximum=MAX_TOKENS), hidden),
        *merger(f"{config.base}merger", hidden),
        *(weight for index in range(len(deep)) for weight in merger(f"{config.base}deepstack_merger_list.{index}", merged)),
    )
    layer = vit_layer(
        config,
        hidden=hidden,
        heads=config.size("num_heads"),
        width=config.size("intermediate_size"),
        norms=("norm1", "norm2"),
        path="attn",
        names=("", "", "", "proj"),
        fused="qkv",
        channel=("linear_fc1", "linear_fc2"),
    )
    return qwen_blocks(config, layer, hidden, weights)


@tower("glm4v_vision", "glm4v_moe_vision")
def glm4v(config: Config) -> tuple[Stack, ...]:
    """GLM-4V: positions interpolated from a table, a convolution that merges patches, a gated merger."""
    hidden, out = config.size("hidden_size"), config.size("out_hidden_size")
    width, merge = config.size("intermediate_size"), config.size("spatial_merge_size")
    bias, at = config.flag("attention_bias"), config.base
    weights = (
        embedding(f"{at}embeddings.position_embedding", side_patches(config) ** 2, hidden),
        *patches_3d(config, hidden, bias=True),
        *linear(f"{at}merger.proj", out, out),
        *layer_norm(f"{at}merger.post_projection_norm", out).weights,
        *(weight for name in ("gate_proj", "up_proj") for weight in linear(f"{at}merger.{name}", width, out)),
        *linear(f"{at}merger.down_proj", out, width),
        *scale(f"{at}post_conv_layernorm", hidden),
        *convolution(f"{at}downsample", out, hidden, merge, merge, bias=True),
        *scale(f"{at}post_layernorm", hidden),
    )
    layer = vit_layer(
        config,
        hidden=hidden,
        heads=config.size("num_heads"),
        width=out,
        norms=("norm1", "norm2"),
        make=rms_norm,
        path="attn",
        names=("", "", "", "proj"),
        fused="qkv",
        bias=bias,
        output_bias=False,
        channel=("gate_proj", "up_proj", "down_proj"),
        channel_bias=False,
    )
    return qwen_blocks(config, layer, hidden, weights)


@tower("internvl_vision")
def internvl(config: Config) -> tuple[Stack, ...]:
    """InternViT: a class token, learned positions, a scale on each mixer's output."""
    hidden = config.size("hidden_size")
    image, patch = pair(config, "image_size"), pair(config, "patch_size")
    count = (image[0] // patch[0]) * (image[1] // patch[1])
    at = f"{config.base}embeddings"
    weights = (
        Weight(f"{at}.cls_token", (1, 1, hidden), "other"),
        *convolution(f"{at}.patch_embeddings.projection", hidden, config.size("num_channels"), *patch, bias=True),
    )
    if config.flag("use_absolute_position_embeddings"):
        weights += (Weight(f"{at}.position_embeddings", (1, count + 1, hidden), "embedding"),)
    if config.flag("use_mask_token"):
        weights += (Weight(f"{at}.mask_token", (1, 1, hidden), "other"),)
    rms = config.text("norm_type", default="layer_norm") == "rms_norm"
    bias = config.flag("attention_bias")
    own = tuple(Weight(f"lambda_{index}", (hidden,), "other") for index in (1, 2))
    if config.flag("use_qk_norm"):
        own += (*scale("attention.q_norm", hidden), *scale("attention.k_norm", hidden))
    layer = vit_layer(
        config,
        hidden=hidden,
        heads=config.size("num_attention_heads"),
        width=config.size("intermediate_size"),
        norms=("layernorm_before", "layernorm_after"),
        make=rms_norm if rms else layer_norm,
        path="attention",
        names=(*QKVO[:3], "projection_layer"),
        bias=bias,
        output_bias=True,
        channel_bias=True,
        weights=own,
    )
    if not config.flag("use_mean_pooling", default=True):
        weights += layer_norm(f"{config.base}layernorm", hidden).weights
    return (Stack(f"{config.base}encoder.layer", "vision", hidden, (layer,) * layer_count(config), weights),)


def pair(config: Config, key: str) -> tuple[int, int]:
    """Height and width: a list of two, or one number for both."""
    if isinstance(config.get(key), list | tuple):
        found = config.integers(key, length=2) or (1, 1)
        return max(found[0], 1), max(found[1], 1)
    return config.size(key), config.size(key)
