"""Audio towers: Whisper's encoder and the conformers of Gemma."""

from __future__ import annotations

from planner.architecture.blocks import (
    QKVO,
    convolution,
    embedding,
    layer_norm,
    linear,
    mlp,
    rms_norm,
    scale,
)
from planner.architecture.config import MAX_TOKENS, Config
from planner.architecture.families.llama_towers import clipped
from planner.architecture.families.seq2seq import bart_stack
from planner.architecture.families.towers import layer_count, tower
from planner.architecture.layers import Attention, Layer, Recurrent, Stack, Weight


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
