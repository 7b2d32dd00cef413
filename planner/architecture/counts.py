"""How many parameters an architecture has, and every weight once."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from planner.architecture.layers import (
    Architecture,
    Attention,
    Layer,
    MixtureOfExperts,
    Stack,
    Weight,
)


def layer_groups(stack: Stack) -> list[tuple[Layer, int]]:
    """The distinct layers of a stack in order of first appearance, and how often each occurs."""
    return [(layer, len(indices)) for layer, indices in layer_indices(stack)]


def layer_indices(stack: Stack) -> list[tuple[Layer, tuple[int, ...]]]:
    """The distinct layers of a stack in order of first appearance, and the positions of each."""
    positions: dict[int, list[int]] = {}
    for index, layer in enumerate(stack.layers):
        positions.setdefault(id(layer), []).append(index)
    return [(stack.layers[found[0]], tuple(found)) for found in positions.values()]


def layer_weights(layer: Layer) -> Iterator[Weight]:
    """Every weight of one layer: its mixers', its norms', its own."""
    for mixer in layer.sequence:
        yield from mixer.weights
    for channel in layer.channel:
        yield from channel.weights
    for norm in layer.norms:
        yield from norm.weights
    yield from layer.weights


def head_matrix(architecture: Architecture) -> Weight:
    """What the head multiplies with: the embeddings where it is tied to them, be there a bias of its own or not."""
    return architecture.embeddings[0] if architecture.tied_head or not architecture.head else architecture.head[0]


def waits_for_images(layer: Layer) -> bool:
    """Whether a decoder's layer reads an image's encodings alone: without an image it is passed over (``MllamaTextModel``)."""
    return any(isinstance(mixer, Attention) and mixer.kv == "cross" for mixer in layer.sequence) and len(layer.sequence) == 1


def stack_weights(stack: Stack) -> Iterator[tuple[str, Weight, int]]:
    """Every weight of a stack: path of its owner with the closing dot, weight, how often it occurs."""
    for layer, count in layer_groups(stack):
        for weight in layer_weights(layer):
            yield f"{stack.name}.*.", weight, count
    for weight in stack.weights:
        yield "", weight, 1


def iter_weights(architecture: Architecture) -> Iterator[tuple[str, Weight, int]]:
    """Every weight transformers builds, tied ones once: path prefix, weight, how often it occurs.

    Equal layers are folded: ``("model.layers.*.", Weight("self_attn.q_proj.weight", …), 32)``. Full name =
    prefix + name; elements = product of the shape × ``weight.count`` × how often. Buffers are included, marked so.
    """
    yield from decoder_weights(architecture)
    for reached, *found in _placed(architecture):
        if not reached:
            yield tuple(found)  # type: ignore[misc]


def decoder_weights(architecture: Architecture) -> Iterator[tuple[str, Weight, int]]:
    """Of :func:`iter_weights` the first, those that get gradients from a text without images and sounds."""
    for reached, *found in _placed(architecture):
        if reached:
            yield tuple(found)  # type: ignore[misc]


def _placed(architecture: Architecture) -> Iterator[tuple[bool, str, Weight, int]]:
    """Whether gradients of a text reach a weight, its path, itself, and how often it occurs.

    They don't reach a tower beside a decoder, layers that wait for images, what chooses tokens for sparse attention without
    gradients (``DeepseekV32Indexer``), and tables that are computed once.
    """
    stack = architecture.decoder
    for weight in (*architecture.embeddings, *architecture.head):
        yield not weight.fixed, "", weight, 1
    for weight in architecture.final_norm.weights if architecture.final_norm is not None else ():
        yield True, "", weight, 1
    for layer, count in layer_groups(stack):
        passed = stack.kind != "decoder" or not waits_for_images(layer)
        for weight in layer_weights(layer):
            yield passed and ".indexer." not in weight.name, f"{stack.name}.*.", weight, count
    for weight in stack.weights:
        yield not weight.fixed, "", weight, 1
    for tower in architecture.towers:
        for path, weight, times in stack_weights(tower):
            yield architecture.kind == "encoder-decoder" and not weight.fixed, path, weight, times


def is_routed(weight: Weight) -> bool:
    """Whether a weight of a mixture of experts belongs to the routed experts, of which a token takes some."""
    return weight.role == "expert" or (weight.role == "bias" and weight.count > 1)


def numel(weight: Weight) -> int:
    """Elements of a weight, all of its ``count`` tensors together."""
    return prod(weight.shape) * weight.count


def parameter_count(architecture: Architecture) -> int:
    """Parameters of the model as transformers 5.23 builds it: tied once, buffers and unbuilt modules left out."""
    return sum(numel(weight) * times for _, weight, times in iter_weights(architecture) if not weight.is_buffer)


def embedding_parameter_count(architecture: Architecture) -> int:
    """Parameters of the lookup tables: token, position and per-layer embeddings; a head of its own is not among them."""
    return sum(numel(weight) * times for _, weight, times in iter_weights(architecture) if weight.role == "embedding")


def active_parameter_count(architecture: Architecture) -> int:
    """Parameters one token passes: of each layer's experts only the routed ones."""
    idle = 0
    for stack in (architecture.decoder, *architecture.towers):
        for layer, count in layer_groups(stack):
            for channel in layer.channel:
                if isinstance(channel, MixtureOfExperts):
                    experts = sum(numel(weight) for weight in channel.weights if is_routed(weight))
                    idle += count * (experts - experts * channel.experts_per_token // channel.num_experts)
    return parameter_count(architecture) - idle
