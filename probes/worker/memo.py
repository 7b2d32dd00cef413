"""What an operator returned for arguments of the same shapes: fake tensors without asking the fake mode again.

The fake mode keeps such a memory of its own, which takes several times as long to ask and forgets what of a storage lies beyond its
tensor; it is switched off. What is remembered is how each result lies in memory: fresh, an argument itself, or a view of one.
Operators whose results depend on values are not remembered. Where in its storage an argument begins does not count: views begin so
much further on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

_CPU = torch.device("cpu")
_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format)
_UNFIT_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view}
_ATEN = torch.ops.aten
_UNFIT = {_ATEN.lift_fresh.default, _ATEN.lift.default, _ATEN.as_strided.default}
_SELECT = _ATEN.select.int
_UNKNOWN: tuple[None, list[Any]] = (None, [])
Key = tuple[Any, ...]


class Memo:
    """The memory of one run."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        mode.cache_enabled = False
        self._plans: dict[Key, tuple[Any, list[Any]]] = {}
        self._fit: dict[Any, bool] = {}

    def __call__(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """The operator's result."""
        if func is _SELECT and type(args[0]) is FakeTensor:
            return self._select(*args)
        tensors: list[torch.Tensor] = []
        key = self._key(func, args, kwargs, tensors)
        if key is None:
            return func(*args, **kwargs)
        plan = self._plans.get(key)
        if plan is None:
            out = func(*args, **kwargs)
            self._plans[key] = _plan(out, tensors)
            return out
        kind, leaves = plan
        if kind is None:
            return func(*args, **kwargs)
        made = [self._make(leaf, tensors) for leaf in leaves]
        return made[0] if kind is torch.Tensor else kind(made)

    def _key(self, func: Any, args: Any, kwargs: Mapping[str, Any], tensors: list[torch.Tensor]) -> Key | None:
        """What decides the result, None where that can't be said; ``tensors`` takes the arguments' tensors."""
        fit = self._fit.get(func)
        if fit is None:
            fit = self._fit[func] = _is_fit(func)
        try:
            return (func, _key(args, tensors), _key(tuple(kwargs.items()), tensors)) if fit else None
        except _Unfit:
            return None

    def _select(self, tensor: torch.Tensor, dim: int, index: int) -> torch.Tensor:
        """Loops over tokens select each once, so that nothing would be remembered."""
        shape, strides = list(tensor.shape), list(tensor.stride())
        dim, size = dim % len(shape), shape[dim]
        if not -size <= index < size:
            raise IndexError(f"select: index {index} is out of range for size {size}")
        offset = index % size * strides[dim]
        del shape[dim], strides[dim]
        made: torch.Tensor = self._make((0, tensor.dtype, shape, strides, offset), [tensor])
        return made

    def _make(self, leaf: Any, tensors: list[torch.Tensor]) -> Any:
        if leaf is None:
            return None
        source, dtype, shape, strides, offset = leaf
        if source is None:
            with torch._C._DisableTorchDispatch():
                made = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
                if offset is not None:
                    storage = torch.empty(offset[1], dtype=torch.uint8, device="meta").untyped_storage()
                    made.set_(storage, offset[0], shape, strides)
        elif shape is None:
            return tensors[source]
        else:
            storage, place = tensors[source].untyped_storage(), tensors[source].storage_offset() + offset
            with torch._C._DisableTorchDispatch():
                made = torch.empty(0, dtype=dtype, device="meta").set_(storage, place, shape, strides)
        return FakeTensor(self._mode, made, _CPU)


class _Unfit(Exception):
    """An argument that says too little or too much."""


def _is_fit(func: Any) -> bool:
    return (
        isinstance(func, torch._ops.OpOverload)
        and func.namespace == "aten"
        and func not in _UNFIT
        and not _UNFIT_TAGS & set(func.tags)
        and not (func.is_view and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _COMPOSITE))
    )


_COMPOSITE: Any = torch._C.DispatchKey.CompositeImplicitAutograd


def _key(values: Any, tensors: list[torch.Tensor]) -> Key:
    return tuple([_item(value, tensors) for value in values])


def _item(value: Any, tensors: list[torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        if type(value) is not FakeTensor or value.constant is not None or value.dtype.is_complex:
            raise _Unfit
        tensors.append(value)
        return (value.dtype, value.shape, value.stride(), value.requires_grad)
    kind = type(value)
    if kind in _PLAIN:
        return (kind, value)
    if kind is tuple or kind is list:
        return (kind, *[_item(item, tensors) for item in value])
    raise _Unfit


def _plan(out: Any, tensors: list[torch.Tensor]) -> tuple[Any, list[Any]]:
    """How to make the result again, ``_UNKNOWN`` where that can't be said."""
    try:
        if isinstance(out, torch.Tensor):
            return torch.Tensor, [_leaf(out, tensors)]
        if type(out) in (tuple, list):
            leaves = [None if item is None else _leaf(item, tensors) for item in out]
            fresh = [item.untyped_storage()._cdata for item, leaf in zip(out, leaves, strict=True) if leaf and leaf[0] is None]
            # Fresh results in one storage would become several.
            if len(set(fresh)) == len(fresh):
                return type(out), leaves
    except _Unfit:
        pass
    return _UNKNOWN


def _leaf(tensor: Any, tensors: list[torch.Tensor]) -> Any:
    if type(tensor) is not FakeTensor or tensor.constant is not None or tensor.fake_device != _CPU or tensor.dtype.is_complex:
        raise _Unfit
    for place, source in enumerate(tensors):
        if tensor is source:
            return (place, None, None, None, None)
    shape, strides, offset = tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
    if not all(type(size) is int for size in shape):
        raise _Unfit
    storage = tensor.untyped_storage()
    for place, source in enumerate(tensors):
        if source.untyped_storage()._cdata == storage._cdata:
            if source.dtype != tensor.dtype:
                raise _Unfit
            return (place, tensor.dtype, shape, strides, offset - source.storage_offset())
    extent = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1 if all(shape) else 0
    is_whole = not offset and extent * tensor.element_size() == storage.nbytes()
    return (None, tensor.dtype, shape, strides, None if is_whole else (offset, storage.nbytes()))
