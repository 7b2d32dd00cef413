"""Vision and audio towers: each reads its own object of a config into stacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

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
from planner.architecture.config import MAX_LAYERS, MAX_TOKENS, Config, UnknownArchitecture
from planner.architecture.families.registry import SUB_CONFIGS
from planner.architecture.families.seq2seq import bart_stack
from planner.architecture.layers import Attention, Layer, Norm, Recurrent, Stack, Weight

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
    if hidden % heads and head_dim is None:
        config.reader.fault("num_attention_heads", f"must divide the hidden size ({hidden}), got {heads}")
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
        Weight(f"{path}.attention.in_proj_weight", (3 * hidden, hidden), "linear"),
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


@tower("glm4v_vision")
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


@tower("qwen2_audio_encoder", "voxtral_encoder")
def whisper_like(config: Config) -> tuple[Stack, ...]:
    """Whisper's encoder as a tower."""
    kind = config.text("model_type", default="voxtral_encoder")
    if kind == "voxtral_encoder":
        renamed = {
            "d_model": config.get("hidden_size"),
            "encoder_layers": config.get("num_hidden_layers"),
            "encoder_attention_heads": config.get("num_attention_heads"),
            "encoder_ffn_dim": config.get("intermediate_size"),
        }
        inner = Config({**config.values, **renamed}, config.defaults, reader=config.reader, base=config.base)
        inner.sources, inner.notes, inner.read = config.sources, config.notes, config.read
        config = inner
    hidden, at = config.size("d_model"), config.base
    front = (
        *convolution(f"{at}conv1", hidden, config.size("num_mel_bins"), 3, bias=True),
        *convolution(f"{at}conv2", hidden, hidden, 3, bias=True),
        embedding(f"{at}embed_positions", config.size("max_source_positions", maximum=MAX_TOKENS), hidden),
        *layer_norm(f"{at}layer_norm", hidden).weights,
    )
    found = bart_stack(config, "encoder", front, silent_keys=True)
    return (Stack(f"{at}layers", "audio", hidden, found.layers, front),)


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
    bias = config.flag("attention_bias")
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
        bias=bias,
        channel=("gate_proj.linear", "up_proj.linear", "down_proj.linear"),
        channel_bias=False,
        qk_norm="per_head",
    )
    if config.flag("use_clipped_linears"):
        inner = (*layer.sequence[0].weights, *layer.channel[0].weights)
        layer = Layer(layer.sequence, layer.channel, layer.norms, clipped(inner))
    return (Stack(f"{at}encoder.layers", "vision", hidden, (layer,) * layer_count(config), weights),)


@tower("gemma4_audio")
def gemma4_audio(config: Config) -> tuple[Stack, ...]:
    """Gemma 4's conformer: half-step feed-forwards around attention and a light convolution."""
    hidden, at = config.size("hidden_size"), config.base
    channels = config.integers("subsampling_conv_channels", length=2) or (128, 32)
    front = f"{at}subsample_conv_projection"
    weights: tuple[Weight, ...] = (
        *convolution(f"{front}.layer0.conv", channels[0], 1, 3, 3),
        *scale(f"{front}.layer0.norm", channels[0]),
        *convolution(f"{front}.layer1.conv", channels[1], channels[0], 3, 3),
        *scale(f"{front}.layer1.norm", channels[1]),
        *linear(f"{front}.input_proj_linear", hidden, channels[1] * (128 // 4)),
    )
    out = config.optional("output_proj_dims")
    if out:
        weights += linear(f"{at}output_proj", out, hidden, bias=True)
    layer = conformer(config, hidden, "gemma4")
    return (Stack(f"{at}layers", "audio", hidden, (layer,) * layer_count(config), weights),)


def conformer(config: Config, hidden: int, kind: str) -> Layer:
    """A conformer block of Gemma 3n and 4 (Universal Speech Model, Zhang et al. 2023)."""
    new = kind == "gemma4"
    heads = config.size("num_attention_heads") if new else config.size("conf_num_attention_heads")
    kernel = config.size("conv_kernel_size") if new else config.size("conf_conv_kernel_size")
    inner = ".linear" if new else ""
    head_dim = max(hidden // heads, 1)
    at = "self_attn" if new else "attention.attn"
    weights: tuple[Weight, ...] = (
        Weight(f"{at}.per_dim_scale", (head_dim,), "other"),
        *(weight for name in QKVO[:3] for weight in linear(f"{at}.{name}{inner}", hidden, hidden)),
        *linear("self_attn.post.linear" if new else "attention.post", hidden, hidden),
        *linear("self_attn.relative_k_proj" if new else f"{at}.relative_position_embedding.pos_proj", hidden, hidden),
    )
    mixer = Attention(heads, heads, head_dim, head_dim, weights, causal=False)
    light = Recurrent(
        "short_conv",
        (
            *linear(f"lconv1d.linear_start{inner}", 2 * hidden, hidden),
            *linear(f"lconv1d.linear_end{inner}", hidden, hidden),
            *convolution("lconv1d.depthwise_conv1d", hidden, 1, kernel),
        ),
        conv_channels=hidden,
        conv_kernel=kernel,
        inner_dim=hidden,
    )
    paths = ("feed_forward1", "feed_forward2") if new else ("ffw_layer_start", "ffw_layer_end")
    steps = tuple(
        mlp(
            config,
            4 * hidden,
            gated=False,
            path=path,
            names=(f"ffw_layer_1{inner}", f"ffw_layer_2{inner}"),
            hidden=hidden,
        )
        for path in paths
    )
    own = ("norm_pre_attn", "norm_post_attn", "norm_out") if new else ("attention.pre_attn_norm", "attention.post_norm", "norm")
    names = (
        *(f"{path}.{side}_layer_norm" for path in paths for side in ("pre", "post")),
        "lconv1d.pre_layer_norm",
        "lconv1d.conv_norm",
        *own,
    )
    bounds: tuple[Weight, ...] = ()
    if new and config.flag("use_clipped_linears"):
        bounds = clipped((*weights, *light.weights, *(weight for step in steps for weight in step.weights)))
    return Layer((mixer, light), steps, tuple(rms_norm(name, hidden) for name in names), bounds)


@tower("gemma3n_audio")
def gemma3n_audio(config: Config) -> tuple[Stack, ...]:
    """Gemma 3n's conformer."""
    hidden, at = config.size("hidden_size"), config.base
    channels = config.integers("sscp_conv_channel_size", length=2) or (128, 32)
    front, previous = f"{at}subsample_conv_projection", 1
    weights: tuple[Weight, ...] = ()
    bins = config.size("input_feat_size")
    for index, (channel, kernel, stride) in enumerate(zip(channels, *conv_shapes(config), strict=True)):
        weights += convolution(f"{front}.conv_{index}.conv", channel, previous, *kernel)
        weights += scale(f"{front}.conv_{index}.norm", channel)
        previous, bins = channel, (bins + 2 - kernel[1]) // max(stride[1], 1) + 1
    weights += linear(f"{front}.input_proj_linear", hidden, previous * bins)
    layer = conformer(config, hidden, "gemma3n")
    count = layer_count(config, "conf_num_hidden_layers")
    return (Stack(f"{at}conformer", "audio", hidden, (layer,) * count, weights),)


def conv_shapes(config: Config) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
    """Kernels and strides of the two convolutions over the spectrogram."""
    found = []
    for key, usual in (("sscp_conv_kernel_size", 3), ("sscp_conv_stride_size", 2)):
        value = config.get(key)
        pairs = value if isinstance(value, list | tuple) and len(value) == 2 else ((usual, usual),) * 2
        if not all(
            isinstance(item, list | tuple) and len(item) == 2 and all(isinstance(n, int) and 0 < n < 1000 for n in item)
            for item in pairs
        ):
            config.reader.fault(key, "must hold two pairs of whole numbers")
            pairs = ((usual, usual),) * 2
        found.append(tuple((item[0], item[1]) for item in pairs))
    return found[0], found[1]


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
