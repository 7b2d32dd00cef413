"""The blocks families are written in: linears, norms, attention, feed-forward, layers, whole decoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from planner.architecture.config import MAX_LAYERS, MAX_TOKENS, MAX_VOCABULARY, Config, dtype_of
from planner.architecture.layers import (
    Architecture,
    Attention,
    ChannelMixer,
    DenseMLP,
    Layer,
    MixtureOfExperts,
    Norm,
    Role,
    SequenceMixer,
    Stack,
    Weight,
)

QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
GATE_UP_DOWN = ("gate_proj", "up_proj", "down_proj")
MakeNorm = Callable[[str, int], Norm]


def linear(
    name: str,
    out_features: int,
    in_features: int,
    *,
    bias: bool = False,
    role: Role = "linear",
    count: int = 1,
    is_linear: bool = False,
) -> tuple[Weight, ...]:
    """A linear layer's weight (out_features, in_features), and its bias when it has one.

    ``is_linear``: whether a router is an ``nn.Linear``, where most are modules with a parameter of their own.
    """
    weight = Weight(f"{name}.weight", (out_features, in_features), role, count, is_linear=is_linear)
    return (weight, Weight(f"{name}.bias", (out_features,), "bias", count)) if bias else (weight,)


def embedding(name: str, rows: int, width: int) -> Weight:
    """A lookup table of ``rows`` vectors."""
    return Weight(f"{name}.weight", (rows, width), "embedding")


def convolution(name: str, *shape: int, bias: bool = False) -> tuple[Weight, ...]:
    """A convolution's weight (out_channels, in_channels / groups, *kernel), and its bias."""
    weight = Weight(f"{name}.weight", shape, "conv")
    return (weight, Weight(f"{name}.bias", (shape[0],), "bias")) if bias else (weight,)


def rms_norm(name: str, width: int) -> Norm:
    """RMSNorm with a scale; transformers computes it in fp32."""
    return Norm(name, width, "rms", (Weight(f"{name}.weight", (width,), "norm"),))


def bare_rms_norm(name: str, width: int) -> Norm:
    """RMSNorm without a scale."""
    return Norm(name, width, "rms", ())


def layer_norm(name: str, width: int) -> Norm:
    """LayerNorm with scale and bias, as ``torch.nn.LayerNorm`` does it: in the dtype of its input."""
    return Norm(name, width, "layer", (*scale(name, width), Weight(f"{name}.bias", (width,), "bias")), upcasts=False)


def biasless_layer_norm(name: str, width: int) -> Norm:
    """LayerNorm with a scale only."""
    return Norm(name, width, "layer", scale(name, width), upcasts=False)


def bare_layer_norm(name: str, width: int) -> Norm:
    """LayerNorm without scale and bias."""
    return Norm(name, width, "layer", (), upcasts=False)


def scale(name: str, width: int) -> tuple[Weight, ...]:
    """The scale of a norm."""
    return (Weight(f"{name}.weight", (width,), "norm"),)


def num_layers(config: Config) -> int:
    """How many layers the stack has."""
    return config.size("num_hidden_layers", maximum=MAX_LAYERS)


def activation(config: Config) -> str:
    """The activation function of the feed-forward block."""
    return config.text("hidden_act", "hidden_activation", "activation_function", default="silu")


def head_counts(config: Config) -> tuple[int, int, int]:
    """Query heads, key-value heads, width of a head; keys and values of their own for each head when unsaid."""
    heads = config.size("num_attention_heads")
    kv_heads = config.optional("num_key_value_heads") or heads
    head_dim = config.optional("head_dim") or config.size("hidden_size") // heads
    config.require(heads % kv_heads == 0, "num_key_value_heads", f"must divide num_attention_heads ({heads}), got {kv_heads}")
    config.require(head_dim > 0, "num_attention_heads", f"must not exceed hidden_size, got {heads}")
    return heads, kv_heads, max(head_dim, 1)


def attention(
    config: Config,
    *,
    path: str = "self_attn",
    names: tuple[str, str, str, str] = QKVO,
    fused: str = "",
    qkv_bias: bool = False,
    output_bias: bool = False,
    qk_norm: Literal["none", "per_head", "full_width"] = "none",
    qk_norm_names: tuple[str, str] = ("q_norm", "k_norm"),
    heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    value_head_dim: int | None = None,
    hidden: int | None = None,
    window_tokens: int | None = None,
    chunk_tokens: int | None = None,
    kv: Literal["own", "shared", "cross"] = "own",
    kv_hidden: int | None = None,
    rotary: bool = True,
    causal: bool = True,
    output_gate: bool = False,
    sinks: bool = False,
    softcap: bool = False,
    extra: tuple[Weight, ...] = (),
) -> Attention:
    """Multi-head, grouped-query or multi-query attention.

    ``fused`` names one linear that makes queries, keys and values. ``output_gate`` doubles q_proj, its second half
    gates the output. ``kv_hidden``: width of the sequence that keys and values are made from, when it is another.
    """
    if heads is None or kv_heads is None or head_dim is None:
        read = head_counts(config)
        heads, kv_heads, head_dim = heads or read[0], kv_heads or read[1], head_dim or read[2]
    hidden = hidden or config.size("hidden_size")
    value_dim = value_head_dim or head_dim
    source = kv_hidden or hidden
    at = f"{path}." if path else ""
    widths = (heads * head_dim * (2 if output_gate else 1), kv_heads * head_dim, kv_heads * value_dim)
    if fused:
        weights = linear(f"{at}{fused}", sum(widths), hidden, bias=qkv_bias)
    else:
        own = 1 if kv == "shared" else 3
        inputs = (hidden, source, source)
        weights = tuple(
            weight
            for name, width, inner in list(zip(names, widths, inputs, strict=False))[:own]
            for weight in linear(f"{at}{name}", width, inner, bias=qkv_bias)
        )
    weights += linear(f"{at}{names[3]}", hidden, heads * value_dim, bias=output_bias)
    if qk_norm != "none":
        full = qk_norm == "full_width"
        weights += scale(f"{at}{qk_norm_names[0]}", head_dim * (heads if full else 1))
        if kv != "shared":
            weights += scale(f"{at}{qk_norm_names[1]}", head_dim * (kv_heads if full else 1))
    if sinks:
        weights += (Weight(f"{at}sinks", (heads,), "other"),)
    return Attention(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        value_head_dim=value_dim,
        weights=weights + extra,
        window_tokens=window_tokens,
        chunk_tokens=chunk_tokens,
        kv=kv,
        causal=causal,
        rotary_dim=rotary_dim(config, head_dim) if rotary else 0,
        qk_norm=qk_norm,
        fused_qkv=bool(fused),
        output_gate=output_gate,
        has_sinks=sinks,
        logit_softcap=softcap,
    )


PARTLY_ROTATED = {
    **dict.fromkeys(("glm", "glm4", "glm4_moe", "glm4v_moe", "nemotron", "persimmon", "phi"), 0.5),
    **dict.fromkeys(("gpt_neox", "stablelm", "qwen3_5", "qwen3_5_moe", "qwen3_next"), 0.25),
}
"""Shares that a configuration class sets where config.json names none (transformers 5.23 ``configuration_*.py``)."""


CAN_ROTATE_PARTLY = (
    "bamba deepseek_v4 fuyu glm glm4 glm4_moe glm4_moe_lite glm4v_moe_text glm4v_text glm_ocr_text gpt_neox gpt_neox_japanese "
    "laguna mellum mimo_v2_flash minimax_m2 minimax_m3_vl_text nemotron persimmon phi phi3 qwen3_5_moe_text qwen3_5_text "
    "qwen3_next recurrent_gemma solar_open stablelm"
)
"""Types whose code heeds ``partial_rotary_factor`` (transformers 5.23 ``modeling_*.py``); the others rotate whole heads."""


def rotary_dim(config: Config, head_dim: int) -> int:
    """Dimensions of a head that are rotated: all of them unless ``partial_rotary_factor``, or the class, says less."""
    if config.defaults.model_class and config.text("model_type") not in CAN_ROTATE_PARTLY.split():
        return head_dim
    share = config.mapping("rope_parameters").get("partial_rotary_factor")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        default = PARTLY_ROTATED.get(config.text("model_type").removesuffix("_text"), 1.0)
        share = config.number("partial_rotary_factor", "rotary_pct", default=default)
    return int(head_dim * share)


def mlp(
    config: Config,
    width: int | None = None,
    *,
    gated: bool = True,
    bias: bool = False,
    path: str = "mlp",
    names: tuple[str, ...] = GATE_UP_DOWN,
    fused: str = "",
    hidden: int | None = None,
    extra: tuple[Weight, ...] = (),
) -> DenseMLP:
    """A feed-forward block: down(act(gate) · up) when gated, else down(act(up)).

    ``names``: of gate, up and down, or of up and down. ``fused`` names one linear that makes gate and up.
    """
    hidden = hidden or config.size("hidden_size")
    inner = config.size("intermediate_size") if width is None else width
    at = f"{path}." if path else ""
    ups = (fused,) if fused else names[-3 if gated else -2 : -1]
    rows = inner * (2 if gated and fused else 1)
    weights = tuple(weight for name in ups for weight in linear(f"{at}{name}", rows, hidden, bias=bias))
    weights += linear(f"{at}{names[-1]}", hidden, inner, bias=bias)
    return DenseMLP(inner, gated, activation(config), weights + extra, fused_gate_up=bool(fused))


def experts(
    path: str, count: int, hidden: int, width: int, *, gated: bool = True, fused: bool = False, bias: bool = False
) -> tuple[Weight, ...]:
    """The routed experts of a layer: a gate, up and down of each, or one tensor of all where checkpoints store it so."""
    if fused:
        shapes = {"gate_up_proj": (2 * width, hidden), "down_proj": (hidden, width)}
        weights = tuple(Weight(f"{path}.{name}", shape, "expert", count) for name, shape in shapes.items())
        biases = tuple(Weight(f"{path}.{name}_bias", shape[:1], "bias", count) for name, shape in shapes.items())
        return weights + biases if bias else weights
    ups = GATE_UP_DOWN[:2] if gated else GATE_UP_DOWN[1:2]
    return (
        *(Weight(f"{path}.*.{name}.weight", (width, hidden), "expert", count) for name in ups),
        Weight(f"{path}.*.down_proj.weight", (hidden, width), "expert", count),
    )


def moe(
    config: Config,
    count: int,
    per_token: int,
    width: int,
    *,
    path: str = "mlp",
    router: str = "gate",
    router_bias: bool = False,
    router_is_linear: bool = False,
    correction: str = "",
    shared_width: int = 0,
    shared: str = "shared_experts",
    shared_bias: bool = False,
    shared_gate: bool = False,
    gated: bool = True,
    fused: bool = False,
    bias: bool = False,
    hidden: int | None = None,
    extra: tuple[Weight, ...] = (),
) -> MixtureOfExperts:
    """Routed experts with a router, and experts every token passes.

    ``correction`` names the router's balancing bias, a buffer in transformers. ``shared_gate``: a linear to one value
    weighs the shared expert's output.
    """
    config.require(per_token <= count, "num_experts_per_tok", f"must be at most the number of experts ({count}), got {per_token}")
    hidden = hidden or config.size("hidden_size")
    weights = linear(f"{path}.{router}", count, hidden, bias=router_bias, role="router", is_linear=router_is_linear)
    weights += experts(f"{path}.experts", count, hidden, width, gated=gated, fused=fused, bias=bias)
    if correction:
        weights += (Weight(f"{path}.{correction}", (count,), "bias", dtype="fp32", is_buffer=True),)
    if shared_width:
        weights += mlp(config, shared_width, path=f"{path}.{shared}", gated=gated, bias=shared_bias, hidden=hidden).weights
    if shared_gate:
        weights += linear(f"{path}.shared_expert_gate", 1, hidden, role="router", is_linear=True)
    return MixtureOfExperts(
        num_experts=count,
        experts_per_token=min(per_token, count),
        intermediate_size=width,
        gated=gated,
        activation=activation(config),
        weights=weights + extra,
        shared_intermediate_size=shared_width,
    )


def block(
    config: Config,
    sequence: SequenceMixer | None,
    channel: ChannelMixer | None,
    *,
    norms: Sequence[str] = ("input_layernorm", "post_attention_layernorm"),
    norm: MakeNorm = rms_norm,
    weights: tuple[Weight, ...] = (),
    parallel: bool = False,
    dropout: float = 0.0,
) -> Layer:
    """A layer of one sequence mixer and one channel mixer with norms over the hidden size.

    ``dropout``: of the mixers' outputs where the config does not say.
    """
    hidden = config.size("hidden_size")
    return Layer(
        (sequence,) if sequence is not None else (),
        (channel,) if channel is not None else (),
        tuple(norm(name, hidden) for name in norms),
        weights,
        parallel,
        config.number("resid_pdrop", "hidden_dropout", "dropout", default=dropout) > 0,
    )


def decoder(
    config: Config,
    layers: Sequence[Layer],
    *,
    norm: MakeNorm | None = rms_norm,
    norm_name: str = "norm",
    embed: str = "embed_tokens",
    layers_name: str = "layers",
    rows: int | None = None,
    embeddings: tuple[Weight, ...] = (),
    weights: tuple[Weight, ...] = (),
    head_bias: bool = False,
    softcap: bool = False,
    can_tie: bool = True,
) -> Architecture:
    """A decoder-only language model: token embedding, layers, final norm, and a head, its own or the embedding again.

    ``rows``: of the embedding when more than the vocabulary. ``embeddings``: further lookup tables, full names.
    ``weights``: what the model holds outside its layers, full names. ``can_tie``: whether the class heeds
    ``tie_word_embeddings``.
    """
    hidden = config.size("hidden_size")
    vocabulary = config.size("vocab_size", maximum=MAX_VOCABULARY)
    tied = can_tie and bool(config.head) and config.flag("tie_word_embeddings")
    labels = label_count(config) if config.head in ("score", "classifier") else 2 * (config.head == "qa_outputs")
    tied = tied and not labels
    bias = head_bias if not labels else config.defaults.model_class.endswith(("ForTokenClassification", "ForQuestionAnswering"))
    head = linear(config.head, labels or vocabulary, hidden, bias=bias, role="head") if config.head else ()
    return Architecture(
        model_type=config.text("model_type"),
        model_class=config.defaults.model_class,
        kind="decoder",
        hidden_size=hidden,
        vocab_size=vocabulary,
        max_context_tokens=config.optional("max_position_embeddings", maximum=MAX_TOKENS),
        dtype=dtype_of(config),
        tied_head=tied,
        embeddings=(embedding(f"{config.base}{embed}", rows or vocabulary, hidden), *embeddings),
        head=head[1:] if tied else head,
        final_norm=norm(f"{config.base}{norm_name}", hidden) if norm else None,
        decoder=Stack(f"{config.base}{layers_name}", "decoder", hidden, tuple(layers), weights),
        logit_softcap=softcap,
        unbuilt=prediction_modules(config, layers, hidden),
    )


def prediction_modules(config: Config, layers: Sequence[Layer], hidden: int) -> tuple[Stack, ...]:
    """Multi-token-prediction modules of the checkpoint, which transformers does not build: each is sized like the last layer."""
    count = config.optional("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers", minimum=0, maximum=64)
    if not count or not layers:
        return ()
    config.notes.append(f"the checkpoint's multi-token-prediction modules ({count}) are not built by transformers")
    joint = (
        *linear("mtp.eh_proj", hidden, 2 * hidden),
        *(w for name in ("enorm", "hnorm", "norm") for w in scale(f"mtp.{name}", hidden)),
    )
    return (Stack("mtp.layers", "mtp", hidden, (layers[-1],) * count, joint * count),)


def label_count(config: Config) -> int:
    """How many classes a classifier has: the names it gives them, else ``num_labels``, else two."""
    names = config.mapping("id2label") or config.mapping("label2id")
    return len(names) or config.optional("num_labels") or 2


def with_head(config: Config, *, head: str | None = None, base: str | None = None, **values: object) -> Config:
    """The same config for a class that names its head or base otherwise, or that reads ``values`` instead."""
    found = Config(
        {**config.values, **values} if values else config.values,
        config.defaults,
        reader=config.reader,
        base=config.base if base is None else base,
        head=config.head if head is None else head,
    )
    found.sources, found.notes, found.children = config.sources, config.notes, config.children
    found.read = config.read
    return found
