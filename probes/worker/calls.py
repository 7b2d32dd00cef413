"""One call of a layer: what it is given, and the cache entries it may change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers

from .kinds import Member, layer_numbers
from .segments import Name
from .tracker import Storage, StorageTracker
from .trees import Spec, Tree, describe, fresh_storage, has_foreign, view

UNTRACKED: Name = ("untracked",)


class Call:
    """A layer's call. ``key`` is equal for calls that must do the same, ``names`` those of all storages it can reach.

    ``hidden``: the one tensor that gradients flow back through, None where there is no graph; ``plain`` is False where there are
    several, or none though the layer's own parameters train.
    """

    def __init__(self, member: Member, args: tuple[Any, ...], kwargs: dict[str, Any], tracker: StorageTracker) -> None:
        self.member = member
        self.names: dict[int, Name] = {}
        self.storages: dict[Name, Storage] = {}
        self.tensors: dict[Name, torch.Tensor] = {}
        self._tracker = tracker
        values = [*enumerate(args), *kwargs.items()]
        given = tuple((at, self._given(value)) for at, value in values)
        self.state = CacheState([value for _, value in values if is_cache(value)], layer_numbers(member.layer, member.index))
        self.before = self.state.read(self._slot)
        graph = torch.is_grad_enabled()
        self.key = (member.group, member.kind, graph, member.layer.training, given, self.before)
        flows = [tensor for name, tensor in self.tensors.items() if name[0] == "lent" and tensor.requires_grad] if graph else []
        self.hidden = flows[0] if len(flows) == 1 else None
        trains = graph and any(parameter.requires_grad for parameter in member.layer.parameters())
        self.plain = len(flows) == 1 or not (flows or trains)

    def name_of(self, tensor: torch.Tensor) -> Name:
        """The name of the tensor's storage."""
        entry = self._tracker.entry_of(tensor)
        return UNTRACKED if entry is None else self.names.get(entry.ident, ("unknown",))

    def _given(self, value: Any) -> Tree:
        if is_cache(value):
            return ("cache", type(value))
        tree = describe(value, lambda tensor: self._enter("lent", tensor))
        # A foreign object may be another one with the same identity: no two calls with one are equal.
        return ("foreign", object()) if has_foreign(tree) else tree

    def _slot(self, tensor: torch.Tensor) -> Name:
        return self._enter("slot", tensor)

    def _enter(self, kind: str, tensor: torch.Tensor) -> Name:
        entry = self._tracker.entry_of(tensor)
        if entry is None:
            return UNTRACKED
        name = self.names.get(entry.ident)
        if name is None:
            name = self.names[entry.ident] = (kind, len(self.names))
            self.storages[name] = entry
            self.tensors[name] = tensor
        return name


class CacheState:
    """The entries that caches keep under a layer's numbers."""

    def __init__(self, caches: list[Any], numbers: set[int]) -> None:
        self._caches = caches
        self._numbers = sorted(numbers)

    def read(self, name_of: Callable[[torch.Tensor], Any]) -> tuple[tuple[tuple[int, Any], Tree], ...]:
        """Every entry's place and tree."""
        return tuple(
            ((holder, key), describe(value, name_of)) for holder, key, value in self._entries() if not callable(value)
        )  # fmt: skip

    def write(self, place: tuple[int, Any], value: Any) -> None:
        """Set one entry."""
        holder, key = place
        next(container for number, container, _ in self._holders() if number == holder)[key] = value

    def _entries(self) -> Iterator[tuple[int, Any, Any]]:
        for number, container, keys in self._holders():
            yield from ((number, key, container[key]) for key in (list(container) if keys is None else keys))

    def _holders(self) -> Iterator[tuple[int, dict[Any, Any], list[Any] | None]]:
        """Dicts that hold entries, numbered, and the keys that count in them (None: all)."""
        number = 0
        for cache in self._caches:
            yield number, vars(cache), [name for name, value in vars(cache).items() if isinstance(value, (int, float))]
            for layer in self._layers(cache):
                number += 1
                yield number, vars(layer), None
            for value in list(vars(cache).values()):
                if isinstance(value, dict):
                    number += 1
                    yield number, value, [key for key in self._numbers if key in value]
            number += 1

    def _layers(self, cache: Any) -> Iterator[Any]:
        for part in (getattr(cache, "self_attention_cache", None), getattr(cache, "cross_attention_cache", None), cache):
            layers = getattr(part, "layers", None) or []
            yield from (layers[number] for number in self._numbers if 0 <= number < len(layers))


def is_cache(value: Any) -> bool:
    """Whether the value is a cache of the library's."""
    return isinstance(value, transformers.Cache)


class Rebuilder:
    """Makes the tensors of a call that is only written, each in the storage of its name."""

    def __init__(self, tracker: StorageTracker, storages: dict[Name, Storage], tensors: dict[Name, torch.Tensor]) -> None:
        self._tracker = tracker
        self._storages = storages
        self._tensors = dict(tensors)

    def __call__(self, name: Name, spec: Spec) -> torch.Tensor:
        """The tensor of ``spec`` in the storage of ``name``."""
        known = self._tensors.get(name)
        if known is None:
            known = self._tensors[name] = fresh_storage(spec)
            if name in self._storages:
                self._tracker.adopt(self._storages[name], known)
        return known if _is_whole(known, spec) else view(known, spec)


def _is_whole(tensor: torch.Tensor, spec: Spec) -> bool:
    _, shape, strides, offset, _, _ = spec
    return tuple(tensor.shape) == shape and tensor.stride() == strides and tensor.storage_offset() == offset
