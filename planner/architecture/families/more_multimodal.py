"""More models of several parts: Kimi K2.5, GLM-OCR, LLaVA for videos."""

from __future__ import annotations

from planner.architecture.blocks import convolution, decoder, layer_norm, linear, mlp, rms_norm, scale
from planner.architecture.config import Config
from planner.architecture.families.llama_like import PRE, dense
from planner.architecture.families.multimodal import (
    PROJECTOR,
    combine,
    feature_layers,
    part,
    text_of,
    tower_width,
    towers_of,
    two_linears,
)
from planner.architecture.families.registry import family
from planner.architecture.families.towers import pair, patches_3d, qwen_blocks, tower, vit_layer
from planner.architecture.layers import Architecture, Stack, Weight


@tower("kimi_k25_vision")
def kimi_vision(config: Config) -> tuple[Stack, ...]:
    """MoonViT for images and videos: a grid of learned positions."""
    hidden, at = config.size("hidden_size"), config.base
    height, width = config.size("pos_emb_height"), config.size("pos_emb_width")
    patch = pair(config, "patch_size")
    weights = (
        *convolution(f"{at}patch_embed.proj", hidden, 3, *patch, bias=True),
        Weight(f"{at}patch_embed.pos_emb.position_embeddings", (height, width, hidden), "embedding"),
        *layer_norm(f"{at}final_layernorm", hidden).weights,
    )
    layer = vit_layer(
        config, hidden=hidden, heads=config.size("num_attention_heads"), width=config.size("intermediate_size"),
        norms=("norm1", "norm2"), path="attn", names=("q_proj", "k_proj", "v_proj", "proj"),
    )  # fmt: skip
    return (Stack(f"{at}layers", "vision", hidden, (layer,) * config.size("num_hidden_layers", minimum=0, maximum=4096), weights),)


@family("kimi_k25")
def kimi_k25(config: Config) -> Architecture:
    """Kimi K2.5: DeepSeek-V3's text, patches merged into channels, a norm and two linears."""
    at = config.base
    text = text_of(config)
    towers = towers_of(config, "vision_config", f"{at}vision_tower.")
    own = part(config, "vision_config", "")
    rows, columns = pair(own, "merge_kernel_size")
    merged, path = own.size("hidden_size") * rows * columns, f"{at}mm_projector"
    joints = (
        *layer_norm(f"{path}.pre_norm", config.optional("projection_hidden_size") or own.size("hidden_size")).weights,
        *linear(f"{path}.in_proj", merged, merged, bias=True),
        *linear(f"{path}.out_proj", text.hidden_size, merged, bias=True),
    )
    return combine(config, text, towers, joints)


@tower("glm_ocr_vision")
def glm_ocr_vision(config: Config) -> tuple[Stack, ...]:
    """GLM-OCR: gated blocks with norms of queries and keys, a convolution that merges patches, a gated merger."""
    hidden, out, at = config.size("hidden_size"), config.size("out_hidden_size"), config.base
    merge, bias = config.size("spatial_merge_size"), config.flag("attention_bias")
    width = out * config.size("in_channels")
    weights = (
        *patches_3d(config, hidden, bias=True),
        *linear(f"{at}merger.proj", out, out),
        *layer_norm(f"{at}merger.post_projection_norm", out).weights,
        *(weight for name in ("gate_proj", "up_proj") for weight in linear(f"{at}merger.{name}", width, out)),
        *linear(f"{at}merger.down_proj", out, width),
        *convolution(f"{at}downsample", out, hidden, merge, merge, bias=True),
        *scale(f"{at}post_layernorm", hidden),
    )
    layer = vit_layer(
        config, hidden=hidden, heads=config.size("num_heads"), width=config.size("intermediate_size"),
        norms=("norm1", "norm2"), make=rms_norm, path="attn", names=("", "", "", "proj"), fused="qkv", bias=bias,
        channel=("gate_proj", "up_proj", "down_proj"), qk_norm="per_head",
    )  # fmt: skip
    return qwen_blocks(config, layer, hidden, weights)


@family("glm_ocr_text")
def glm_ocr_text(config: Config) -> Architecture:
    """GLM-OCR's text: GLM-4-0414's layers without biases."""
    norms = (*PRE, "post_self_attn_layernorm", "post_mlp_layernorm")
    return decoder(config, dense(config, mlp(config, fused="gate_up_proj"), norms=norms))


@family("glm_ocr")
def glm_ocr(config: Config) -> Architecture:
    """GLM-OCR: the tower holds its own merger."""
    return combine(config, text_of(config, tied_by="either"), towers_of(config, "vision_config", f"{config.base}visual."))


@family("llava_next_video", "video_llava")
def llava_video(config: Config) -> Architecture:
    """LLaVA for videos: LLaVA-NeXT's parts, or a second tower for the frames."""
    kind, at = config.text("model_type"), config.base
    text = text_of(config, tied_by="outer" if kind == "video_llava" else "either")
    if kind == "video_llava":
        towers = towers_of(config, "vision_config", f"{at}video_tower.") + towers_of(config, "vision_config", f"{at}image_tower.")
    else:
        towers = towers_of(config, "vision_config", f"{at}vision_tower.")
    width = tower_width(towers) * feature_layers(config)
    joints = two_linears(f"{at}{PROJECTOR}", text.hidden_size, width, bias=config.flag("multimodal_projector_bias", default=True))
    if kind == "llava_next_video":
        joints += (Weight(f"{at}image_newline", (text.hidden_size,), "other"),)
    return combine(config, text, towers, joints)
