"""Dense decoders of Llama's build: norms around each mixer, rotary attention, a feed-forward block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from planner.architecture.blocks import (
    MakeNorm,
    attention,
    bare_rms_norm,
    block,
    decoder,
    head_counts,
    mlp,
    num_layers,
    rms_norm,
    scale,
    with_head,
)
from planner.architecture.config import MAX_LAYERS, Config
from planner.architecture.families.registry import family
from planner.architecture.layers import Architecture, Attention, DenseMLP, Layer, Weight

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
PRE = ("input_layernorm", "post_attention_layernorm")
POST = ("post_attention_layernorm", "post_feedforward_layernorm")
SANDWICH = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")


def every(period: int) -> Callable[[int], str]:
    """Every ``period``-th layer attends to everything, the others to a window."""
    return lambda index: SLIDING if period and (index + 1) % period else FULL


def windowed(config: Config) -> Callable[[int], str]:
    """Every layer is windowed when the config names a window: what transformers' cache does without layer types."""
    return lambda _: SLIDING if config.optional("sliding_window", minimum=0) else FULL


def window_kinds(config: Config, rule: Callable[[int], str] | None = None) -> tuple[tuple[str, int | None], ...]:
    """For each layer its type and its window, None for a full one."""
    types = config.layer_types(num_layers(config), rule or windowed(config), (FULL, SLIDING))
    window = config.size("sliding_window") if SLIDING in types else None
    return tuple((name, window if name == SLIDING else None) for name in types)


def dense(
    config: Config,
    channel: DenseMLP,
    *,
    rule: Callable[[int], str] | None = None,
    norms: Sequence[str] = PRE,
    norm: MakeNorm = rms_norm,
    parallel: bool = False,
    weights: tuple[Weight, ...] = (),
    **options: Any,
) -> list[Layer]:
    """Layers that differ at most in their window. ``options`` go to :func:`attention`."""
    kinds = window_kinds(config, rule)
    made = {
        window: block(
            config,
            attention(config, window_tokens=window, **options),
            channel,
            norms=norms,
            norm=norm,
            parallel=parallel,
            weights=weights,
        )
        for _, window in dict.fromkeys(kinds)
    }
    return [made[window] for _, window in kinds]


@family("llama", "internlm3", "iquestcoder", "granite", "smollm3", "gemma")
def llama(config: Config) -> Architecture:
    """Llama 1 to 3 and everything published in its shape."""
    bias = config.flag("attention_bias")
    channel = mlp(config, bias=config.flag("mlp_bias"))
    rule = no_rope_windows(config) if config.text("model_type") == "smollm3" else None
    return decoder(config, dense(config, channel, rule=rule, qkv_bias=bias, output_bias=bias))


def no_rope_windows(config: Config) -> Callable[[int], str]:
    """SmolLM3 windows the layers without rotary embedding, and only if ``use_sliding_window`` says so."""
    if not config.flag("use_sliding_window") or config.optional("sliding_window", minimum=0) is None:
        return lambda _: FULL
    rotary = config.integers("no_rope_layers", length=num_layers(config))
    interval = config.size("no_rope_layer_interval")
    return lambda index: SLIDING if (rotary[index] == 0 if rotary else (index + 1) % interval == 0) else FULL


@family("seed_oss", "helium")
def output_bias_apart(config: Config) -> Architecture:
    """Biases on queries, keys and values; the output projection has its own switch, or none."""
    heads, _, head_dim = head_counts(config)
    square = config.text("model_type") != "helium" or heads * head_dim == config.size("hidden_size")
    config.require(square, "head_dim", f"times num_attention_heads must be hidden_size, got {head_dim} times {heads}")
    layers = dense(
        config,
        mlp(config, bias=config.flag("mlp_bias")),
        qkv_bias=config.flag("attention_bias"),
        output_bias=config.flag("attention_out_bias"),
    )
    dropped = config.text("model_type") == "seed_oss" and config.number("residual_dropout", default=0.1) > 0
    return decoder(config, [replace(layer, dropout=True) for layer in layers] if dropped else layers)


@family("arcee")
def arcee(config: Config) -> Architecture:
    """A feed-forward block without a gate."""
    bias = config.flag("attention_bias")
    channel = mlp(config, gated=False, bias=config.flag("mlp_bias"))
    return decoder(config, dense(config, channel, qkv_bias=bias, output_bias=bias))


@family("mistral", "ministral", "ministral3", "cwm")
def mistral(config: Config) -> Architecture:
    """No biases; every layer windowed when ``sliding_window`` is set (CWM: three of four)."""
    pattern = (lambda index: SLIDING if index % 4 else FULL) if config.text("model_type") == "cwm" else None
    return decoder(config, dense(config, mlp(config, bias=config.flag("mlp_bias")), rule=pattern))


@family("ernie4_5")
def ernie(config: Config) -> Architecture:
    """One switch for the biases of every linear layer."""
    bias = config.flag("use_bias")
    return decoder(config, dense(config, mlp(config, bias=bias), qkv_bias=bias, output_bias=bias))


def qwen_windows(config: Config) -> Callable[[int], str]:
    """Qwen windows the layers from ``max_window_layers`` on, and only if ``use_sliding_window`` says so."""
    first = config.size("max_window_layers", minimum=0)
    used = config.flag("use_sliding_window") and config.optional("sliding_window", minimum=0)
    return lambda index: SLIDING if used and index >= first else FULL


@family("qwen2")
def qwen2(config: Config) -> Architecture:
    """Qwen 1.5 to 2.5: biases on queries, keys and values."""
    return decoder(config, dense(config, mlp(config), rule=qwen_windows(config), qkv_bias=True))


@family("qwen3")
def qwen3(config: Config) -> Architecture:
    """Qwen3: a norm on each query and key head."""
    bias = config.flag("attention_bias")
    layers = dense(config, mlp(config), rule=qwen_windows(config), qkv_bias=bias, output_bias=bias, qk_norm="per_head")
    return decoder(config, layers)


@family("hunyuan_v1_dense")
def hunyuan(config: Config) -> Architecture:
    """Tencent's dense model: Qwen3's build with other names of the head norms."""
    bias = config.flag("attention_bias")
    names = ("query_layernorm", "key_layernorm")
    return decoder(config, dense(config, mlp(config), qkv_bias=bias, output_bias=bias, qk_norm="per_head", qk_norm_names=names))


@family("apertus")
def apertus(config: Config) -> Architecture:
    """No gate; the xIELU activation has two learned values a layer."""
    bias = config.flag("attention_bias")
    learned = tuple(Weight(f"mlp.act_fn.{name}", (1,), "other") for name in ("alpha_p", "alpha_n"))
    fixed = tuple(Weight(f"mlp.act_fn.{name}", (), "other", is_buffer=True) for name in ("beta", "eps"))
    extra = learned + fixed if config.text("hidden_act") == "xielu" else ()
    channel = mlp(config, gated=False, extra=extra)
    norms = ("attention_layernorm", "feedforward_layernorm")
    return decoder(config, dense(config, channel, norms=norms, qkv_bias=bias, output_bias=bias, qk_norm="per_head"))


@family("granite_swa")
def granite_windowed(config: Config) -> Architecture:
    """Granite with attention sinks; three of four layers windowed."""
    bias = config.flag("attention_bias")
    channel = mlp(config, bias=config.flag("mlp_bias"))
    layers = dense(config, channel, rule=lambda index: SLIDING if index % 4 else FULL, qkv_bias=bias, output_bias=bias, sinks=True)
    return rotated_by_layer(config, decoder(config, layers))


def rotated_by_layer(config: Config, found: Architecture) -> Architecture:
    """``layer_rope_theta``: a base of the rotary positions for each layer, 0 for none. Tables of several bases were not read."""
    bases = config.get("layer_rope_theta")
    count = len(found.decoder.layers)
    if not isinstance(bases, list | tuple):
        return found
    if len(bases) != count or not all(isinstance(base, int | float) for base in bases):
        config.reader.fault("layer_rope_theta", f"must be a list of {count} numbers, one for each layer")
        return found
    made: dict[Layer, Layer] = {}
    for layer in dict.fromkeys(found.decoder.layers):
        mixers = tuple(replace(mixer, rotary_dim=0) for mixer in layer.sequence if isinstance(mixer, Attention))
        made[layer] = replace(layer, sequence=mixers)
    layers = tuple(layer if base else made[layer] for layer, base in zip(found.decoder.layers, bases, strict=False))
    several = len(set(bases) - {0}) > 1
    kind = f"{found.model_type}_of_several_bases" if several else found.decoder_type
    return replace(found, decoder=replace(found.decoder, layers=layers), decoder_type=kind)


@family("hyperclovax")
def hyperclovax(config: Config) -> Architecture:
    """Llama's build, with a norm after each mixer too when ``use_post_norm``."""
    bias = config.flag("attention_bias")
    after = config.flag("use_post_norm")
    norms = (*PRE, "post_norm1", "post_norm2") if after else PRE
    channel = mlp(config, bias=config.flag("mlp_bias"))
    found = decoder(config, dense(config, channel, norms=norms, qkv_bias=bias, output_bias=bias))
    return replace(found, decoder_type="hyperclovax_normed_after") if after else found


@family("phi3")
def phi3(config: Config) -> Architecture:
    """Phi-3 and Phi-4: one linear for queries, keys and values, one for gate and up."""
    return decoder(config, dense(config, mlp(config, fused="gate_up_proj"), fused="qkv_proj"))


@family("glm", "glm4")
def glm(config: Config) -> Architecture:
    """GLM-4: biases on queries, keys and values; GLM-4-0414 adds a norm after each mixer."""
    norms = (*PRE, "post_self_attn_layernorm", "post_mlp_layernorm") if config.text("model_type") == "glm4" else PRE
    channel = mlp(config, fused="gate_up_proj")
    return decoder(config, dense(config, channel, norms=norms, qkv_bias=config.flag("attention_bias")))


@family("olmo2", "olmo3")
def olmo2(config: Config) -> Architecture:
    """OLMo 2 and 3: norms after the mixers, queries and keys normalised over their full width."""
    bias = config.flag("attention_bias")
    rule = every(4) if config.text("model_type") == "olmo3" else None
    layers = dense(config, mlp(config), rule=rule, norms=POST, qkv_bias=bias, output_bias=bias, qk_norm="full_width")
    return decoder(config, layers)


@family("exaone4")
def exaone4(config: Config) -> Architecture:
    """EXAONE 4: norms after the mixers, a norm on each head, hybrid windows."""
    return decoder(config, dense(config, mlp(config), rule=pattern_windows(config), norms=POST, qk_norm="per_head"))


def pattern_windows(config: Config) -> Callable[[int], str]:
    """Every ``sliding_window_pattern``-th layer is full, or those with a G in it; none is windowed when there is no window."""
    pattern = config.get("sliding_window_pattern")
    if isinstance(pattern, str) and 0 < len(pattern) <= MAX_LAYERS and not set(pattern) - set("LG"):
        return lambda index: SLIDING if pattern[index % len(pattern)] == "L" else FULL
    period = config.optional("sliding_window_pattern", minimum=0) if config.optional("sliding_window", minimum=0) else 0
    return every(period or 0)


@family("gemma2", "vaultgemma")
def gemma2(config: Config) -> Architecture:
    """Gemma 2: norms before and after each mixer, every second layer windowed, logits capped."""
    bias = config.flag("attention_bias")
    norms = SANDWICH if config.text("model_type") == "gemma2" else (SANDWICH[0], SANDWICH[2])
    layers = dense(
        config,
        mlp(config),
        rule=every(2),
        norms=norms,
        qkv_bias=bias,
        output_bias=bias,
        softcap=config.get("attn_logit_softcapping") is not None,
    )
    return decoder(config, layers, softcap=config.get("final_logit_softcapping") is not None)


@family("gemma3_text")
def gemma3(config: Config) -> Architecture:
    """Gemma 3: a norm on each head, one full layer in six."""
    bias = config.flag("attention_bias")
    if config.get("use_bidirectional_attention") is True:
        # transformers halves the window then: it reaches as far to both sides
        config = with_head(config, sliding_window=config.size("sliding_window") // 2 + 1)
    layers = dense(
        config,
        mlp(config),
        rule=every(config.optional("sliding_window_pattern", minimum=0) or 6),
        norms=SANDWICH,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="per_head",
        softcap=config.get("attn_logit_softcapping") is not None,
    )
    return decoder(config, layers, softcap=config.get("final_logit_softcapping") is not None)


def normed_by_head(layers: Sequence[Layer]) -> list[Layer]:
    """The same layers, whose queries and keys pass norms of each head: those among their weights, or without a weight."""
    normed: dict[Layer, Layer] = {}
    for layer in dict.fromkeys(layers):
        mixers = [replace(mixer, qk_norm="per_head") for mixer in layer.sequence if isinstance(mixer, Attention)]
        normed[layer] = replace(layer, sequence=tuple(mixers))
    return [normed[layer] for layer in layers]


@family("bitnet")
def bitnet(config: Config) -> Architecture:
    """BitNet: a norm inside each mixer, before its output projection."""
    bias = config.flag("attention_bias")
    channel = mlp(config, extra=scale("mlp.ffn_sub_norm", config.size("intermediate_size")))
    inner = scale("self_attn.attn_sub_norm", config.size("hidden_size"))
    return decoder(config, dense(config, channel, qkv_bias=bias, output_bias=bias, extra=inner))


@family("nanochat")
def nanochat(config: Config) -> Architecture:
    """nanochat: RMSNorm without scale, no gate."""
    bias = config.flag("attention_bias")
    channel = mlp(config, gated=False, names=("fc1", "fc2"))
    layers = normed_by_head(dense(config, channel, norm=bare_rms_norm, qkv_bias=bias, output_bias=bias))
    return decoder(config, layers, norm=bare_rms_norm, softcap=config.get("final_logit_softcapping") is not None)


@family("diffllama")
def diffllama(config: Config) -> Architecture:
    """Differential attention: two softmaxes weighed by four learned vectors a layer."""
    bias = config.flag("attention_bias")
    heads = config.size("num_attention_heads")
    head_dim = config.optional("head_dim") or config.size("hidden_size") // heads
    vectors = tuple(Weight(f"self_attn.lambda_{name}", (head_dim,), "other") for name in ("q1", "k1", "q2", "k2"))
    return decoder(config, dense(config, mlp(config), qkv_bias=bias, output_bias=bias, extra=vectors))


@family("glm4v_text")
def glm4v_text(config: Config) -> Architecture:
    """GLM-4V's text: GLM-4-0414's layers."""
    norms = (*PRE, "post_self_attn_layernorm", "post_mlp_layernorm")
    channel = mlp(config, fused="gate_up_proj")
    return decoder(config, dense(config, channel, norms=norms, qkv_bias=config.flag("attention_bias", default=True)))
