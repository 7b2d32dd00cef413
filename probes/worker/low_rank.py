"""GaLore and APOLLO: Adam on gradients projected to a low rank, for rehearsals.

Zhao et al. 2024 (GaLore) and Zhu et al. 2024 (APOLLO), as their packages do it: galore_torch/adamw.py and
galore_projector.py, apollo_torch/apollo.py and random_projector.py. Matrices inside the layers are projected, the shorter
side of each kept whole; everything else has Adam's states.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

DEFAULT_RANK = 128
"""The Trainer's (transformers, trainer_optimizer.py)."""


class LowRankAdam(torch.optim.Optimizer):
    """One parameter at a time. ``projected`` are updated through a projection of ``rank``, ``random`` as APOLLO's or not."""

    def __init__(self, params: Iterable[nn.Parameter], projected: Iterable[nn.Parameter], rank: int, *, random: bool) -> None:
        super().__init__(params, {"betas": (0.9, 0.999), "eps": 1e-6, "lr": 1e-5})
        self._projected = {id(parameter) for parameter in projected}
        self._rank = rank
        self._random = random

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(self._update(parameter, self.state[parameter], group), alpha=-group["lr"])

    def _update(self, parameter: nn.Parameter, state: dict[str, Any], group: Mapping[str, Any]) -> torch.Tensor:
        whole = parameter.grad
        assert whole is not None
        if id(parameter) not in self._projected:
            return _adam(whole, state, group)
        if "projector" not in state:
            state["projector"] = self._random_projector(whole) if self._random else self._singular_projector(whole)
        grad = _project(whole, state["projector"])
        update = _adam(grad, state, group)
        if not self._random:
            return _project_back(update, state["projector"])
        along = 0 if whole.shape[0] < whole.shape[1] else 1
        factor = torch.norm(update, dim=along) / (torch.norm(grad, dim=along) + 1e-8)
        return whole * (factor.unsqueeze(1) if along else factor)

    def _random_projector(self, grad: torch.Tensor) -> torch.Tensor:
        rows, columns = grad.shape
        return torch.randn((self._rank, columns) if rows >= columns else (rows, self._rank), dtype=grad.dtype, device=grad.device)

    def _singular_projector(self, grad: torch.Tensor) -> torch.Tensor:
        """The first singular vectors: a copy for 16-bit gradients, for fp32 a part of all of them, which stay."""
        left, _, right = torch.linalg.svd(grad.float(), full_matrices=False)
        vectors = right[: self._rank] if grad.shape[0] >= grad.shape[1] else left[:, : self._rank]
        return vectors.to(grad.dtype)


def _adam(grad: torch.Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> torch.Tensor:
    if "exp_avg" not in state:
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(grad), torch.zeros_like(grad)
    first, second = group["betas"]
    state["exp_avg"].mul_(first).add_(grad, alpha=1 - first)
    state["exp_avg_sq"].mul_(second).addcmul_(grad, grad, value=1 - second)
    divisor = state["exp_avg_sq"].sqrt().add_(group["eps"])
    return state["exp_avg"] / divisor


def _project(grad: torch.Tensor, projector: torch.Tensor) -> torch.Tensor:
    return grad @ projector.t() if grad.shape[0] >= grad.shape[1] else projector.t() @ grad


def _project_back(update: torch.Tensor, projector: torch.Tensor) -> torch.Tensor:
    return update @ projector if update.shape[0] >= update.shape[1] else projector @ update
