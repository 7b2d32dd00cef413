"""Architectures as one rank sees them: a copy whose weights are cut, by rows, by partitions or by widths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import prod

from planner.architecture.layers import Architecture, Layer, Norm, Stack, Weight
from planner.components.trainable import Trainable
from planner.memo import remember_by_identity

Change = Callable[[Weight], Weight]


def with_weights(architecture: Architecture, change: Change) -> Architecture:
    """The architecture with every weight changed; equal layers stay one object."""
    changed = {id(layer): _layer(layer, change) for stack in _stacks(architecture) for layer in stack.layers}

    def stack(old: Stack) -> Stack:
        return replace(old, layers=tuple(changed[id(layer)] for layer in old.layers), weights=_all(old.weights, change))

    return replace(
        architecture,
        embeddings=_all(architecture.embeddings, change),
        head=_all(architecture.head, change),
        final_norm=architecture.final_norm and _norm(architecture.final_norm, change),
        decoder=stack(architecture.decoder),
        towers=tuple(stack(tower) for tower in architecture.towers),
    )


@remember_by_identity(64)
def padded_rows(architecture: Architecture, ranks: int) -> Architecture:
    """The rows that every rank stores: chunks of one size, padded (``_fsdp_param.py``, ``padded_sharded_param_size``)."""
    return with_weights(architecture, lambda weight: _with_rows(weight, chunk_rows(weight, ranks)))


@remember_by_identity(64)
def partition_of(architecture: Architecture, elements: int) -> Architecture:
    """An architecture of one flat tensor: what lies on a rank's card where its parameters are laid together."""
    bare = Stack(architecture.decoder.name, "decoder", architecture.hidden_size, ())
    flat = Weight("flat parameters", (elements,), "other")
    return replace(architecture, embeddings=(flat,), head=(), final_norm=None, decoder=bare, towers=(), tied_head=False)


def rows_of_rank(tensors: tuple[Trainable, ...], ranks: int, rank: int, dtype_bytes: int | None = None) -> tuple[Trainable, ...]:
    """The rows of every parameter that a rank updates: chunks of the first dimension, the last short (``torch.chunk``).

    ``dtype_bytes``: of the chunks, where they are kept in another dtype.
    """

    def cut(tensor: Trainable) -> Trainable:
        rows = tensor.shape[0] if tensor.shape else 1
        chunk = -(-rows // ranks)
        shape = (min(max(rows - rank * chunk, 0), chunk), *tensor.shape[1:])
        return tensor._replace(shape=shape, dtype_bytes=dtype_bytes or tensor.dtype_bytes)

    return tuple(cut(tensor) for tensor in tensors)


def chunk_rows(weight: Weight, ranks: int) -> int:
    """Rows of one chunk; experts that are one tensor are cut by number."""
    return -(-_rows(weight) // ranks)


def padded_elements(weight: Weight, ranks: int) -> int:
    """Elements of a parameter gathered from padded chunks."""
    return ranks * chunk_rows(weight, ranks) * (prod(weight.shape) * weight.count // max(_rows(weight), 1))


def _rows(weight: Weight) -> int:
    return weight.count if weight.count > 1 else weight.shape[0] if weight.shape else 1


def _with_rows(weight: Weight, rows: int) -> Weight:
    if weight.is_buffer:
        return weight
    if weight.count > 1:
        return replace(weight, shape=(rows, *weight.shape), count=1)
    return replace(weight, shape=(rows, *weight.shape[1:]))


def _stacks(architecture: Architecture) -> Iterator[Stack]:
    yield architecture.decoder
    yield from architecture.towers


def _layer(layer: Layer, change: Change) -> Layer:
    return replace(
        layer,
        sequence=tuple(replace(mixer, weights=_all(mixer.weights, change)) for mixer in layer.sequence),
        channel=tuple(replace(mixer, weights=_all(mixer.weights, change)) for mixer in layer.channel),
        norms=tuple(_norm(norm, change) for norm in layer.norms),
        weights=_all(layer.weights, change),
    )


def _norm(norm: Norm, change: Change) -> Norm:
    return replace(norm, weights=_all(norm.weights, change))


def _all(weights: tuple[Weight, ...], change: Change) -> tuple[Weight, ...]:
    return tuple(change(weight) for weight in weights)
