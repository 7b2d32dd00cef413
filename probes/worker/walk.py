"""What a CUDA measurement's peaks are made of, by walking what is held: there no tracker sees every storage.

Weights, optimizer states and caches are walked at the ends of a phase. Gradients appear one by one in a backward: a hook on
each notes how many bytes of them there were when the peak was last raised. The rest of a peak is what nothing holds for
long: activations, or in an inference and an optimizer's step the workspace.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch

from .adapters import is_adapter
from .attribution import tensors_of
from .quantised import quantisation_state
from .tracker import held_by, rounded

Holdings = Mapping[str, Any]
_REST = {"forward": "activations", "backward": "activations"}


class Meter(Protocol):
    """The part of :class:`probes.worker.device.Meter` that is asked."""

    def peak(self) -> tuple[int, int]:
        """Highest (allocated, reserved) since the phase began."""

    def raised(self) -> int:
        """The highest allocated so far, without waiting for the device."""


class Load(Protocol):
    """What runs."""

    def holdings(self) -> Holdings:
        """Tensors by component, nested in anything."""


class Walk:
    """Says the components of each phase's peak. ``masters``: fp32 parameters are those of a mixed-precision training."""

    def __init__(self, model: Any, meter: Meter, *, masters: bool) -> None:
        self._model = model
        self._meter = meter
        self._masters = masters
        self._phase = "load"
        self._load: Load | None = None
        self._counted: set[int] = set()
        self._gradient_bytes = 0
        self._peak_bytes = 0
        self._gradient_bytes_at_peak = 0

    def watch(self, load: Load) -> None:
        """``load`` runs from now on."""
        self._load = load
        for parameter in self._model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._note_gradient)

    def begin(self, phase: str) -> None:
        """A phase begins."""
        self._phase = phase
        gradients = {id(parameter): parameter.grad for parameter in self._model.parameters() if parameter.grad is not None}
        self._counted = set(gradients)
        self._gradient_bytes = self._gradient_bytes_at_peak = _bytes_of(gradients.values())
        self._peak_bytes = 0

    def components(self) -> dict[str, int]:
        """Bytes of each component at the allocated peak of the phase; they add up to it."""
        peak_bytes, _ = self._meter.peak()
        found = {name: _bytes_of(tensors) for name, tensors in self._holdings().items()}
        found["gradients"] = self._gradient_bytes_at_peak
        rest = "weights" if self._phase == "load" else _REST.get(self._phase, "workspace")
        found[rest] = found.get(rest, 0) + max(0, peak_bytes - sum(found.values()))
        return {name: size for name, size in found.items() if size}

    def _holdings(self) -> dict[str, list[torch.Tensor]]:
        held: dict[str, list[torch.Tensor]] = {"weights": list(self._model.buffers()), "adapters": [], "master_weights": []}
        held["quantization_state"] = quantisation_state(self._model)
        for name, parameter in self._model.named_parameters():
            is_master = self._masters and parameter.dtype == torch.float32
            held["adapters" if is_adapter(name) else "master_weights" if is_master else "weights"].append(parameter)
        loaded = self._load.holdings() if self._load is not None else {}
        return held | {name: list(tensors_of([value])) for name, value in loaded.items()}

    def _note_gradient(self, parameter: torch.Tensor) -> None:
        """The peak was raised, if it was, before this gradient stood beside the others."""
        peak_bytes = self._meter.raised()
        if peak_bytes > self._peak_bytes:
            self._peak_bytes, self._gradient_bytes_at_peak = peak_bytes, self._gradient_bytes
        if id(parameter) not in self._counted and parameter.grad is not None:
            self._counted.add(id(parameter))
            self._gradient_bytes += _bytes_of([parameter.grad])


def _bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the tensors' storages as the allocator counts them, each storage once."""
    storages = [held_by(tensor).untyped_storage() for tensor in tensors]
    sizes = {storage._cdata: storage.nbytes() for storage in storages}
    return sum(map(rounded, sizes.values()))
