"""8- and 4-bit floats with scales, as transformers runs them: FP8 linears, and stacked experts in FP8 or MXFP4.

Sources: transformers 5 (integrations/finegrained_fp8.py, integrations/mxfp4.py).
"""

from __future__ import annotations

import torch
from torch import nn

from .product import QuantisedLinear

FP8 = torch.float8_e4m3fn
FP8_BLOCK = 128
MXFP4_BLOCK = 32


class _Fp8Linear(QuantisedLinear):
    """Inputs are quantised by row and block of 128 for each product; gradients go through the dequantised weight."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__(source)
        self.store_weight((self.out_features, self.in_features), FP8)
        self.store("weight_scale_inv", self._scales(), torch.float32)

    def _scales(self) -> tuple[int, ...]:
        raise NotImplementedError

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """fp8_linear: the quantised input and its scales beside the result."""
        rows = x.numel() // x.shape[-1]
        quantised = torch.empty(x.shape, dtype=FP8, device=x.device)
        scales = torch.empty(rows, -(-self.in_features // FP8_BLOCK), dtype=torch.float32, device=x.device)
        out = x.new_empty(*x.shape[:-1], self.out_features)
        del quantised, scales
        return out


class BlockFp8Linear(_Fp8Linear):
    """One fp32 scale for 128×128 values."""

    def _scales(self) -> tuple[int, ...]:
        return -(-self.out_features // FP8_BLOCK), -(-self.in_features // FP8_BLOCK)


class TensorFp8Linear(_Fp8Linear):
    """One fp32 scale a tensor."""

    def _scales(self) -> tuple[int, ...]:
        return ()


class StackedExperts(nn.Module):
    """All experts of a layer in two stacked weights, with their scales."""

    VALUES = ("gate_up_proj", "down_proj")

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self._width, self._inner = _widths(source)
        for name in self.VALUES:
            weight: torch.Tensor = getattr(source, name)
            self._store(name, *self._values(weight), weight)
            self.register_buffer(f"{name}_scales", self._scales(weight))
            bias = getattr(source, f"{name}_bias", None)
            if bias is not None:
                self._store(f"{name}_bias", tuple(bias.shape), torch.float32, weight)

    def _store(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, like: torch.Tensor) -> None:
        self.register_parameter(name, nn.Parameter(torch.empty(shape, dtype=dtype, device=like.device), requires_grad=False))

    def _values(self, weight: torch.Tensor) -> tuple[tuple[int, ...], torch.dtype]:
        raise NotImplementedError

    def _scales(self, weight: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    @property
    def values(self) -> int:
        """How many values the weights stand for."""
        return sum(self._count(getattr(self, name)) for name in self.VALUES)

    def _count(self, stored: torch.Tensor) -> int:
        return stored.numel()


class Mxfp4Experts(StackedExperts):
    """4-bit values with a shared exponent for 32 of them.

    Tokens are gathered inside the first product, whose activation is fused, and scattered by the second
    (integrations/mxfp4.py, Mxfp4GptOssExperts.forward_routed).
    """

    def _values(self, weight: torch.Tensor) -> tuple[tuple[int, ...], torch.dtype]:
        return (weight.shape[0], weight[0].numel() // 2), torch.uint8

    def _scales(self, weight: torch.Tensor) -> torch.Tensor:
        blocks = -(-weight[0].numel() // MXFP4_BLOCK)
        return torch.empty(weight.shape[0], blocks, dtype=torch.uint8, device=weight.device)

    def _count(self, stored: torch.Tensor) -> int:
        return 2 * stored.numel()

    def forward(self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        """(tokens, hidden) through each token's experts: (tokens, hidden)."""
        routes, experts = top_k_index.numel(), top_k_index.shape[-1]
        inner = hidden_states.new_empty(routes, self._inner)
        routed = hidden_states.new_empty(routes, self._width)
        out = routed.view(-1, experts, self._width).sum(1)
        del inner
        return out


class Fp8Experts(StackedExperts):
    """FP8 values with an fp32 scale for 128×128 of them (finegrained_fp8.py, fp8_grouped_mm_experts_forward)."""

    def _values(self, weight: torch.Tensor) -> tuple[tuple[int, ...], torch.dtype]:
        return tuple(weight.shape), FP8

    def _scales(self, weight: torch.Tensor) -> torch.Tensor:
        experts, rows, columns = weight.shape
        shape = experts, -(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK)
        return torch.empty(shape, dtype=torch.float32, device=weight.device)

    def forward(self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        """(tokens, hidden) through each token's experts: (tokens, hidden)."""
        routes, experts = top_k_index.numel(), top_k_index.shape[-1]
        selected = hidden_states.repeat_interleave(experts, 0)
        out = _fp8_product(selected, 2 * self._inner)
        gate, up = out.chunk(2, dim=-1)
        inner = torch.nn.functional.silu(gate) * up
        del gate, up
        out = _fp8_product(inner, self._width)
        del inner
        weighted = out * top_k_weights.reshape(-1, 1).to(out.dtype)
        weighted = weighted.clone()  # back into the order of the tokens
        return weighted.view(routes // experts, experts, self._width).sum(1)


def _fp8_product(x: torch.Tensor, width: int) -> torch.Tensor:
    quantised = torch.empty(x.shape, dtype=FP8, device=x.device)
    scales = torch.empty(x.shape[0], -(-x.shape[1] // FP8_BLOCK), dtype=torch.float32, device=x.device)
    out = x.new_empty(x.shape[0], width)
    del quantised, scales
    return out


def _widths(source: nn.Module) -> tuple[int, int]:
    """(hidden, intermediate) of stacked experts: the first product's input is the second's output."""
    first: torch.Tensor = source.gate_up_proj  # type: ignore[assignment]
    second: torch.Tensor = source.down_proj  # type: ignore[assignment]
    shared = set(first.shape[1:]) & set(second.shape[1:])
    hidden = shared.pop() if len(shared) == 1 else int(getattr(source, "hidden_dim", getattr(source, "hidden_size", 0)))
    return hidden, second[0].numel() // hidden
