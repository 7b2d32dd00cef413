"""Nested values as hashable descriptions, and back: what a layer is given, returns, and keeps in a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .kinds import PLAIN

Tree = tuple[Any, ...]
Spec = tuple[torch.dtype, tuple[int, ...], tuple[int, ...], int, int, bool]
"""A tensor's dtype, shape, strides, offset, storage bytes, and whether it requires gradients."""


def spec_of(tensor: torch.Tensor) -> Spec:
    """The tensor's :data:`Spec`."""
    return (
        tensor.dtype, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()),
        tensor.untyped_storage().nbytes(), tensor.requires_grad,
    )  # fmt: skip


def describe(value: Any, name_of: Callable[[torch.Tensor], Any]) -> Tree:
    """The value's tree; tensors are named by ``name_of``. Foreign objects are told apart by their identity."""
    if isinstance(value, torch.Tensor):
        return ("tensor", name_of(value), spec_of(value))
    if isinstance(value, PLAIN):
        return ("plain", type(value), value)
    if isinstance(value, (list, tuple)):
        return ("list", type(value), tuple(describe(item, name_of) for item in value))
    if isinstance(value, dict):
        return ("dict", type(value), tuple((key, describe(item, name_of)) for key, item in value.items()))
    return ("object", type(value), id(value))


def tensors_in(tree: Tree) -> list[Tree]:
    """The leaves of the tree that are tensors, in order."""
    kind, _, rest = tree
    if kind == "tensor":
        return [tree]
    if kind == "list":
        return [leaf for item in rest for leaf in tensors_in(item)]
    if kind == "dict":
        return [leaf for _, item in rest for leaf in tensors_in(item)]
    return []


def has_foreign(tree: Tree) -> bool:
    """Whether a foreign object is in the tree."""
    kind, _, rest = tree
    if kind == "list":
        return any(map(has_foreign, rest))
    if kind == "dict":
        return any(has_foreign(item) for _, item in rest)
    return bool(kind == "object")


def can_rebuild(tree: Tree) -> bool:
    """Whether :func:`rebuild` can make the value: no foreign objects, containers that take their items."""
    kind, of, rest = tree
    if kind == "list":
        return of in (list, tuple) and all(can_rebuild(item) for item in rest)
    if kind == "dict":
        return of is dict and all(can_rebuild(item) for _, item in rest)
    return kind in ("tensor", "plain")


def rebuild(tree: Tree, tensor_of: Callable[[Any, Spec], torch.Tensor]) -> Any:
    """The value of a tree; its tensors come from ``tensor_of(name, spec)``."""
    kind, of, rest = tree
    if kind == "tensor":
        return tensor_of(of, rest)
    if kind == "list":
        return of(rebuild(item, tensor_of) for item in rest)
    if kind == "dict":
        return {key: rebuild(item, tensor_of) for key, item in rest}
    return rest


def fresh_storage(spec: Spec) -> torch.Tensor:
    """A new tensor whose storage is as large as that of ``spec``; the tensor of ``spec`` itself where it fills its storage."""
    dtype, shape, strides, offset, nbytes, _ = spec
    extent = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
    if not offset and all(shape) and extent * dtype.itemsize == nbytes:
        return torch.empty_strided(shape, strides, dtype=dtype, device="cpu")
    return torch.empty(nbytes // dtype.itemsize, dtype=dtype, device="cpu")


def view(tensor: torch.Tensor, spec: Spec) -> torch.Tensor:
    """The tensor of ``spec`` in the storage of ``tensor``."""
    _, shape, strides, offset, _, _ = spec
    return torch.as_strided(tensor, shape, strides, offset)
