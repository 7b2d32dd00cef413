"""What a model is, in the words and figures a person asks for first."""

from __future__ import annotations

from dataclasses import asdict

from planner.architecture.counts import (
    active_parameter_count,
    embedding_parameter_count,
    layer_groups,
    parameter_count,
)
from planner.architecture.layers import (
    Architecture,
    Attention,
    ChannelMixer,
    DenseMLP,
    LatentAttention,
    Layer,
    SequenceMixer,
)
from planner.components.cache import cache_bytes
from planner.formats import BytesUnknown, Format, checkpoint_bytes
from planner.record import record

RECURRENT_WORDS = {
    "mamba": "Mamba", "mamba2": "Mamba-2", "gated_delta_net": "gated delta net", "lightning": "linear attention",
    "short_conv": "short convolution", "rg_lru": "gated linear recurrence",
}  # fmt: skip
SAMPLE_TOKENS = 1


@record
class ModelDescription:
    """Figures of one model; ``layers`` are (stack, how many, what they are) in order of first appearance."""

    model_class: str
    model_type: str
    verified: bool
    parameters: int
    active_parameters: int
    embedding_parameters: int
    stored_as: str
    weight_bytes: int | None
    max_context_tokens: int | None
    cache_bytes_per_token: int | None
    state_bytes_per_sequence: int | None
    layers: tuple[tuple[str, int, str], ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """JSON-ready data."""
        layers = [{"stack": stack, "count": count, "kind": kind} for stack, count, kind in self.layers]
        return asdict(self) | {"layers": layers, "notes": list(self.notes)}


def describe_model(architecture: Architecture, stored: Format) -> ModelDescription:
    """Everything ``models show`` prints. ``stored``: the format of the checkpoint. Cache bytes are of a 16-bit cache."""
    try:
        weight_bytes = checkpoint_bytes(architecture, stored).total_bytes
    except BytesUnknown:
        weight_bytes = None
    cache = cache_bytes(architecture, 1, SAMPLE_TOKENS)
    stacks = (architecture.decoder, *architecture.towers, *architecture.unbuilt)
    return ModelDescription(
        model_class=architecture.model_class,
        model_type=architecture.model_type,
        verified=architecture.verified,
        parameters=parameter_count(architecture),
        active_parameters=active_parameter_count(architecture),
        embedding_parameters=embedding_parameter_count(architecture),
        stored_as=stored.label if stored.is_quantized else architecture.dtype,
        weight_bytes=weight_bytes,
        max_context_tokens=architecture.max_context_tokens,
        cache_bytes_per_token=cache.per_token_bytes,
        state_bytes_per_sequence=cache.constant_bytes,
        layers=tuple((stack.name, count, layer_kind(layer)) for stack in stacks for layer, count in layer_groups(stack)),
        notes=architecture.notes,
    )


def layer_kind(layer: Layer) -> str:
    """``GQA 32/8 × 128, window 4096 + gated MLP 14336``."""
    parts = [_mixer(mixer) for mixer in layer.sequence] + [_channel(channel) for channel in layer.channel]
    return " + ".join(parts) or "nothing"


def _mixer(mixer: SequenceMixer) -> str:
    match mixer:
        case Attention():
            return _attention(mixer)
        case LatentAttention():
            return f"MLA {mixer.num_heads} heads, {mixer.kv_lora_rank} + {mixer.qk_rope_head_dim} cached" + (
                f", indexer {mixer.indexer.head_dim}" if mixer.indexer else ""
            )
        case _:
            kind = str(getattr(mixer, "kind", type(mixer).__name__))
            return RECURRENT_WORDS.get(kind, kind)


def _attention(mixer: Attention) -> str:
    grouped = "MQA" if mixer.num_kv_heads == 1 else "GQA"
    kind = "MHA" if mixer.num_kv_heads == mixer.num_heads else grouped
    words = [f"{kind} {mixer.num_heads}/{mixer.num_kv_heads} × {mixer.head_dim}"]
    if mixer.window_tokens is not None:
        words.append(f"window {mixer.window_tokens}")
    if mixer.chunk_tokens is not None:
        words.append(f"chunk {mixer.chunk_tokens}")
    if mixer.kv != "own":
        words.append({"shared": "shared cache", "cross": "cross-attention"}[mixer.kv])
    return ", ".join(words)


def _channel(channel: ChannelMixer) -> str:
    if isinstance(channel, DenseMLP):
        return f"{'gated ' if channel.gated else ''}MLP {channel.intermediate_size}"
    shared = f", {channel.shared_intermediate_size} shared" if channel.shared_intermediate_size else ""
    return f"{channel.experts_per_token} of {channel.num_experts} experts {channel.intermediate_size}{shared}"
