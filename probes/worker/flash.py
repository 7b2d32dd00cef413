"""FlashAttention without its package, for rehearsals.

The package's kernels and those behind torch's SDPA are one code (Dao 2023): the same output and log-sum-exp are kept, the
same accumulators live in a backward, grouped heads are read as they are, and no mask is made. SDPA's operators are traced.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from .errors import WorkerError
from .personality import FLASH_MAX_HEAD_DIM, HALF, flash

IMPLEMENTATION = "flash_attention_2"
NOTE = "FlashAttention is played by the allocations of torch's own flash kernel; the flash_attn package is not needed"
FIELD = "attention"
_CHECK = "_check_and_adjust_attn_implementation"


def play_flash(on: bool) -> None:
    """Let transformers take what is in this module for ``flash_attention_2`` in the models built from now on, or no longer.

    Raises :class:`WorkerError` where the installed release chooses its attention in another way.
    """
    from transformers import PreTrainedModel
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    check = getattr(PreTrainedModel, _CHECK, None)
    own = getattr(check, "own", None)
    if not on:
        if own is not None:
            setattr(PreTrainedModel, _CHECK, own)
            del ALL_ATTENTION_FUNCTIONS[IMPLEMENTATION]
        return
    if check is None:
        raise WorkerError("unsupported", f"{FIELD}: this transformers is too old to play flash; choose sdpa", FIELD)
    if own is not None:
        return

    def choose(model: Any, attn_implementation: str | None, *args: Any, **kwargs: Any) -> Any:
        if attn_implementation != IMPLEMENTATION:
            return check(model, attn_implementation, *args, **kwargs)
        if not (getattr(model, "_supports_flash_attn", False) or getattr(model, "_supports_flash_attn_2", False)):
            raise WorkerError("unsupported", f"{FIELD}: {type(model).__name__} has no flash attention; choose sdpa or eager", FIELD)
        return IMPLEMENTATION

    choose.own = check  # type: ignore[attr-defined]
    setattr(PreTrainedModel, _CHECK, choose)
    ALL_ATTENTION_FUNCTIONS[IMPLEMENTATION] = attention


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls for a layer; tensors are (batch, heads, tokens, width), the result (batch, tokens, heads, width).

    fp32 inputs are cast to 16 bit where the module's weights are, and narrower values padded, as transformers does
    (integrations/flash_attention.py); flash_attn itself refuses fp32.
    """
    width = value.shape[-1]
    query, key, value = (_in_16_bit(tensor, module) for tensor in (query, key, value))
    if width != query.shape[-1]:
        value = torch.nn.functional.pad(value, (0, query.shape[-1] - width))
    if query.shape[-1] > FLASH_MAX_HEAD_DIM:
        raise WorkerError("unsupported", f"{FIELD}: flash takes heads of up to {FLASH_MAX_HEAD_DIM}, not {query.shape[-1]}", FIELD)
    scale = 1 / math.sqrt(query.shape[-1]) if scaling is None else scaling
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal) and query.shape[-2] > 1
    out = flash(query, key, value, dropout, causal, scale).transpose(1, 2)
    return (out[..., :width] if width != query.shape[-1] else out), None


def _in_16_bit(tensor: torch.Tensor, module: Any) -> torch.Tensor:
    if tensor.dtype in HALF:
        return tensor
    if torch.is_autocast_enabled("cpu"):
        return tensor.to(torch.get_autocast_dtype("cpu"))
    declared = getattr(module.config, "dtype", None)
    first = next((layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)), None)
    if type(first) is torch.nn.Linear and first.weight.dtype == torch.float32:
        raise WorkerError("unsupported", f"{FIELD}: FlashAttention takes no fp32: choose sdpa, or 16-bit or mixed precision", FIELD)
    return tensor.to(declared if declared in HALF else torch.bfloat16)
