"""Every storage, from birth to death: the one mechanism behind a measurement on CPU and a rehearsal.

A dispatch mode looks at what each operator returns. A storage it has not seen is born; a weak reference on the
storage's Python object (which lives exactly as long as the storage) tells of its death. Real and fake tensors go
through the same code, so that a rehearsal with the CPU's own operators equals a measurement on CPU to the byte.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .errors import OutOfMemory

GRANULE_BYTES = 512
"""The CUDA caching allocator's rounding (c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize)."""

COMPONENTS = (
    "weights", "adapters", "quantization_state", "kv_cache", "recurrent_state", "activations", "logits", "workspace",
    "gradients", "optimizer_state", "master_weights", "communication", "other_models",
)  # fmt: skip
"""The components of the design that live in the allocator of one device."""

COMPONENT_INDEX = {name: index for index, name in enumerate(COMPONENTS)}


def rounded(nbytes: int) -> int:
    """``nbytes`` as the allocator counts it."""
    return (nbytes + GRANULE_BYTES - 1) // GRANULE_BYTES * GRANULE_BYTES


_WRAPPERS = {"DTensor": "_local_tensor", "AsyncCollectiveTensor": "elem"}
"""Tensors of several ranks, and where they keep what this rank holds."""


def held_by(tensor: torch.Tensor) -> torch.Tensor:
    """What is in this device's memory: of a distributed tensor this rank's part, any other as it is."""
    while (name := _WRAPPERS.get(type(tensor).__name__)) is not None:
        tensor = getattr(tensor, name)
    inner = getattr(tensor, "_local_tensor", None)  # a Parameter of one
    return tensor if inner is None else held_by(inner)


class Sink(Protocol):
    """Hears of storages in program order."""

    def alloc(self, ident: int, nbytes: int, component: int, op: str) -> object:
        """A storage was born."""

    def free(self, ident: int) -> None:
        """It died."""

    def relabel(self, ident: int, component: int) -> None:
        """It is known to be of another component."""


class Labeller(Protocol):
    """Says what a new storage is for."""

    def component_of(self, func: Any, tensor: torch.Tensor, ident: int) -> int:
        """Index into :data:`COMPONENTS`."""


@dataclass(frozen=True)
class Differences:
    """What another device, or a tensor without values, does where the running operator would do otherwise.

    ``replace`` maps an operator to a function ``(func, args, kwargs) -> result`` that runs in its place;
    ``scratch_bytes`` one to ``(args, kwargs, result) -> bytes`` that live inside the operator only.
    """

    replace: Mapping[Any, Callable[[Any, Any, Any], Any]] = field(default_factory=dict)
    scratch_bytes: Mapping[Any, Callable[[Any, Any, Any], int]] = field(default_factory=dict)

    def __or__(self, other: Differences) -> Differences:
        """Both; the other's where both say something."""
        return Differences({**self.replace, **other.replace}, {**self.scratch_bytes, **other.scratch_bytes})


class _Death(weakref.ref):  # type: ignore[type-arg]
    """A weak reference that knows its storage's key."""

    __slots__ = ("key",)
    key: int


class Storage:
    """One live storage."""

    __slots__ = ("component", "death", "func", "ident", "nbytes", "rounded_bytes")
    death: _Death | None

    def __init__(self, ident: int, nbytes: int, component: int, func: Any) -> None:
        self.ident = ident
        self.func = func
        self.nbytes = nbytes
        self.rounded_bytes = rounded(nbytes)
        self.component = component
        self.death = None


class StorageTracker(TorchDispatchMode):
    """Counts live storages. Enter it outside of (after) a fake tensor mode.

    ``allocated`` is the sum of live storages, each rounded up to 512 bytes; ``peak`` its maximum since
    :meth:`begin_phase`. Beyond ``budget_bytes`` the operator raises :class:`OutOfMemory`.
    """

    def __init__(
        self,
        labeller: Labeller,
        sink: Sink | None = None,
        differences: Differences | None = None,
        budget_bytes: int | None = None,
    ) -> None:
        super().__init__()
        self.allocated = 0
        self.peak = 0
        self._labeller = labeller
        self.sink = sink
        self._replace = differences.replace if differences else {}
        self._scratch_bytes = differences.scratch_bytes if differences else {}
        self._budget_bytes = budget_bytes
        self.run: Callable[[Any, Any, Any], Any] = _run
        """How operators are run: ``(func, args, kwargs) -> result``."""
        self._live: dict[int, Storage] = {}
        self.next_ident = 0
        self._by_component = [0] * len(COMPONENTS)
        self._at_peak = list(self._by_component)
        self._is_at_peak = False
        self._paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return self.run(func, args, kwargs)
        replacement = self._replace.get(func)
        if replacement is None:
            out = self.run(func, args, kwargs)
        else:
            out = replacement(lambda *inner, **named: self.run(func, inner, named), args, kwargs)
        if isinstance(out, torch.Tensor):
            self._see(func, out)
        elif isinstance(out, (tuple, list)):
            for item in out:
                if isinstance(item, torch.Tensor):
                    self._see(func, item)
        scratch_bytes = self._scratch_bytes.get(func)
        if scratch_bytes is not None:
            self._flash(func, scratch_bytes(args, kwargs, out))
        return out

    def begin_phase(self) -> None:
        """Forget the peak of the phase before."""
        self.peak = self.allocated
        self._is_at_peak = True

    def peak_components(self) -> dict[str, int]:
        """Bytes of each component at the moment of the peak."""
        self._keep_peak()
        return {name: size for name, size in zip(COMPONENTS, self._at_peak, strict=True) if size}

    def label(self, tensor: torch.Tensor, component: int) -> None:
        """The tensor's storage is of this component."""
        storage = self._live.get(held_by(tensor).untyped_storage()._cdata)
        if storage is not None:
            self._move(storage, component)

    def look(self, tensor: torch.Tensor, why: str) -> None:
        """The tensor's storage may have been born, resized or emptied without an operator."""
        self._see(why, tensor)

    def relabel(self, key: int, ident: int, old: int, new: int) -> None:
        """The storage (key, ident), if it still lives and is ``old``, becomes ``new``."""
        storage = self._live.get(key)
        if storage is not None and storage.ident == ident and storage.component == old:
            self._move(storage, new)

    def maker_of(self, tensor: torch.Tensor) -> Any:
        """The operator that made the tensor's storage, None for one from before."""
        storage = self._live.get(tensor.untyped_storage()._cdata)
        return storage.func if storage is not None else None

    def hold(self, nbytes: int, component: int, op: str) -> None:
        """Something that never dies was allocated beside what operators return."""
        self.bear(nbytes, component, op)

    def bear(self, nbytes: int, component: int, op: str) -> Storage:
        """A storage was born that no operator made."""
        entry = Storage(self.take_ident(), nbytes, component, op)
        self._count(entry)
        return entry

    def bury(self, entry: Storage) -> None:
        """It died, or counts as dead: the death of the tensor it belongs to will not be heard."""
        if entry.death is not None and self._live.get(entry.death.key) is entry:
            del self._live[entry.death.key]
        self._subtract(entry)

    def recast(self, entry: Storage, component: int) -> None:
        """It is of this component."""
        self._move(entry, component)

    def adopt(self, entry: Storage, tensor: torch.Tensor) -> None:
        """It belongs to the tensor and dies with its storage."""
        self._watch(entry, tensor.untyped_storage())

    def is_live(self, entry: Storage) -> bool:
        """Whether the storage of a tensor lives."""
        return entry.death is not None and self._live.get(entry.death.key) is entry

    def entry_of(self, tensor: torch.Tensor) -> Storage | None:
        """What is known of the tensor's storage, None for one from before."""
        return self._live.get(tensor.untyped_storage()._cdata)

    def take_ident(self) -> int:
        """A number no storage will have."""
        self.next_ident += 1
        return self.next_ident - 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Operators inside are not seen."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def move(self, key: int, tensor: torch.Tensor) -> None:
        """The live storage at ``key`` is the tensor's from now on, with its size, unheard by the sink."""
        entry = self._live.pop(key, None)
        if entry is None:
            return
        storage = tensor.untyped_storage()
        entry.nbytes = storage.nbytes()
        grown_bytes = rounded(entry.nbytes) - entry.rounded_bytes
        entry.rounded_bytes += grown_bytes
        self.allocated += grown_bytes
        self._by_component[entry.component] += grown_bytes
        self._watch(entry, storage)

    def rename(self, new_idents: Mapping[int, int]) -> None:
        """Live storages are called by the new idents from now on."""
        for entry in self._live.values():
            entry.ident = new_idents.get(entry.ident, entry.ident)

    def forget(self, tensor: torch.Tensor) -> None:
        """The tensor's storage is not on the device after all."""
        storage = self._live.pop(tensor.untyped_storage()._cdata, None)
        if storage is not None:
            self._subtract(storage)

    def _see(self, func: Any, tensor: torch.Tensor) -> None:
        if type(tensor) is not torch.Tensor and type(tensor).__name__ in _WRAPPERS:
            tensor = held_by(tensor)
        # Not asked for its device: a fake tensor's is answered by a dispatch of its own, the costliest thing here.
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._live.get(key)
        if known is None:
            self._born(func, tensor, storage, key)
        elif known.nbytes != storage.nbytes():
            self._resized(func, tensor, known, storage.nbytes())

    def _born(self, func: Any, tensor: torch.Tensor, storage: Any, key: int) -> None:
        nbytes = storage.nbytes()
        if not nbytes:
            return
        entry = Storage(self.next_ident, nbytes, self._labeller.component_of(func, tensor, key), func)
        self.next_ident += 1
        self._watch(entry, storage)
        self._count(entry)

    def _watch(self, entry: Storage, storage: Any) -> None:
        key = storage._cdata
        death = entry.death = _Death(storage, self._died)
        death.key = key
        self._live[key] = entry

    def _count(self, entry: Storage) -> None:
        budget_bytes = self._budget_bytes
        if budget_bytes is not None and self.allocated + entry.rounded_bytes > budget_bytes:
            raise OutOfMemory(
                f"the memory budget of {budget_bytes} bytes is used up: {entry.func} asked for {entry.rounded_bytes} bytes",
                entry.rounded_bytes,
                budget_bytes - self.allocated,
            )
        self.allocated += entry.rounded_bytes
        self._by_component[entry.component] += entry.rounded_bytes
        if self.allocated > self.peak:
            self.peak = self.allocated
            self._is_at_peak = True
        if self.sink is not None:
            self.sink.alloc(entry.ident, entry.nbytes, entry.component, str(entry.func))

    def _died(self, death: Any) -> None:
        storage = self._live.pop(death.key, None)
        if storage is not None:
            self._subtract(storage)

    def _subtract(self, storage: Storage) -> None:
        self._keep_peak()
        self.allocated -= storage.rounded_bytes
        self._by_component[storage.component] -= storage.rounded_bytes
        if self.sink is not None:
            self.sink.free(storage.ident)

    def _resized(self, func: Any, tensor: torch.Tensor, known: Storage, nbytes: int) -> None:
        # resize_ allocates the new block, copies, then frees the old one.
        key = tensor.untyped_storage()._cdata
        entry = Storage(self.take_ident(), nbytes, known.component, func)
        entry.death = known.death
        del self._live[key]
        if nbytes:
            self._live[key] = entry
            self._count(entry)
        self._subtract(known)

    def _flash(self, func: Any, nbytes: int) -> None:
        if nbytes:
            entry = Storage(self.take_ident(), nbytes, COMPONENT_INDEX["workspace"], func)
            self._count(entry)
            self._subtract(entry)

    def _move(self, storage: Storage, component: int) -> None:
        if storage.component == component:
            return
        self._by_component[storage.component] -= storage.rounded_bytes
        self._by_component[component] += storage.rounded_bytes
        storage.component = component
        if self.sink is not None:
            self.sink.relabel(storage.ident, component)

    def _keep_peak(self) -> None:
        if self._is_at_peak:
            self._at_peak = list(self._by_component)
            self._is_at_peak = False


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs)
