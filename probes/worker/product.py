"""The product of an input with a weight that is stored quantised: what autograd keeps, and when the weight exists whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class _Product(torch.autograd.Function):
    """Autograd sees one operator; the layer says what happens inside."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: QuantisedLinear) -> torch.Tensor:
        ctx.layer = layer
        ctx.dtype = x.dtype
        if layer.KEEPS_INPUT:
            ctx.save_for_backward(x)
        return layer.product(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.matmul(grad, ctx.layer.dequantise(grad.dtype)), None


class QuantisedLinear(nn.Linear):
    """A frozen linear layer. A layout gives it storage in its constructor, and :meth:`product`.

    ``VALUES`` names the buffers that hold the weight's values, not what describes them; ``KEEPS_INPUT`` says whether
    autograd saves the input.
    """

    VALUES: tuple[str, ...] = ()
    KEEPS_INPUT = False

    def __init__(self, source: nn.Module) -> None:
        nn.Module.__init__(self)
        weight: torch.Tensor = source.weight  # type: ignore[assignment]
        self.out_features, self.in_features = _shape(source, weight)
        self.compute_dtype = weight.dtype
        self._source_device = weight.device
        self.bias = source.bias  # type: ignore[assignment]
        if self.bias is not None:
            self.bias.requires_grad_(False)

    def store(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Hold a buffer."""
        self.register_buffer(name, torch.empty(shape, dtype=dtype, device=self._source_device))

    def store_weight(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Hold the values as the frozen parameter ``weight``."""
        self.weight = nn.Parameter(torch.empty(shape, dtype=dtype, device=self._source_device), requires_grad=False)

    def dequantise(self, dtype: torch.dtype) -> torch.Tensor:
        """The whole weight, freshly allocated: in the compute dtype, then cast where ``dtype`` is another."""
        made = torch.empty(self.out_features, self.in_features, dtype=self.compute_dtype, device=self._device)
        return made.to(dtype)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """x (…, in) times the weight: (…, out)."""
        return torch.nn.functional.linear(x, self.dequantise(x.dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product and the bias."""
        out: torch.Tensor = _Product.apply(x, self)
        return out if self.bias is None else out + self.bias

    @property
    def values(self) -> int:
        """How many values the weight stands for."""
        return self.out_features * self.in_features

    @property
    def _device(self) -> torch.device:
        return next(iter(self.buffers())).device


def _shape(source: nn.Module, weight: torch.Tensor) -> tuple[int, int]:
    """(out, in); GPT-2's Conv1D stores its weight the other way round."""
    first, second = weight.shape
    return (first, second) if isinstance(source, nn.Linear) else (second, first)
