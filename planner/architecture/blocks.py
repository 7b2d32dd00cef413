"""The blocks families are written in: linears, norms, attention, feed-forward, decoder layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from planner.architecture.config import MAX_LAYERS, MAX_TOKENS, MAX_VOCABULARY, Config, dtype_of
from planner.architecture.layers import (
    Architecture,
    Attention,
    ChannelMixer,
    DenseMLP,
    Layer,
    Norm,
    Role,
    SequenceMixer,
    Stack,
    Weight,
)


def linear(
    name: str, out_features: int, in_features: int, *, bias: bool = False, role: Role = "linear", count: int = 1
) -> tuple[Weight, ...]:
    """A linear layer's weight (out_features, in_features), and its bias when it has one."""
    weight = Weight(f"{name}.weight", (out_features, in_features), role, count)
    return (weight, Weight(f"{name}.bias", (out_features,), "bias", count)) if bias else (weight,)


def rms_norm(name: str, width: int, *, upcasts: bool = True) -> Norm:
    """RMSNorm with a scale; transformers computes it in fp32."""
    return Norm(name, width, "rms", (Weight(f"{name}.weight", (width,), "norm"),), upcasts)


def layer_norm(name: str, width: int, *, bias: bool = True, weight: bool = True) -> Norm:
    """LayerNorm as ``torch.nn.LayerNorm`` does it, in the input's dtype."""
    weights = (Weight(f"{name}.weight", (width,), "norm"),) if weight else ()
    if bias and weight:
        weights += (Weight(f"{name}.bias", (width,), "bias"),)
    return Norm(name, width, "layer", weights, upcasts=False)


def num_layers(config: Config) -> int:
    """How many layers the stack has."""
    return config.size("num_hidden_layers", "n_layer", "n_layers", "num_layers", maximum=MAX_LAYERS)


def gqa(
    config: Config,
    *,
    qkv_bias: bool = False,
    output_bias: bool = False,
    qk_norm: Literal["none", "per_head", "full_width"] = "none",
    window_tokens: int | None = None,
    path: str = "self_attn",
) -> Attention:
    """Grouped-query attention as Llama names it: q_proj, k_proj, v_proj, o_proj, and q_norm, k_norm."""
    hidden = config.size("hidden_size")
    heads = config.size("num_attention_heads")
    kv_heads = config.optional("num_key_value_heads") or heads
    head_dim = config.optional("head_dim") or max(hidden // heads, 1)
    if heads % kv_heads:
        config.reader.fault("num_key_value_heads", f"must divide num_attention_heads ({heads}), got {kv_heads}")
    weights = (
        *linear(f"{path}.q_proj", heads * head_dim, hidden, bias=qkv_bias),
        *linear(f"{path}.k_proj", kv_heads * head_dim, hidden, bias=qkv_bias),
        *linear(f"{path}.v_proj", kv_heads * head_dim, hidden, bias=qkv_bias),
        *linear(f"{path}.o_proj", hidden, heads * head_dim, bias=output_bias),
    )
    if qk_norm != "none":
        per_head = qk_norm == "per_head"
        weights += (
            Weight(f"{path}.q_norm.weight", (head_dim if per_head else heads * head_dim,), "norm"),
            Weight(f"{path}.k_norm.weight", (head_dim if per_head else kv_heads * head_dim,), "norm"),
        )
    return Attention(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        value_head_dim=head_dim,
        weights=weights,
        window_tokens=window_tokens,
        rotary_dim=rotary_dim(config, head_dim),
        qk_norm=qk_norm,
    )


def rotary_dim(config: Config, head_dim: int) -> int:
    """Dimensions of a head that are rotated: all of them unless ``partial_rotary_factor`` says less."""
    rope = config.get("rope_parameters")
    nested = rope.get("partial_rotary_factor") if isinstance(rope, dict) else None
    share = nested if isinstance(nested, int | float) and 0 <= nested <= 1 else config.number("partial_rotary_factor", default=1.0)
    return int(head_dim * share)


def gated_mlp(config: Config, width: int | None = None, *, bias: bool = False, path: str = "mlp") -> DenseMLP:
    """SwiGLU-style feed-forward: down_proj(act(gate_proj) · up_proj)."""
    hidden = config.size("hidden_size")
    inner = config.size("intermediate_size") if width is None else width
    weights = (
        *linear(f"{path}.gate_proj", inner, hidden, bias=bias),
        *linear(f"{path}.up_proj", inner, hidden, bias=bias),
        *linear(f"{path}.down_proj", hidden, inner, bias=bias),
    )
    return DenseMLP(inner, True, config.text("hidden_act", "hidden_activation", default="silu"), weights)


def pre_norm(config: Config, sequence: SequenceMixer, channel: ChannelMixer) -> Layer:
    """A Llama-style layer: a norm before each mixer."""
    hidden = config.size("hidden_size")
    norms = (rms_norm("input_layernorm", hidden), rms_norm("post_attention_layernorm", hidden))
    return Layer((sequence,), (channel,), norms)


def decoder(config: Config, model_class: str, layers: Sequence[Layer], *, norm: Norm | None = None) -> Architecture:
    """A decoder-only language model: token embedding, layers, final norm, head (tied or not)."""
    hidden = config.size("hidden_size")
    vocabulary = config.size("vocab_size", maximum=MAX_VOCABULARY)
    tied = config.flag("tie_word_embeddings", default=True)
    head = () if tied or not config.head else linear(config.head, vocabulary, hidden, role="head")
    return Architecture(
        model_type=config.text("model_type"),
        model_class=model_class,
        kind="decoder",
        hidden_size=hidden,
        vocab_size=vocabulary,
        max_context_tokens=config.optional("max_position_embeddings", maximum=MAX_TOKENS),
        dtype=dtype_of(config),
        tied_head=tied,
        embeddings=(Weight(f"{config.base}embed_tokens.weight", (vocabulary, hidden), "embedding"),),
        head=head,
        final_norm=norm or rms_norm(f"{config.base}norm", hidden),
        decoder=Stack(f"{config.base}layers", "decoder", hidden, tuple(layers)),
        sources=config.sources,
    )
