"""Linear layers with a quantised weight, as bitsandbytes lays them out, for rehearsals where nothing is computed.

Sizes and the moments of dequantising follow bitsandbytes (0.45: nn/modules.py, functional.py, autograd/_functions.py):
4-bit weights are dequantised to the compute dtype for each product, in the forward and again in the backward.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .errors import WorkerError

BLOCK = 64
NESTED_BLOCK = 256
CODE_VALUES = 16
NESTED_CODE_VALUES = 256
FORMATS = ("nf4", "nf4-dq", "fp4", "int8")


class _Matmul4bit(torch.autograd.Function):
    """The product of the input with a weight that exists only for its duration."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Linear4bit) -> torch.Tensor:
        ctx.layer = layer
        ctx.dtype = x.dtype
        return torch.nn.functional.linear(x, layer.dequantise(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.matmul(grad, ctx.layer.dequantise(grad.dtype)), None


class Linear4bit(nn.Linear):
    """Two values a byte, one fp32 scale a block of 64; with double quantisation the scales are 8-bit in blocks of 256."""

    def __init__(self, source: nn.Linear, nested: bool) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = source.in_features, source.out_features
        self.nested = nested
        self.copies_result = False
        count = source.weight.numel()
        blocks = -(-count // BLOCK)
        device = source.weight.device
        self.weight = nn.Parameter(torch.empty((count + 1) // 2, 1, dtype=torch.uint8, device=device), requires_grad=False)
        self.bias = source.bias
        self._state("absmax", blocks, torch.uint8 if nested else torch.float32, device)
        self._state("code", CODE_VALUES, torch.float32, device)
        if nested:
            self._state("nested_absmax", -(-blocks // NESTED_BLOCK), torch.float32, device)
            self._state("nested_code", NESTED_CODE_VALUES, torch.float32, device)
            self._state("offset", 1, torch.float32, device)

    def dequantise(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight in ``dtype``, freshly allocated."""
        absmax: torch.Tensor = self.absmax  # type: ignore[assignment]
        if self.nested:
            absmax = torch.empty(absmax.shape, dtype=torch.float32, device=absmax.device)
        made = torch.empty(self.out_features, self.in_features, dtype=dtype, device=absmax.device)
        del absmax
        return made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x · dequantised weight, and the bias."""
        out: torch.Tensor = _Matmul4bit.apply(x, self)
        out = out if self.bias is None else out + self.bias
        return out.clone() if self.copies_result else out

    def _state(self, name: str, count: int, dtype: torch.dtype, device: torch.device) -> None:
        self.register_buffer(name, torch.empty(count, dtype=dtype, device=device))


class _Matmul8bit(torch.autograd.Function):
    """LLM.int8: the input is quantised by rows, the product accumulates in int32."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Linear8bit) -> torch.Tensor:
        ctx.layer = layer
        rows = x.numel() // x.shape[-1]
        quantised = torch.empty(rows, x.shape[-1], dtype=torch.int8, device=x.device)
        scales = torch.empty(rows, dtype=torch.float32, device=x.device)
        sums = torch.empty(rows, layer.out_features, dtype=torch.int32, device=x.device)
        out = torch.empty(*x.shape[:-1], layer.out_features, dtype=x.dtype, device=x.device)
        del quantised, scales, sums
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        layer = ctx.layer
        weight = torch.empty(layer.out_features, layer.in_features, dtype=grad.dtype, device=grad.device)
        return torch.matmul(grad, weight), None


class Linear8bit(nn.Linear):
    """One byte a value, one fp32 scale a row."""

    def __init__(self, source: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = source.in_features, source.out_features
        weight = torch.empty(source.weight.shape, dtype=torch.int8, device=source.weight.device)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = source.bias
        self.register_buffer("row_scales", torch.empty(self.out_features, dtype=torch.float32, device=weight.device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x · weight, and the bias."""
        out: torch.Tensor = _Matmul8bit.apply(x, self)
        return out if self.bias is None else out + self.bias


def quantise_linears(model: nn.Module, weights: str, skip: Iterable[str]) -> None:
    """Replace every linear layer but those named in ``skip``. Raises :class:`WorkerError` for an unknown format."""
    if weights not in FORMATS:
        known = ", ".join(FORMATS)
        raise WorkerError(
            "unsupported", f"scenario.weights: {weights!r} is not rehearsed; choose one of {known}", "scenario.weights"
        )
    skipped = set(skip)
    for name, module in list(model.named_modules()):
        for child_name, child in list(module.named_children()):
            path = f"{name}.{child_name}" if name else child_name
            if type(child) is nn.Linear and not skipped & {child_name, path}:
                setattr(module, child_name, _quantised(child, weights))


def quantisation_state(model: nn.Module) -> list[torch.Tensor]:
    """Scales and codes of the quantised layers."""
    layers = [module for module in model.modules() if isinstance(module, (Linear4bit, Linear8bit))]
    return [buffer for layer in layers for buffer in layer.buffers()]


def _quantised(linear: nn.Linear, weights: str) -> nn.Linear:
    return Linear8bit(linear) if weights == "int8" else Linear4bit(linear, nested=weights == "nf4-dq")
