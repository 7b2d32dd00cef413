"""Why a published parameter count differs from the model transformers builds."""

from __future__ import annotations

from itertools import combinations
from math import prod

from planner.architecture.counts import iter_weights, layer_groups, layer_weights, numel, parameter_count
from planner.architecture.layers import Architecture, Attention, Stack, Weight
from planner.record import record

SCALE_BLOCK = 128
"""Side of the blocks that share one scale in DeepSeek's fp8 checkpoints (``weight_scale_inv``)."""

UNACCOUNTED = 1e-8
"""Share of a checkpoint that may stay unexplained: Kimi K2's headers count 3,416 elements more than can be named."""


@record
class Difference:
    """One thing a checkpoint holds beside the built model's parameters."""

    words: str
    elements: int


def explain_published(architecture: Architecture, published: int) -> tuple[Difference, ...] | None:
    """The things whose elements add up to the difference; empty when there is none, None when nothing adds up.

    ``published``: elements of the checkpoint as its headers count them.
    """
    total = parameter_count(architecture)
    difference = published - total
    if difference == 0:
        return ()
    known = [item for item in differences(architecture) if item.elements]
    sums = {chosen: sum(item.elements for item in chosen) for size in range(1, 5) for chosen in combinations(known, size)}
    rest, chosen = min(
        ((difference - found, chosen) for chosen, found in sums.items() if found <= difference),
        default=(difference, ()),
        key=lambda pair: (pair[0], len(pair[1])),
    )
    if not 0 <= rest <= published * UNACCOUNTED:
        return None
    return (*chosen, Difference("elements not accounted for", rest)) if rest else chosen


def differences(architecture: Architecture) -> list[Difference]:
    """What checkpoints are known to hold beside the parameters."""
    vocabulary, hidden = architecture.vocab_size, architecture.hidden_size
    mtp = prediction_module(architecture)
    own = 2 * vocabulary * hidden
    scaled = block_scales(architecture)
    with_module = scaled + sum(scales(weight) for weight in mtp)
    module = sum(numel(weight) for weight in mtp)
    buffers: dict[str, int] = {}
    for _, weight, times in iter_weights(architecture):
        if weight.is_buffer:
            name = weight.name.rsplit(".", 1)[-1]
            buffers[name] = buffers.get(name, 0) + numel(weight) * times
    words = "the multi-token-prediction module, which transformers does not build"
    found = [
        Difference("the head stored although it is tied to the embedding", vocabulary * hidden if architecture.tied_head else 0),
        *(Difference(f"buffers {name}", count) for name, count in buffers.items()),
        Difference(words, module),
        Difference(f"{words}, with an embedding and a head of its own", module + own if module else 0),
        Difference("keys, values and their norms of layers that reuse an earlier layer's", shared_layers(architecture)),
        Difference("fp8 scales, one for each block of 128 × 128", scaled),
        Difference("fp8 scales, those of the module too", with_module),
    ]
    return found + rotary_and_masks(architecture) + pretraining_heads(architecture)


def prediction_module(architecture: Architecture) -> list[Weight]:
    """One more layer like the last, with a projection of two hidden states and three norms."""
    layers, hidden = architecture.decoder.layers, architecture.hidden_size
    if not layers or architecture.kind != "decoder":
        return []
    joint = Weight("eh_proj.weight", (hidden, 2 * hidden), "other")
    return [*layer_weights(layers[-1]), joint, Weight("norms", (3 * hidden,), "norm")]


def scales(weight: Weight) -> int:
    """Scales of one weight stored in fp8 by blocks."""
    if weight.role not in ("linear", "expert") or len(weight.shape) != 2:
        return 0
    return weight.count * prod(-(-side // SCALE_BLOCK) for side in weight.shape)


def block_scales(architecture: Architecture) -> int:
    """Scales of all linear layers and experts of the decoder."""
    return sum(scales(weight) * count for layer, count in layer_groups(architecture.decoder) for weight in layer_weights(layer))


def shared_layers(architecture: Architecture) -> int:
    """Elements of the keys, values and key norms that layers without a cache of their own would have."""
    total = 0
    for layer, count in layer_groups(architecture.decoder):
        for mixer in layer.sequence:
            if isinstance(mixer, Attention) and mixer.kv == "shared":
                width = mixer.num_kv_heads * (mixer.head_dim + mixer.value_head_dim)
                total += count * (width * architecture.hidden_size + mixer.head_dim)
    return total


def rotary_and_masks(architecture: Architecture) -> list[Difference]:
    """Buffers of older releases: rotary frequencies and causal masks of each layer."""
    mixers = attention_layers(architecture.decoder)
    frequencies = sum(mixer.rotary_dim // 2 for mixer in mixers)
    context = architecture.max_context_tokens or 0
    masks = len(mixers) * context**2
    return [
        Difference("rotary frequencies, a buffer of older releases", frequencies),
        Difference("causal masks, a buffer of older releases", masks),
    ]


def attention_layers(stack: Stack) -> list[Attention]:
    """The attention mixers of a stack, one entry a layer."""
    return [mixer for layer in stack.layers for mixer in layer.sequence if isinstance(mixer, Attention)]


def pretraining_heads(architecture: Architecture) -> list[Difference]:
    """BERT's heads for masked words and for the next sentence."""
    if architecture.kind != "encoder" or not architecture.model_class.endswith("Model"):
        return []
    hidden, vocabulary = architecture.hidden_size, architecture.vocab_size
    masked = hidden * hidden + 3 * hidden + vocabulary
    return [Difference("the pre-training heads for masked words and the next sentence", masked + 2 * hidden + 2)]
