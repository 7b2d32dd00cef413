"""Tensor parallelism: the model as one rank computes it.

Heads, feed-forward widths and the rows of the head are divided, norms and the residual stream are whole on every rank
(Shoeybi et al. 2019, section 3). transformers 5.23 (``distributed/tensor_parallel.py``, each model's ``base_model_tp_plan``)
and torchtitan lay it out by DTensor: a matrix that widens is cut by rows, one that narrows by columns, its partial result
is summed into a tensor of its own, and the head's logits are gathered. Megatron cuts the embedding by rows too and keeps
its logits cut.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from planner.architecture.layers import (
    Architecture,
    Attention,
    ChannelMixer,
    DenseMLP,
    LatentAttention,
    Layer,
    MixtureOfExperts,
    SequenceMixer,
    Weight,
)
from planner.faults import Fault
from planner.memo import remember_by_identity
from planner.modelled import NotModelled
from planner.sharding import Split, rank_weight

Mixer = TypeVar("Mixer", bound=SequenceMixer | ChannelMixer)


def tensor_faults(architecture: Architecture, ways: int) -> list[Fault]:
    """What training refuses beyond serving: key-value heads are not copied, feed-forward widths are divided evenly."""
    faults = {}
    for layer in architecture.decoder.layers:
        for mixer in layer.sequence:
            heads = mixer.num_kv_heads if isinstance(mixer, Attention) else 0
            if heads % ways:
                message = f"{ways} does not divide the {heads} key-value heads, which training does not copy"
                faults["kv_heads"] = Fault("parallel.tensor", message)
        for channel in layer.channel:
            if channel.intermediate_size % ways:
                message = f"{ways} does not divide the feed-forward width {channel.intermediate_size}"
                faults["width"] = Fault("parallel.tensor", message)
    return list(faults.values())


@remember_by_identity(64)
def tensor_rank(architecture: Architecture, ways: int, experts: int = 1, *, cuts_embedding: bool = False) -> Architecture:
    """The architecture of one of ``ways`` ranks. ``experts``: ranks that share the experts by number instead.

    ``cuts_embedding``: the vocabulary is cut in the embedding too. Raises :class:`NotModelled` for recurrent mixers.
    """
    split = Split(tensor=ways, experts=experts)
    changed = {id(layer): _layer(layer, split) for layer in architecture.decoder.layers}

    def rows(weight: Weight) -> Weight:
        cut = weight.shape[0] == architecture.vocab_size
        return replace(weight, shape=(-(-weight.shape[0] // ways), *weight.shape[1:])) if cut else weight

    return replace(
        architecture,
        embeddings=tuple(map(rows, architecture.embeddings)) if cuts_embedding else architecture.embeddings,
        head=tuple(map(rows, architecture.head)),
        decoder=replace(architecture.decoder, layers=tuple(changed[id(layer)] for layer in architecture.decoder.layers)),
    )


def _layer(layer: Layer, split: Split) -> Layer:
    return replace(
        layer,
        sequence=tuple(_sequence(mixer, split) for mixer in layer.sequence),
        channel=tuple(_channel(mixer, split) for mixer in layer.channel),
    )


def _sequence(mixer: SequenceMixer, split: Split) -> SequenceMixer:
    mixer = _with_weights(mixer, split)
    if split.tensor == 1:
        return mixer
    _refuse_uncut(mixer)
    if isinstance(mixer, Attention):
        cached = mixer.cached_kv_heads
        return replace(
            mixer, num_heads=mixer.num_heads // split.tensor, num_kv_heads=mixer.num_kv_heads // split.tensor,
            cached_kv_heads=cached // split.tensor if cached else cached,
        )  # fmt: skip
    if isinstance(mixer, LatentAttention):
        return replace(mixer, num_heads=mixer.num_heads // split.tensor)
    raise NotModelled(f"parallel.tensor: {mixer.kind} mixers split over ranks are not modelled in training")


def _channel(mixer: ChannelMixer, split: Split) -> ChannelMixer:
    mixer = _with_weights(mixer, split)
    if split.tensor > 1:
        _refuse_uncut(mixer)
    if isinstance(mixer, DenseMLP):
        return replace(mixer, intermediate_size=mixer.intermediate_size // split.tensor)
    width = mixer.intermediate_size if split.experts > 1 else mixer.intermediate_size // split.tensor
    return replace(mixer, intermediate_size=width, shared_intermediate_size=mixer.shared_intermediate_size // split.tensor)


NOT_CUT = ("_sub_norm.weight", ".g_proj.weight", ".gate_proj.weight", ".lambda_q1")
"""Inside an attention, or before the last linear of a feed-forward block: what nobody has read how ranks share."""


def _refuse_uncut(mixer: SequenceMixer | ChannelMixer) -> None:
    """A norm before the output projection sees a part of its width on each rank; gates and weighed halves were not read."""
    inside = NOT_CUT if not isinstance(mixer, DenseMLP | MixtureOfExperts) else NOT_CUT[:1]
    if any(weight.name.endswith(inside) for weight in mixer.weights):
        raise NotModelled("parallel.tensor: norms and gates inside the mixers have no closed form on several ranks yet")


def _with_weights(mixer: Mixer, split: Split) -> Mixer:
    return replace(mixer, weights=tuple(rank_weight(weight, mixer, split) for weight in mixer.weights))


def has_experts(architecture: Architecture) -> bool:
    """Whether any layer has routed experts."""
    return any(isinstance(channel, MixtureOfExperts) for layer in architecture.decoder.layers for channel in layer.channel)
