"""A rehearsal's tensors: shapes without values, and what is answered where code asks for a value.

Models read few values, all of the kind "is there any padding". The answers say: there is none, and nothing is special.
Every place that asked is kept, to be said in the result's notes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from .attribution import Attribution
from .tracker import StorageTracker

aten = torch.ops.aten


class Answers:
    """Values for tensors that have none."""

    def __init__(self, attribution: Attribution) -> None:
        self._attribution = attribution
        self.asked: dict[str, int] = {}

    def replacements(self) -> dict[Any, Callable[[Any, Any, Any], Any]]:
        """By operator, for :class:`probes.worker.tracker.Differences`."""
        return {
            aten._local_scalar_dense.default: self._scalar,
            aten.equal.default: self._equal,
            torch.ops.prim.device.default: _device,
        }

    def _scalar(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensor = args[0]
        if getattr(tensor, "constant", None) is not None:
            return func(*args, **kwargs)
        self._note()
        if tensor.dtype == torch.bool:
            return self._maker(tensor) not in (aten.any.default, aten.any.dim)
        return 1.0 if tensor.is_floating_point() else 1

    def _equal(self, func: Any, args: Any, kwargs: Any) -> bool:
        self._note()
        return True

    def _maker(self, tensor: torch.Tensor) -> Any:
        tracker = self._attribution.tracker
        assert isinstance(tracker, StorageTracker)
        return tracker.maker_of(tensor)

    def _note(self) -> None:
        if self._attribution.phase != "optimizer":
            name = self._attribution.module
            self.asked[name] = self.asked.get(name, 0) + 1


def _device(func: Any, args: Any, kwargs: Any) -> Any:
    """Autograd asks for the device at every step; the mode's own answer takes a whole dispatch."""
    return getattr(args[0], "fake_device", None) or func(*args, **kwargs)


@contextlib.contextmanager
def fake_tensors() -> Iterator[FakeTensorMode]:
    """A fake tensor mode in which transformers behaves as with real tensors."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, _not_tracing():
        yield mode


@contextlib.contextmanager
def _not_tracing() -> Iterator[None]:
    """transformers 5 takes fake tensors for a graph export and then builds masks it would otherwise skip."""
    from transformers.utils import import_utils

    original = getattr(import_utils, "is_fake_tensor", None)
    if original is None:
        yield
        return
    import_utils.is_fake_tensor = lambda x: False
    try:
        yield
    finally:
        import_utils.is_fake_tensor = original
