"""Linears of bitsandbytes itself, for measurements where it is installed: NF4, FP4 and LLM.int8.

Until it gets memory a linear keeps its 16-bit weight on meta. ``pack`` of that parameter then makes of the weight what bitsandbytes
holds of it, one weight after the other, as transformers does while it loads a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .errors import WorkerError

FORMATS = ("nf4", "nf4-dq", "fp4", "fp4-dq", "int8")
_FIELD = "scenario.weights"
_OUTLIERS = 6.0
"""``llm_int8_threshold`` of transformers' BitsAndBytesConfig."""


def maker(weights: str) -> Callable[[nn.Module], nn.Module]:
    """What makes bitsandbytes' linear of a plain one. Raises :class:`WorkerError` (missing_package)."""
    try:
        import bitsandbytes
    except ImportError as error:
        message = f"{_FIELD}: {weights} needs bitsandbytes: python -m pip install bitsandbytes, or rehearse"
        raise WorkerError("missing_package", message, _FIELD) from error

    def make(linear: nn.Module) -> nn.Module:
        if weights == "int8":
            return _int8(bitsandbytes, linear)
        return _four_bit(bitsandbytes, linear, weights.partition("-")[0], nested=weights.endswith("-dq"))

    return make


def state_of(layer: nn.Module) -> list[torch.Tensor]:
    """Scales and codes beside a packed weight."""
    weight: Any = layer.weight
    state = getattr(weight, "quant_state", None)
    if state is None:
        # The first forward moves the scales from the weight to the layer (nn/modules.py, init_8bit_state).
        scales = [getattr(holder, "SCB", None) for holder in (weight, getattr(layer, "state", None))]
        return [scale for scale in scales if scale is not None][:1]
    nested = getattr(state, "state2", None)
    told = [state.absmax, state.code, *([nested.absmax, nested.code, state.offset] if nested is not None else [])]
    return [tensor for tensor in told if isinstance(tensor, torch.Tensor)]


def _four_bit(bitsandbytes: Any, linear: Any, kind: str, *, nested: bool) -> nn.Module:
    rows, columns, transposed = _shape(linear)
    made = bitsandbytes.nn.Linear4bit(
        columns, rows, bias=linear.bias is not None, compute_dtype=linear.weight.dtype, compress_statistics=nested,
        quant_type=kind, device="meta",
    )  # fmt: skip

    def pack(weight: torch.Tensor) -> nn.Parameter:
        values = weight.detach().T.contiguous() if transposed else weight.detach()
        plain = bitsandbytes.nn.Params4bit(values, requires_grad=False, quant_type=kind, compress_statistics=nested, module=made)
        return plain.to(weight.device)

    return _with_weight(made, linear, pack, rows * columns // 2, compress_statistics=nested, quant_type=kind, quant_state=None)


def _int8(bitsandbytes: Any, linear: Any) -> nn.Module:
    rows, columns, transposed = _shape(linear)
    made = bitsandbytes.nn.Linear8bitLt(
        columns, rows, bias=linear.bias is not None, has_fp16_weights=False, threshold=_OUTLIERS, device="meta"
    )

    def pack(weight: torch.Tensor) -> nn.Parameter:
        values = weight.detach().T.contiguous() if transposed else weight.detach()
        plain = bitsandbytes.nn.Int8Params(values.to(torch.float16), requires_grad=False, has_fp16_weights=False)
        return plain.to(weight.device)

    return _with_weight(made, linear, pack, rows * columns, has_fp16_weights=False, SCB=None)


def _shape(linear: Any) -> tuple[int, int, bool]:
    """Rows, columns, and whether the weight lies the other way round, as GPT-2's does."""
    if isinstance(linear, nn.Linear):
        return linear.out_features, linear.in_features, False
    return linear.weight.shape[1], linear.weight.shape[0], True


def _with_weight(made: Any, linear: Any, pack: Callable[[torch.Tensor], nn.Parameter], packed_bytes: int, **more: Any) -> nn.Module:
    """``more``: what PEFT asks of the weight before it is packed."""
    weight = nn.Parameter(linear.weight.data, requires_grad=False)
    told: dict[str, Any] = {"pack": pack, "packed_bytes": packed_bytes, **more}
    for name, value in told.items():
        setattr(weight, name, value)
    made._parameters["weight"] = weight
    made._parameters["bias"] = linear.bias
    made.values = linear.weight.numel()
    return made
