"""The tensors a checkpoint stores, as its headers say: exact, and folded so that a thousand layers stay small."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)")
PACKED = frozenset({"U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F4", "F8_E8M0", "BOOL"})
"""Safetensors dtypes whose element count may not be a count of parameters: packed weights, scales, masks, positions."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor: dtype as the file names it (``BF16``, ``Q4_K``), its shape, and the bytes it takes there."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """``count`` tensors alike in all but the numbers in their names (``model.layers.*.mlp.up_proj.weight``).

    ``size_bytes`` is of each; ``layers`` are the distinct first numbers, in order, empty for a name without any.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    count: int
    layers: tuple[int, ...] = ()

    @property
    def elements(self) -> int:
        """Values in all tensors of the group, as the shape counts them."""
        return math.prod(self.shape) * self.count


@dataclass(frozen=True, slots=True)
class StoredTensors:
    """Every tensor of a checkpoint, from its headers."""

    groups: tuple[TensorGroup, ...]
    container: str
    """``safetensors`` or ``gguf``."""

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors: what the weights take as stored."""
        return sum(group.size_bytes * group.count for group in self.groups)

    @property
    def tensor_count(self) -> int:
        """How many tensors there are."""
        return sum(group.count for group in self.groups)

    @property
    def bytes_by_dtype(self) -> Mapping[str, int]:
        """Bytes per dtype, largest first."""
        totals: dict[str, int] = {}
        for group in self.groups:
            totals[group.dtype] = totals.get(group.dtype, 0) + group.size_bytes * group.count
        return dict(sorted(totals.items(), key=lambda item: -item[1]))

    @property
    def parameters(self) -> int | None:
        """Values stored; None where packed dtypes make the shapes' count a different thing. Includes stored buffers."""
        if self.container == "safetensors" and any(group.dtype in PACKED for group in self.groups):
            return None
        return sum(group.elements for group in self.groups)


def fold(tensors: Iterable[StoredTensor], container: str) -> StoredTensors:
    """Tensors that differ only in the numbers of their names become one group, in order of first appearance."""
    counts: dict[tuple[str, str, tuple[int, ...], int], int] = {}
    layers: dict[tuple[str, str, tuple[int, ...], int], dict[int, None]] = {}
    for tensor in tensors:
        key = (INDEX.sub("*", tensor.name), tensor.dtype, tensor.shape, tensor.size_bytes)
        counts[key] = counts.get(key, 0) + 1
        if found := INDEX.search(tensor.name):
            layers.setdefault(key, {})[int(found[0][:9])] = None
    groups = (TensorGroup(*key, count, tuple(sorted(layers.get(key, ())))) for key, count in counts.items())
    return StoredTensors(tuple(groups), container)
