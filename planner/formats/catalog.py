"""The formats by name, and names with parameters (``gptq-int3-g64``)."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING

from planner.faults import nearest
from planner.formats.format import EXPERTS, LINEARS, LINEARS_AND_EXPERTS, Format
from planner.formats.storage import WHOLE, Awq, BitsAndBytes4Bit, Gptq, Plain, Scaled

if TYPE_CHECKING:
    from collections.abc import Mapping

FP8_PER_TENSOR = Scaled("fp8", 8, (WHOLE, WHOLE), 32)
FP8_PER_CHANNEL = Scaled("fp8", 8, (1, WHOLE), 32)
FP8_BLOCK = Scaled("fp8", 8, (128, 128), 32)
LLM_INT8 = Scaled("int8", 8, (1, WHOLE), 32)
MXFP4 = Scaled("mxfp4", 4, (1, 32), 8)
NVFP4 = Scaled("nvfp4", 4, (1, 16), 8, tensor_scalars=2)

FUSED_EXPERTS_NOTE = (
    "experts stay unquantised: transformers 5 keeps them as stacked parameters, and this scheme replaces nn.Linear only"
)


class UnknownFormat(ValueError):
    """No format has this name; the message suggests the nearest."""


def _plain(name: str, label: str) -> Format:
    return Format(name, label, Plain(name), rest_dtype=name)


def _bitsandbytes(name: str, label: str, scheme: BitsAndBytes4Bit | Scaled) -> Format:
    return Format(name, label, scheme, LINEARS, notes=(FUSED_EXPERTS_NOTE,))


def gptq_format(bits: int, group_size: int) -> Format:
    """GPTQ of ``bits`` and ``group_size`` (-1: one group a row), over the linears of the decoder's layers."""
    name = f"gptq-int{bits}-g{group_size}"
    label = f"GPTQ {bits}-bit, {_group_label(group_size)}"
    return Format(name, label, Gptq(bits, group_size), LINEARS_AND_EXPERTS, rest_dtype="fp16", stacks="decoder")


def awq_format(bits: int, group_size: int) -> Format:
    """AWQ (GEMM) of ``bits`` and ``group_size``, over the linears of the decoder's layers."""
    name = f"awq-int{bits}-g{group_size}"
    label = f"AWQ {bits}-bit, {_group_label(group_size)}"
    return Format(name, label, Awq(bits, group_size), LINEARS_AND_EXPERTS, rest_dtype="fp16", stacks="decoder")


def _group_label(group_size: int) -> str:
    return "one group a row" if group_size == -1 else f"groups of {group_size}"


_PLAIN = (
    _plain("fp32", "32-bit float"),
    _plain("bf16", "bfloat16"),
    _plain("fp16", "16-bit float"),
)
_QUANTIZED = (
    Format("fp8", "FP8 (E4M3), one scale a tensor", FP8_PER_TENSOR, LINEARS_AND_EXPERTS),
    Format("fp8-block", "FP8 (E4M3), one scale for 128×128 values", FP8_BLOCK, LINEARS_AND_EXPERTS),
    _bitsandbytes("int8", "LLM.int8() of bitsandbytes", LLM_INT8),
    _bitsandbytes("nf4", "4-bit NormalFloat of bitsandbytes", BitsAndBytes4Bit("nf4", double_quant=False)),
    _bitsandbytes("nf4-dq", "4-bit NormalFloat, double quantisation", BitsAndBytes4Bit("nf4", double_quant=True)),
    _bitsandbytes("fp4", "4-bit float of bitsandbytes", BitsAndBytes4Bit("fp4", double_quant=False)),
    _bitsandbytes("fp4-dq", "4-bit float, double quantisation", BitsAndBytes4Bit("fp4", double_quant=True)),
    Format("mxfp4", "MXFP4, the experts when there are any", MXFP4, EXPERTS, dense_quantizes=LINEARS),
    Format("nvfp4", "NVFP4, an FP8 scale for 16 values", NVFP4, LINEARS_AND_EXPERTS),
    *(gptq_format(bits, group) for bits in (4, 8, 3, 2) for group in (128, 32, 64, -1)),
    awq_format(4, 128),
    awq_format(4, 64),
    awq_format(4, 32),
)

NATIVE = Format(
    "native",
    "as the checkpoint stores it",
    Plain("bf16"),
    unknown="the checkpoint's own format is read from its config",
)

FORMATS: Mapping[str, Format] = MappingProxyType({fmt.name: fmt for fmt in (*_PLAIN, *_QUANTIZED)})
"""Every format with a fixed name. Others are parsed from their parameters by :func:`parse_format`."""

_ALIASES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "half": "fp16", "bnb-int8": "int8", "fp8_e4m3": "fp8"}


def format_names() -> tuple[str, ...]:
    """Names for completion, plain ones first."""
    return ("native", *FORMATS)


def parse_format(name: str) -> Format:
    """The format called ``name``. Raises :class:`UnknownFormat` with the nearest name as a suggestion."""
    if name == "native":
        return NATIVE
    known = FORMATS.get(_ALIASES.get(name, name)) or _parametric(name)
    if known is None:
        raise UnknownFormat(f"unknown weight format {name[:80]!r}{nearest(name, format_names())}")
    return known


def _parametric(name: str) -> Format | None:
    if found := re.fullmatch(r"gptq-int([2348])(?:-g([1-9]\d{0,4}|-1))?", name):
        return gptq_format(int(found[1]), int(found[2] or 128))
    if found := re.fullmatch(r"awq-int(4)(?:-g([1-9]\d{0,4}|-1))?", name):
        return awq_format(int(found[1]), int(found[2] or 128))
    return None
