"""The optimizers of a scenario, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from .errors import WorkerError
from .low_rank import DEFAULT_RANK, LowRankAdam
from .preconditioned import Preconditioned

# Imported here and not at its use: the module makes tensors of its own, which a tracker would count.
try:
    from transformers import optimization as _library
except ImportError:
    _library = None  # type: ignore[assignment]

_LEARNING_RATE = 1e-5
_FIELD = "scenario.training.optimizer"
Parameters = list[nn.Parameter]


class Lion(torch.optim.Optimizer):
    """Lion (Chen et al. 2023, algorithm 2), one parameter at a time: a momentum in the parameter's dtype."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float = _LEARNING_RATE) -> None:
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99), "weight_decay": 0.0})

    def _init_group(self, group: dict[str, Any]) -> Parameters:
        params = [parameter for parameter in group["params"] if parameter.grad is not None]
        for parameter in params:
            if not self.state[parameter]:
                self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
        return params

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in self._init_group(group):
                average = self.state[parameter]["exp_avg"]
                update = average.mul(beta1).add_(parameter.grad, alpha=1 - beta1).sign_()
                parameter.add_(update, alpha=-group["lr"])
                average.mul_(beta2).add_(parameter.grad, alpha=1 - beta2)


class BitsandbytesLayout(torch.optim.Optimizer):
    """The states of bitsandbytes' AdamW (two) and Lion (one), for rehearsals (0.45, optim/optimizer.py).

    In 8 bit one byte a value, an fp32 scale a block of 256, one shared map of 256 fp32 values for each state; tensors below
    4,096 values keep fp32 states. Paged states of 100,000 values and more live in managed memory, outside the allocator.
    """

    def __init__(self, params: Iterable[nn.Parameter], states: int, bits: int, paged: bool) -> None:
        super().__init__(params, {})
        self._names = range(1, states + 1)
        self._bits = bits
        self._paged = paged
        self._maps: list[torch.Tensor] = []

    def _init_group(self, group: dict[str, Any]) -> Parameters:
        params = [parameter for parameter in group["params"] if parameter.grad is not None]
        for parameter in params:
            if not self.state[parameter]:
                self.state[parameter].update(self._states(parameter))
        return params

    def _states(self, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        count = parameter.numel()
        device = parameter.device
        quantised = self._bits == 8 and count >= BLOCKWISE_MIN_VALUES
        states = {}
        if quantised:
            if not self._maps:
                self._maps = [torch.empty(256, dtype=torch.float32, device=device) for _ in self._names]
            blocks = -(-count // STATE_BLOCK)
            states = {f"absmax{i}": torch.zeros(blocks, dtype=torch.float32, device=device) for i in self._names}
            states |= {f"qmap{i}": values for i, values in zip(self._names, self._maps, strict=True)}
        if not (self._paged and count >= PAGED_MIN_VALUES):
            dtype = torch.uint8 if quantised else torch.float32
            states |= {f"state{i}": torch.zeros_like(parameter, dtype=dtype) for i in self._names}
        return states

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """The update works in place, in one kernel a parameter."""
        for group in self.param_groups:
            self._init_group(group)


STATE_BLOCK = 256
BLOCKWISE_MIN_VALUES = 4096
PAGED_MIN_VALUES = 100_000


def make_optimizers(
    name: str, named: Mapping[str, nn.Parameter], fake: bool = False, rank: int = DEFAULT_RANK
) -> list[torch.optim.Optimizer]:
    """The optimizers that together update the ``named`` parameters; ``rank`` is that of GaLore and APOLLO.

    Raises :class:`WorkerError` for one that can't be had.
    """
    params = list(named.values())
    if name in _LOW_RANK:
        return [_low_rank(name, named, fake, rank)]
    if fake and name in _BITSANDBYTES:
        states = 2 if "adamw" in name else 1
        return [BitsandbytesLayout(params, states, 8 if name.endswith("_8bit") else 32, paged=name.startswith("paged_"))]
    if name in _PRECONDITIONED:
        _require_rehearsal(name, fake)
        return [Preconditioned(params, rotates=name == "soap")]
    make = _MAKERS.get(name)
    if make is None:
        known = ", ".join(sorted([*_MAKERS, *_LOW_RANK, *_PRECONDITIONED]))
        raise WorkerError("unsupported", f"{_FIELD}: {name!r} has no implementation here; choose one of {known}", _FIELD)
    return make(params)


def _low_rank(name: str, named: Mapping[str, nn.Parameter], fake: bool, rank: int) -> torch.optim.Optimizer:
    """Matrices inside the layers are projected, as ``optim_target_modules`` of the Trainer asks."""
    _require_rehearsal(name, fake)
    projected = [value for path, value in named.items() if value.dim() == 2 and any(map(str.isdigit, path.split(".")))]
    return LowRankAdam(named.values(), projected, rank, random=name == "apollo")


def _require_rehearsal(name: str, fake: bool) -> None:
    if not fake:
        message = f"{_FIELD}: {name} is only rehearsed here; choose another to measure"
        raise WorkerError("unsupported", message, _FIELD)


def _adamw(**kwargs: Any) -> Callable[[Parameters], list[torch.optim.Optimizer]]:
    return lambda params: [torch.optim.AdamW(params, lr=_LEARNING_RATE, **kwargs)]


def _sgd(momentum: float) -> Callable[[Parameters], list[torch.optim.Optimizer]]:
    return lambda params: [torch.optim.SGD(params, lr=_LEARNING_RATE, momentum=momentum, foreach=True)]


def _adafactor(params: Parameters) -> list[torch.optim.Optimizer]:
    adafactor = getattr(_library, "Adafactor", None)
    if adafactor is None:
        return [torch.optim.Adafactor(params, lr=_LEARNING_RATE)]
    # The Trainer's arguments for "adafactor" (transformers, trainer_optimizer.py).
    return [adafactor(params, lr=_LEARNING_RATE, scale_parameter=False, relative_step=False)]


def _muon(params: Parameters) -> list[torch.optim.Optimizer]:
    if not hasattr(torch.optim, "Muon"):
        raise WorkerError("unsupported", f"{_FIELD}: muon needs torch 2.9 or newer, this is {torch.__version__}", _FIELD)
    matrices = [parameter for parameter in params if parameter.dim() == 2]
    rest = [parameter for parameter in params if parameter.dim() != 2]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.Muon(matrices, lr=_LEARNING_RATE)]
    return [*optimizers, torch.optim.AdamW(rest, lr=_LEARNING_RATE, foreach=True)] if rest else optimizers


def _bitsandbytes(class_name: str) -> Callable[[Parameters], list[torch.optim.Optimizer]]:
    def make(params: Parameters) -> list[torch.optim.Optimizer]:
        try:
            import bitsandbytes
        except ImportError as error:
            message = f"{_FIELD}: this optimizer needs bitsandbytes: python -m pip install bitsandbytes, or rehearse"
            raise WorkerError("missing_package", message, _FIELD) from error
        return [getattr(bitsandbytes.optim, class_name)(params, lr=_LEARNING_RATE)]

    return make


_LOW_RANK = ("galore", "apollo")
_PRECONDITIONED = ("soap", "shampoo")
_BITSANDBYTES = {
    "adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit", "paged_adamw_32bit": "PagedAdamW32bit",
    "lion_8bit": "Lion8bit", "paged_lion_8bit": "PagedLion8bit",
}  # fmt: skip
_MAKERS: dict[str, Callable[[Parameters], list[torch.optim.Optimizer]]] = {
    "adamw_fused": _adamw(fused=True),
    "adamw_foreach": _adamw(foreach=True),
    "adamw": _adamw(foreach=False, fused=False),
    "adafactor": _adafactor,
    "lion": lambda params: [Lion(params)],
    "sgd": _sgd(0.0),
    "sgd_momentum": _sgd(0.9),
    "muon": _muon,
    **{name: _bitsandbytes(class_name) for name, class_name in _BITSANDBYTES.items()},
}
