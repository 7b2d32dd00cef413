"""Gemma 3n and 4: per-layer embeddings, layers that reuse another's keys and values, global layers of another width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from planner.architecture.blocks import (
    attention,
    block,
    decoder,
    embedding,
    experts,
    head_counts,
    linear,
    mlp,
    num_layers,
    scale,
    with_head,
)
from planner.architecture.config import MAX_VOCABULARY, Config, Defaults
from planner.architecture.families.llama_like import FULL, SANDWICH, SLIDING
from planner.architecture.families.registry import family
from planner.architecture.layers import Architecture, Attention, Layer, MixtureOfExperts, Weight


def layer_kinds(config: Config, types: tuple[str, ...]) -> list[tuple[str, bool]]:
    """For each layer its type and whether it reuses an earlier layer's keys and values: the last ones do."""
    shared = config.optional("num_kv_shared_layers", minimum=0) or 0
    first = len(types) - shared
    if shared and (first <= 0 or set(types[first:]) - set(types[:first])):
        config.reader.fault("num_kv_shared_layers", f"must leave a layer of each type to share from, got {shared}")
    return [(name, index >= first) for index, name in enumerate(types)]


def per_layer_inputs(config: Config, layers: int, width: int) -> tuple[tuple[Weight, ...], tuple[Weight, ...]]:
    """A second embedding with a vector for each layer, and the projection that mixes the first into it."""
    hidden = config.size("hidden_size")
    rows = config.optional("vocab_size_per_layer_input", maximum=MAX_VOCABULARY) or config.size(
        "vocab_size", maximum=MAX_VOCABULARY
    )
    table = embedding(f"{config.base}embed_tokens_per_layer", rows, layers * width)
    projection = linear(f"{config.base}per_layer_model_projection", layers * width, hidden)
    return (table,), (*projection, *scale(f"{config.base}per_layer_projection_norm", width))


def per_layer_gate(config: Config, width: int) -> tuple[Weight, ...]:
    """How a layer takes up its own vector of the second embedding."""
    hidden = config.size("hidden_size")
    return (
        *linear("per_layer_input_gate", width, hidden),
        *linear("per_layer_projection", hidden, width),
        *scale("post_per_layer_input_norm", hidden),
    )


@family("gemma3n_text")
def gemma3n(config: Config) -> Architecture:
    """Gemma 3n: four residual streams (AltUp), low-rank side paths (LAuReL), per-layer embeddings."""
    layers, hidden = num_layers(config), config.size("hidden_size")
    widths = layer_widths(config, layers)
    types = config.layer_types(layers, lambda index: SLIDING if (index + 1) % 5 else FULL, (FULL, SLIDING))
    streams, per_layer = config.size("altup_num_inputs"), config.size("hidden_size_per_layer_input")
    sides = (*altup(config, streams), *laurel(config), *per_layer_gate(config, per_layer))

    def layer(kind: str, *, shared: bool, width: int) -> Layer:
        mixer = gemma_attention(config, kind, shared=shared)
        return block(config, mixer, mlp(config, width), norms=SANDWICH, weights=sides)

    kinds = [(*kind, width) for kind, width in zip(layer_kinds(config, types), widths, strict=False)]
    made = {kind: layer(kind[0], shared=kind[1], width=kind[2]) for kind in dict.fromkeys(kinds)}
    tables, outside = per_layer_inputs(config, layers, per_layer)
    at = config.base
    for index in range(streams - 1):
        outside += linear(f"{at}altup_projections.{index}", hidden, hidden)
        outside += linear(f"{at}altup_unembed_projections.{index}", hidden, hidden)
    return decoder(
        config,
        [made[kind] for kind in kinds],
        embeddings=tables,
        weights=outside,
        softcap=config.get("final_logit_softcapping") is not None,
    )


def layer_widths(config: Config, layers: int) -> tuple[int, ...]:
    """Width of each layer's feed-forward block: a list, or one number for all."""
    if isinstance(config.get("intermediate_size"), list | tuple):
        return config.integers("intermediate_size", length=layers) or (1,) * layers
    return (config.size("intermediate_size"),) * layers


def altup(config: Config, streams: int) -> tuple[Weight, ...]:
    """Predicts and corrects the idle residual streams (Alternating Updates, Baykal et al. 2023)."""
    hidden = config.size("hidden_size")
    return (
        Weight("altup.correct_output_scale", (hidden,), "other"),
        *linear("altup.correction_coefs", streams, streams),
        *linear("altup.prediction_coefs", streams**2, streams),
        *linear("altup.modality_router", streams, hidden),
        *scale("altup.router_norm", hidden),
    )


def laurel(config: Config) -> tuple[Weight, ...]:
    """A low-rank path beside the attention (Learned Augmented Residual Layer, Menghani et al. 2024)."""
    hidden, rank = config.size("hidden_size"), config.size("laurel_rank")
    return (
        *linear("laurel.linear_left", rank, hidden),
        *linear("laurel.linear_right", hidden, rank),
        *scale("laurel.post_laurel_norm", hidden),
    )


def gemma_attention(
    config: Config,
    kind: str,
    *,
    shared: bool,
    head_dim: int | None = None,
    kv_heads: int | None = None,
    keys_are_values: bool = False,
) -> Attention:
    """Grouped-query attention with head norms; a layer that shares has no keys and values of its own."""
    bias = config.flag("attention_bias")
    found = attention(
        config,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="per_head",
        head_dim=head_dim,
        kv_heads=kv_heads,
        window_tokens=config.size("sliding_window") if kind == SLIDING else None,
        kv="shared" if shared else "own",
    )
    if not keys_are_values:
        return found
    return replace(found, weights=tuple(weight for weight in found.weights if not weight.name.startswith("self_attn.v_proj")))


@family("gemma4_text", "gemma4_unified_text")
def gemma4(config: Config) -> Architecture:
    """Gemma 4: global layers with wider and fewer heads, whose keys may serve as values; experts beside the dense block."""
    if config.get("use_bidirectional_attention") == "all":
        # transformers halves the window then: it reaches as far to both sides
        config = with_head(config, sliding_window=config.size("sliding_window") // 2 + 1)
    layers = num_layers(config)
    types = config.layer_types(layers, lambda index: SLIDING if (index + 1) % 6 else FULL, (FULL, SLIDING))
    types = (*types[:-1], FULL)
    unified = config.text("model_type") == "gemma4_unified_text"
    per_layer = 0 if unified else config.optional("hidden_size_per_layer_input", minimum=0) or 0
    same = config.flag("attention_k_eq_v")
    heads = head_shapes(config, types, same=same)
    scalar = Weight("layer_scalar", (1,), "other", is_buffer=True)
    sides = (*(per_layer_gate(config, per_layer) if per_layer else ()), scalar)
    doubled = config.flag("use_double_wide_mlp")

    def layer(kind: str, shared: bool, head_dim: int, kv_heads: int) -> Layer:  # noqa: FBT001 - one value of a key
        mixer = gemma_attention(
            config,
            kind,
            shared=shared,
            head_dim=head_dim,
            kv_heads=kv_heads,
            keys_are_values=kind == FULL and same and not shared,
        )
        channel = mlp(config, config.size("intermediate_size") * (2 if doubled and shared else 1))
        found = block(config, mixer, channel, norms=SANDWICH, weights=sides)
        return gemma4_experts(config, found) if config.flag("enable_moe_block") and not unified else found

    kinds = [(*kind, *shape) for kind, shape in zip(layer_kinds(config, types), heads, strict=True)]
    made = {kind: layer(*kind) for kind in dict.fromkeys(kinds)}
    tables, outside = per_layer_inputs(config, layers, per_layer) if per_layer else ((), ())
    return decoder(
        config,
        [made[kind] for kind in kinds],
        embeddings=tables,
        weights=outside,
        softcap=config.get("final_logit_softcapping") is not None,
    )


def head_shapes(config: Config, types: tuple[str, ...], *, same: bool) -> list[tuple[int, int]]:
    """Width of a head and key-value heads of each layer: global layers have their own, or ``per_layer_config`` lists them."""
    _, kv_heads, head_dim = head_counts(config)
    if not isinstance(config.get("per_layer_config"), Mapping):
        wide = config.optional("global_head_dim") or 512
        fewer = (config.optional("num_global_key_value_heads") or kv_heads) if same else kv_heads
        return [(wide, fewer) if kind == FULL else (head_dim, kv_heads) for kind in types]
    overrides = config.child("per_layer_config", Defaults())
    found = {int(key): key for key in overrides.values if isinstance(key, str) and key.isdecimal() and len(key) <= 5}
    shapes = []
    for index in range(len(types)):
        own = overrides.child(found[index], Defaults()) if index in found else config
        dim = own.size("head_dim") if "head_dim" in own.values else head_dim
        heads = own.size("num_key_value_heads") if "num_key_value_heads" in own.values else kv_heads
        shapes.append((dim, heads))
    return shapes


def gemma4_experts(config: Config, layer: Layer) -> Layer:
    """The layer with routed experts beside its dense block, and the three norms they need."""
    hidden, width = config.size("hidden_size"), config.size("moe_intermediate_size")
    count, per_token = config.size("num_experts", maximum=2**20), config.size("top_k_experts", "num_experts_per_tok")
    weights = (
        Weight("router.scale", (hidden,), "other"),
        Weight("router.per_expert_scale", (count,), "other"),
        *linear("router.proj", count, hidden, role="router", is_linear=True),
        *experts("experts", count, hidden, width, fused=True),
    )
    sparse = MixtureOfExperts(count, min(per_token, count), width, True, layer.channel[0].activation, weights)
    names = ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2")
    norms = block(config, None, None, norms=names).norms
    return replace(layer, channel=(*layer.channel, sparse), norms=layer.norms + norms)
