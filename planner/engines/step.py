"""What one step of a serving engine holds beside weights and caches: hidden states and the widest layer's values.

Attention itself is fused and leaves its scores in registers. Sizes are of one rank.
"""

from __future__ import annotations

from planner.architecture.counts import layer_groups
from planner.architecture.layers import Architecture, Attention, ChannelMixer, LatentAttention, Layer, MixtureOfExperts, Recurrent
from planner.memo import remember_by_identity
from planner.sharding import rank_kv_heads
from planner.symbolic.amount import largest

HELD_STREAMS = 4
"""Hidden states alive at the widest moment of a compiled layer: its input and residual, which the caller still holds,
the new residual, and the norm's output."""


def step_bytes(architecture: Architecture, layers: range, tokens: int, tensor: int, experts: int, dtype_bytes: int) -> int:
    """Bytes of a forward of ``tokens`` tokens through ``layers`` at its widest moment, latent entries expanded to heads."""
    return HELD_STREAMS * tokens * architecture.hidden_size * dtype_bytes + widest_layer_bytes(
        architecture, layers, tokens, tensor, experts, dtype_bytes, tokens
    )


@remember_by_identity(512)
def widest_layer_bytes(
    architecture: Architecture, layers: range, tokens: int, tensor: int, experts: int, dtype_bytes: int, expanded_tokens: int
) -> int:
    """Projections and MLP values of the widest layer among ``layers``.

    ``expanded_tokens``: tokens whose latent entries are expanded to heads at once.
    """
    held = {id(architecture.decoder.layers[index]) for index in layers}
    hidden = architecture.hidden_size
    sizes = [
        dtype_bytes * _layer_values(layer, tokens, hidden, tensor, experts, expanded_tokens)
        for layer, _ in layer_groups(architecture.decoder)
        if id(layer) in held
    ]
    widest: int = largest(0, *sizes)
    return widest


def _layer_values(layer: Layer, tokens: int, hidden: int, tensor: int, experts: int, expanded_tokens: int) -> int:
    """The widest moment of one layer: its channel mixer beside the attention projections its caller still holds."""
    mixers = sum(_mixer_values(mixer, tensor) for mixer in layer.sequence)
    channels = max((_channel_values(mixer, hidden, tensor, experts) for mixer in layer.channel), default=0)
    latent = max((_latent_values(mixer, tensor) for mixer in layer.sequence if isinstance(mixer, LatentAttention)), default=0)
    widest: int = largest(tokens * (mixers + channels), tokens * mixers + expanded_tokens * latent)
    return widest


def _mixer_values(mixer: object, tensor: int) -> int:
    """Values a token has in a mixer's projections."""
    if isinstance(mixer, Attention):
        kv_heads = rank_kv_heads(mixer.num_kv_heads, tensor)
        query = mixer.num_heads // tensor * mixer.head_dim * (2 if mixer.output_gate else 1)
        return query + kv_heads * (mixer.head_dim + mixer.value_head_dim)
    if isinstance(mixer, LatentAttention):
        return mixer.num_heads // tensor * (mixer.qk_nope_head_dim + mixer.qk_rope_head_dim) + mixer.kv_lora_rank
    assert isinstance(mixer, Recurrent)  # noqa: S101  there is no fourth kind
    return (mixer.conv_channels + 2 * mixer.inner_dim) // tensor


def _latent_values(mixer: LatentAttention, tensor: int) -> int:
    """Values of a token's keys and values of every head, expanded from its latent entry."""
    return mixer.num_heads // tensor * (mixer.qk_nope_head_dim + mixer.v_head_dim)


def _channel_values(mixer: ChannelMixer, hidden: int, tensor: int, experts: int) -> int:
    """Values a token has in an MLP: gate and up, and their product; for experts two workspaces and the output."""
    if isinstance(mixer, MixtureOfExperts):
        width = mixer.intermediate_size if experts > 1 else mixer.intermediate_size // tensor
        wide = 2 * width if mixer.gated else width
        return mixer.experts_per_token * (max(width, hidden) + max(wide, hidden)) + hidden
    return mixer.intermediate_size // tensor * (3 if mixer.gated else 2)
