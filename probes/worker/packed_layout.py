"""Weights packed into 32-bit integers with scales and zeros by groups: GPTQ and AWQ, as GPTQModel holds and runs them.

Sources: GPTQModel (nn_modules/qlinear/__init__.py, marlin.py, tritonv2.py, torch.py, gemm_awq.py). Generation takes
Marlin, which needs no whole weight. Marlin does not train (SUPPORTS_TRAINING): there the weight is made whole for each
product, in the forward and in the backward.
"""

from __future__ import annotations

import torch
from torch import nn

from .product import QuantisedLinear

WORD_BITS = 32


class _Packed(QuantisedLinear):
    VALUES = ("qweight",)

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """The packed values, under the name that PEFT asks for."""
        packed: torch.Tensor = self.qweight  # type: ignore[assignment]
        return packed

    def _groups(self, group: int) -> int:
        return -(-self.in_features // (group if group > 0 else self.in_features))

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Whole weights only where gradients are wanted."""
        if self.training:
            return super().product(x)
        return x.new_empty(*x.shape[:-1], self.out_features)


class GptqLinear(_Packed):
    """Inputs packed; the group of every input is stored."""

    def __init__(self, source: nn.Module, bits: int, group: int) -> None:
        super().__init__(source)
        groups = self._groups(group)
        self.store("qweight", (-(-self.in_features * bits // WORD_BITS), self.out_features), torch.int32)
        self.store("qzeros", (groups, -(-self.out_features * bits // WORD_BITS)), torch.int32)
        self.store("scales", (groups, self.out_features), torch.float16)
        self.store("g_idx", (self.in_features,), torch.int32)


class AwqLinear(_Packed):
    """Outputs packed, four bits."""

    def __init__(self, source: nn.Module, group: int) -> None:
        super().__init__(source)
        groups, words = self._groups(group), -(-self.out_features * 4 // WORD_BITS)
        self.store("qweight", (self.in_features, words), torch.int32)
        self.store("qzeros", (groups, words), torch.int32)
        self.store("scales", (groups, self.out_features), torch.float16)
