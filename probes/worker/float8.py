"""Linears whose products run in 8-bit floats while they train, as torchao 0.18 writes them (``float8/float8_linear.py``).

The input and the weight are kept as they came, and cast anew for each of the three products: times a scale in fp32, clamped, then
narrowed (``float8_training_tensor.py``, ``float8_utils.py``). A product takes its first operand by rows and its second by columns,
what lies otherwise is copied (``float8_ops.py``). Rows with scales of their own are multiplied by the kernel of one scale in the
backward, and scaled afterwards.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .errors import WorkerError
from .order import Training

RECIPES = ("tensorwise", "rowwise", "rowwise_with_gw_hp")
DEFAULT_RECIPE = "tensorwise"
MULTIPLE = 16
"""``torch._scaled_mm`` takes columns and inner dimensions that are multiples of it; accelerate has tokens padded to one."""
_SMALLEST = 1e-12
_FIELD = "scenario.training.engine_options.fp8_recipe"
Cast = tuple[torch.Tensor, torch.Tensor]
"""Values in 8 bit, and what they were multiplied with."""


def convert(model: Any, training: Training) -> None:
    """Replace linears as accelerate does (``utils/ao.py``): all but the first and the last, of dimensions that fit.

    Raises :class:`WorkerError` for a recipe torchao does not have, and where no linear is left.
    """
    recipe = str(training.options.get("fp8_recipe", DEFAULT_RECIPE))
    if recipe not in RECIPES:
        raise WorkerError("unsupported", f"{_FIELD}: choose one of {', '.join(RECIPES)}, got {recipe!r}", _FIELD)
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    left_out = {name for name, _ in (*linears[:1], *linears[-1:])}
    fitting = [(name, linear) for name, linear in linears if name not in left_out and _fits(linear)]
    if not fitting:
        raise WorkerError("unsupported", f"{_FIELD}: {type(model).__name__} has no linear that fits", _FIELD)
    for name, linear in fitting:
        owner, _, own = name.rpartition(".")
        setattr(model.get_submodule(owner), own, Float8Linear(linear, recipe))


def _fits(linear: nn.Linear) -> bool:
    return type(linear) is nn.Linear and not linear.in_features % MULTIPLE and not linear.out_features % MULTIPLE


class Float8Linear(nn.Linear):
    """A linear with the parameters of another one, whose products run in 8 bit."""

    def __init__(self, linear: nn.Linear, recipe: str) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self._recipe = recipe

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's own name
        """(…, in_features) → (…, out_features)."""
        if torch.is_autocast_enabled(input.device.type):
            input = input.to(torch.get_autocast_dtype(input.device.type))  # noqa: A001
        out: torch.Tensor = _Product.apply(input, self.weight.t(), self._recipe)
        return out if self.bias is None else out + self.bias.to(out.dtype)


class _Product(torch.autograd.Function):
    """``input`` times ``weight_t`` (in_features, out_features), and its two products of the backward."""

    @staticmethod
    def forward(ctx: Any, source: torch.Tensor, weight_t: torch.Tensor, recipe: str) -> torch.Tensor:
        """The product in the dtype of ``source``."""
        ctx.save_for_backward(source, weight_t)
        ctx.recipe = recipe
        by_row = recipe != "tensorwise"
        narrow = _cast(source, -1 if by_row else None)
        weight = _cast(weight_t, 0 if by_row else None)
        rows = _flat(narrow[0]), narrow[1].reshape(-1, 1) if by_row else narrow[1]
        out = _multiply(rows, weight, source.dtype, fast=True)
        return out.reshape(*source.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of input and weight: both are made, whichever is asked for."""
        source, weight_t = ctx.saved_tensors
        by_row = ctx.recipe != "tensorwise"
        rows, wide = _flat(gradient), torch.float8_e4m3fn if by_row else torch.float8_e5m2
        first = _cast(rows, -1 if by_row else None, wide)
        weight = _cast(weight_t, -1 if ctx.recipe == "rowwise" else None)
        back = weight[0].t(), weight[1].t() if weight[1].dim() else weight[1]
        made = _multiply(first, back, gradient.dtype, fast=False).reshape(*gradient.shape[:-1], weight_t.shape[0])
        inputs = _flat(source)
        if ctx.recipe == "rowwise_with_gw_hp":
            return made, torch.mm(rows.t(), inputs).t(), None
        second = _cast(rows, 0 if by_row else None, wide)
        again = _cast(inputs, 0 if by_row else None)
        turned = second[0].t(), second[1].t() if second[1].dim() else second[1]
        return made, _multiply(turned, again, gradient.dtype, fast=False).t(), None


def _flat(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, values.shape[-1])


def _cast(values: torch.Tensor, dim: int | None, dtype: torch.dtype = torch.float8_e4m3fn) -> Cast:
    """In 8 bit, with one scale, or one for each slice along ``dim``."""
    limit = torch.finfo(dtype).max
    highest = torch.max(torch.abs(values)) if dim is None else torch.amax(torch.abs(values), dim=dim, keepdim=True)
    scale = (limit / torch.clamp(highest.to(torch.float64), min=_SMALLEST)).to(torch.float32)
    if dim is not None:
        scale = torch.exp2(torch.floor(torch.log2(scale)))
    return _narrow(values.to(torch.float32) * scale, dtype), scale


def _narrow(scaled: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    limit = torch.finfo(dtype).max
    return scaled.clamp(min=-limit, max=limit).to(dtype)


def _multiply(first: Cast, second: Cast, dtype: torch.dtype, *, fast: bool) -> torch.Tensor:
    """``first`` (rows, inner) times ``second`` (inner, columns)."""
    (left, left_scale), (right, right_scale) = first, second
    missing = -left.shape[1] % MULTIPLE
    if missing:
        left, right = functional.pad(left, (0, missing)), functional.pad(right, (0, 0, 0, missing))
    if left.stride(-1) != 1:
        left = left.contiguous()
    if right.stride(-1) == 1:
        right = right.t().contiguous().t()
    if left_scale.dim() and not right_scale.dim():
        right_scale = right_scale.repeat(right.shape[1]).reshape(1, -1)
    scales, after = (left_scale.reciprocal(), right_scale.reciprocal()), None
    if left_scale.dim() and not fast:
        after = scales[0] * scales[1]
        scales = scales[0].new_ones(()), scales[0].new_ones(())
    out = torch._scaled_mm(left, right, scale_a=scales[0], scale_b=scales[1], out_dtype=dtype, use_fast_accum=fast)
    if after is not None:
        out *= after
    return out


__all__ = ["Float8Linear", "convert"]
