"""Which of a model's repeated layers are alike, judged by everything that can decide what they do.

Two layers are of one kind when their modules have the same classes, parameters, buffers and settings, and the entries that the
config keeps for each of them are equal. A setting that is the layer's own number, or a path with it, counts as equal.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

MIN_LAYERS = 5
"""Lists below this are traced whole: of each kind three or four layers always are."""
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, torch.layout)
_NUMBER = re.compile(r"(^|_)(idx|index|id|number|num|no)$")
_MACHINERY = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"}
_DEPTH = 4


@dataclass(frozen=True)
class Member:
    """A layer of a list: its place, its path in the model, its kind, and whether it is the last of that kind."""

    layer: nn.Module
    group: int
    index: int
    path: str
    kind: int
    last: bool


def members_of(model: nn.Module) -> list[Member]:
    """The layers of every list of the model that is long enough, outermost lists only."""
    configs = [config for config in (getattr(model, "config", None),) if config is not None]
    members: list[Member] = []
    for group, (path, layers) in enumerate(_lists(model)):
        kinds: dict[Any, int] = {}
        numbers = [
            kinds.setdefault(_signature(layer, index, len(layers), configs), len(kinds)) for index, layer in enumerate(layers)
        ]
        last = {kind: index for index, kind in enumerate(numbers)}
        counts = Counter(numbers)
        members += [
            Member(layer, group, index, f"{path}.{index}", kind, last[kind] == index)
            for index, (layer, kind) in enumerate(zip(layers, numbers, strict=True))
            if counts[kind] >= MIN_LAYERS
        ]
    return members


def layer_numbers(layer: nn.Module, index: int) -> set[int]:
    """The numbers under which the layer's parts know themselves: its entries in a cache."""
    found = {index}
    for module in layer.modules():
        for name, value in vars(module).items():
            if "layer" in name and _NUMBER.search(name) and isinstance(value, int) and not isinstance(value, bool):
                found.add(value)
    return found


def _lists(model: nn.Module, path: str = "") -> Iterator[tuple[str, list[nn.Module]]]:
    for name, child in model.named_children():
        inner = f"{path}.{name}" if path else name
        layers = list(child) if isinstance(child, nn.ModuleList) else []
        if len(layers) >= MIN_LAYERS and next(layers[0].children(), None) is not None:
            yield inner, layers
        else:
            yield from _lists(child, inner)


def _signature(layer: nn.Module, index: int, layers: int, configs: list[Any]) -> Any:
    return (_module(layer, index, layers), tuple(_entries(config, index, layers) for config in configs))


def _module(module: nn.Module, index: int, layers: int) -> Any:
    settings = tuple(
        (name, _value(name, value, index, layers, _DEPTH))
        for name, value in sorted(vars(module).items())
        if name not in _MACHINERY and not _is_idle_hook(name, value)
    )
    tensors = tuple(
        (name, value if value is None else (tuple(value.shape), value.stride(), value.dtype, value.requires_grad))
        for name, value in (*module._parameters.items(), *module._buffers.items())
    )
    children = tuple((name, _module(child, index, layers)) for name, child in module._modules.items() if child is not None)
    return (type(module), settings, tensors, children)


def _is_idle_hook(name: str, value: Any) -> bool:
    return name.startswith("_") and "hook" in name and not value


def _value(name: str, value: Any, index: int, layers: int, depth: int) -> Any:
    if isinstance(value, str):
        return value.replace(f".{index}.", ".its number.")
    if isinstance(value, PLAIN):
        is_own = type(value) is int and value == index and _NUMBER.search(name) is not None
        return "its number" if is_own else (type(value), value)
    if isinstance(value, torch.Tensor):
        return (torch.Tensor, tuple(value.shape), value.stride(), value.dtype)
    if isinstance(value, nn.Module):
        return type(value)
    parts = _parts(value) if depth else None
    # The same object in both, such as the config; one of its own makes a layer a kind of its own.
    return (type(value), id(value) if parts is None else tuple(_value("", part, index, layers, depth - 1) for part in parts))


def _parts(value: Any) -> tuple[Any, ...] | None:
    """What decides what a container holds or a function does, None for other objects."""
    if isinstance(value, (list, tuple)):
        return tuple(value)
    if isinstance(value, dict):
        return (*value, *value.values()) if all(isinstance(key, PLAIN) for key in value) else None
    if isinstance(value, FunctionType):
        cells = tuple(cell.cell_contents for cell in value.__closure__ or ())
        return (id(value.__code__), value.__defaults__, *cells)
    if isinstance(value, MethodType):
        return (value.__func__, value.__self__)
    return (value.func, value.args, value.keywords) if isinstance(value, partial) else None


def _entries(config: Any, index: int, layers: int) -> Any:
    """What the config's lists, and those of the configs inside it, say of the layer ``index``."""
    found: list[tuple[str, Any]] = []
    for name, value in sorted(vars(config).items()):
        # A text with a letter for each layer, such as hybrid_override_pattern.
        is_text = isinstance(value, str) and "pattern" in name
        if (isinstance(value, (list, tuple)) or is_text) and len(value) == layers:
            found.append((name, repr(value[index])))
        elif isinstance(value, (list, tuple)) and all(type(item) is int for item in value):
            found.append((name, index in value))
        elif isinstance(value, dict) and name != "id2label":
            found.append((name, repr(value.get(index, value.get(str(index))))))
        elif hasattr(value, "to_dict"):
            found.append((name, _entries(value, index, layers)))
    return tuple(found)
