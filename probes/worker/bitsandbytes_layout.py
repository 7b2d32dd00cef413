"""How bitsandbytes lays a weight out, and what its products allocate.

Sources: bitsandbytes 0.50 (nn/modules.py, autograd/_functions.py, backends/cuda/ops.py), the same since 0.43 but for the
kernel that takes few rows.
"""

from __future__ import annotations

import torch
from torch import nn

from .product import QuantisedLinear

BLOCK = 64
NESTED_BLOCK = 256
CODE_VALUES = 16
NESTED_CODE_VALUES = 256
FEW_ROWS = 4
"""Up to so many rows the 4-bit kernel needs no whole weight (backends/cuda/ops.py, _GEMM_4BIT_CUSTOM_FLOOR_M)."""


class Linear4bit(QuantisedLinear):
    """Two values a byte, one fp32 scale a block of 64; with double quantisation the scales are 8-bit in blocks of 256.

    The input is cast to the compute dtype and the result back to the input's (nn/modules.py, Linear4bit.forward). Layers with
    the same ``shared`` have one code for their nested scales (functional.py, name2qmap); without it scales are not nested.
    """

    def __init__(self, source: nn.Module, shared: dict[str, torch.Tensor] | None = None) -> None:
        super().__init__(source)
        self.nested = nested = shared is not None
        count = self.out_features * self.in_features
        blocks = -(-count // BLOCK)
        self.store_weight(((count + 1) // 2, 1), torch.uint8)
        self.store("absmax", (blocks,), torch.uint8 if nested else torch.float32)
        self.store("code", (CODE_VALUES,), torch.float32)
        if shared is not None:
            self.store("nested_absmax", (-(-blocks // NESTED_BLOCK),), torch.float32)
            code = torch.empty(NESTED_CODE_VALUES, dtype=torch.float32, device=self._source_device)
            self.register_buffer("nested_code", shared.setdefault("nested_code", code))
            self.store("offset", (1,), torch.float32)

    def dequantise(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight in ``dtype``; nested scales are made fp32 first."""
        absmax: torch.Tensor = self.absmax  # type: ignore[assignment]
        if self.nested:
            absmax = torch.empty(absmax.shape, dtype=torch.float32, device=absmax.device)
        made = torch.empty(self.out_features, self.in_features, dtype=self.compute_dtype, device=absmax.device)
        del absmax
        return made.to(dtype)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Few rows are multiplied with the packed weight itself."""
        if x.numel() // x.shape[-1] <= FEW_ROWS:
            return x.new_empty(*x.shape[:-1], self.out_features)
        return super().product(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product in the compute dtype, in the input's."""
        return super().forward(x.to(self.compute_dtype)).to(x.dtype)


class Linear8bit(QuantisedLinear):
    """LLM.int8: one byte a value, one fp32 scale a row; inputs are cast to fp16 and quantised by rows, sums are int32."""

    KEEPS_INPUT = True

    def __init__(self, source: nn.Module) -> None:
        super().__init__(source)
        self.store_weight((self.out_features, self.in_features), torch.int8)
        self.store("row_scales", (self.out_features,), torch.float32)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """MatMul8bitLt.forward."""
        rows = x.numel() // x.shape[-1]
        half = x.to(torch.float16)
        quantised = torch.empty(rows, x.shape[-1], dtype=torch.int8, device=x.device)
        scales = torch.empty(rows, dtype=torch.float32, device=x.device)
        del half
        sums = torch.empty(rows, self.out_features, dtype=torch.int32, device=x.device)
        out = torch.empty(*x.shape[:-1], self.out_features, dtype=torch.float16, device=x.device)
        del quantised, scales, sums
        return out.to(x.dtype)
