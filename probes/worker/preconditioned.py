"""SOAP and Shampoo, for rehearsals: a statistic of each side of a matrix, and its eigenbasis or its inverse root.

Vyas et al. 2024 (SOAP: soap.py of its authors, ``max_precond_dim`` 10,000) and Gupta et al. 2018 (Shampoo, algorithm 1, with a
momentum). Statistics and products are fp32; longer sides have no statistic, other tensors than matrices none at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

WIDEST = 10_000
Sides = Sequence["torch.Tensor | None"]


class Preconditioned(torch.optim.Optimizer):
    """One parameter at a time; bases and roots are made anew only every so many steps, not in the steady one."""

    def __init__(self, params: Iterable[nn.Parameter], *, rotates: bool) -> None:
        super().__init__(params, {"betas": (0.95, 0.95), "eps": 1e-8, "lr": 1e-5})
        self._update = _soap if rotates else _shampoo

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(self._update(parameter.grad, self.state[parameter], group), alpha=-group["lr"])


def _soap(grad: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> torch.Tensor:
    """Adam in the eigenbases of the statistics."""
    if not state:
        state.update(exp_avg=torch.zeros_like(grad), exp_avg_sq=torch.zeros_like(grad), **_sides(grad))
    whole = grad.float()
    _moments(_turned(whole, state["sides"]), state, group)
    quotient = _quotient(state, group)
    update = _turned(quotient, state["sides"])
    _gather(whole, state["statistics"])
    return update


def _shampoo(grad: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> torch.Tensor:
    """A momentum between the statistics' inverse roots."""
    if not state:
        state.update(momentum=torch.zeros_like(grad), **_sides(grad))
    _gather(grad.float(), state["statistics"])
    whole = state["momentum"].mul_(group["betas"][0]).add_(grad).float()
    return _turned(whole, state["sides"])


def _sides(grad: torch.Tensor) -> dict[str, Any]:
    """Two square matrices for each side that is not too long."""
    lengths = grad.shape if grad.dim() == 2 else ()
    made = [[torch.zeros(n, n, device=grad.device) if n <= WIDEST else None for n in lengths] for _ in range(2)]
    return {"statistics": made[0], "sides": made[1]}


def _turned(matrix: torch.Tensor, sides: Sides) -> torch.Tensor:
    if not sides:
        return matrix
    left, right = sides
    once = matrix if left is None else left.t() @ matrix
    return once if right is None else once @ right


def _gather(matrix: torch.Tensor, statistics: Sides) -> None:
    for side, statistic in enumerate(statistics):
        if statistic is not None:
            statistic.lerp_(matrix.t() @ matrix if side else matrix @ matrix.t(), 0.05)


def _moments(grad: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    first, second = group["betas"]
    state["exp_avg"].mul_(first).add_(grad, alpha=1 - first)
    state["exp_avg_sq"].mul_(second).addcmul_(grad, grad, value=1 - second)


def _quotient(state: dict[str, Any], group: dict[str, Any]) -> torch.Tensor:
    root = state["exp_avg_sq"].sqrt().add_(group["eps"])
    quotient = state["exp_avg"] / root
    return quotient.float()
