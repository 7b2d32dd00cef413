"""The formats by name, and names with parameters (``gptq-int3-g64``)."""

from __future__ import annotations

import re
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from planner.faults import nearest
from planner.formats.format import EXPERTS, LINEARS, LINEARS_AND_EXPERTS, Format
from planner.formats.storage import WHOLE, Awq, BitsAndBytes4Bit, Gptq, Hqq, Plain, QuantoBits, Scaled, Scheme

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.formats.gguf_types import FileType

    FORMATS: Mapping[str, Format]

FP8_PER_TENSOR = Scaled("fp8", 8, (WHOLE, WHOLE), 32)
FP8_PER_CHANNEL = Scaled("fp8", 8, (1, WHOLE), 32)
FP8_BLOCK = Scaled("fp8", 8, (128, 128), 32)
LLM_INT8 = Scaled("int8", 8, (1, WHOLE), 32)
MXFP4 = Scaled("mxfp4", 4, (1, 32), 8)
NVFP4 = Scaled("nvfp4", 4, (1, 16), 8, tensor_bytes=8)
QUANTO_8BIT = {dtype: Scaled(dtype, 8, (1, WHOLE), 16, tensor_bytes=4) for dtype in ("int8", "fp8")}
TORCHAO_INT8 = Scaled("int8", 8, (1, WHOLE), 32, zero_point_bits=8)
TORCHAO_INT4 = Scaled("int4", 4, (1, 128), 16, zero_point_bits=16)
EETQ = Scaled("int8", 8, (1, WHOLE), 16)

FUSED_EXPERTS_NOTE = (
    "experts stay unquantised: transformers 5 keeps them as stacked parameters, and this scheme replaces nn.Linear only"
)


class UnknownFormat(ValueError):
    """No format has this name; the message suggests the nearest."""


def _plain(name: str, label: str) -> Format:
    return Format(name, label, Plain(name), rest_dtype=name)


def linears_only(name: str, label: str, scheme: Scheme) -> Format:
    """A scheme that transformers applies to ``nn.Linear`` modules, and so not to experts."""
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


def hqq_format(bits: int, group_size: int) -> Format:
    """HQQ of ``bits`` and ``group_size``."""
    return linears_only(f"hqq-int{bits}-g{group_size}", f"HQQ {bits}-bit, {_group_label(group_size)}", Hqq(bits, group_size))


def gguf_format(file_type: str) -> Format:
    """The GGUF file type of that name, a key of ``FILE_TYPES``."""
    default = _file_types()[file_type].default
    scheme = Plain({"F32": "fp32", "BF16": "bf16"}.get(default, "fp16"))
    return Format(f"gguf:{file_type}", f"GGUF {file_type}", scheme, file_type=file_type)


def _file_types() -> Mapping[str, FileType]:
    from planner.formats.gguf_types import FILE_TYPES  # noqa: PLC0415  loaded for those who ask

    return FILE_TYPES


def _group_label(group_size: int) -> str:
    return "one group a row" if group_size == -1 else f"groups of {group_size}"


_PLAIN = {
    "fp32": _plain("fp32", "32-bit float"),
    "bf16": _plain("bf16", "bfloat16"),
    "fp16": _plain("fp16", "16-bit float"),
}

NATIVE = Format(
    "native",
    "as the checkpoint stores it",
    Plain("bf16"),
    unknown="the checkpoint's own format is read from its config",
)


def _quantized() -> tuple[Format, ...]:
    return (
        Format("fp8", "FP8 (E4M3), one scale a tensor", FP8_PER_TENSOR, LINEARS_AND_EXPERTS),
        Format("fp8-block", "FP8 (E4M3), one scale for 128×128 values", FP8_BLOCK, LINEARS_AND_EXPERTS),
        linears_only("int8", "LLM.int8() of bitsandbytes", LLM_INT8),
        linears_only("nf4", "4-bit NormalFloat of bitsandbytes", BitsAndBytes4Bit("nf4", double_quant=False)),
        linears_only("nf4-dq", "4-bit NormalFloat, double quantisation", BitsAndBytes4Bit("nf4", double_quant=True)),
        linears_only("fp4", "4-bit float of bitsandbytes", BitsAndBytes4Bit("fp4", double_quant=False)),
        linears_only("fp4-dq", "4-bit float, double quantisation", BitsAndBytes4Bit("fp4", double_quant=True)),
        Format("mxfp4", "MXFP4, the experts when there are any", MXFP4, EXPERTS, dense_quantizes=LINEARS),
        Format("nvfp4", "NVFP4, an FP8 scale for 16 values", NVFP4, LINEARS_AND_EXPERTS),
        *(gptq_format(bits, group) for bits in (4, 8, 3, 2) for group in (128, 32, 64, -1)),
        awq_format(4, 128),
        awq_format(4, 64),
        awq_format(4, 32),
        *(hqq_format(bits, 64) for bits in (8, 4, 3, 2)),
        linears_only("quanto-int8", "optimum-quanto 8-bit", QUANTO_8BIT["int8"]),
        linears_only("quanto-int4", "optimum-quanto 4-bit", QuantoBits(4)),
        linears_only("torchao-int8", "torchao 8-bit weights", TORCHAO_INT8),
        linears_only("torchao-int4-g128", "torchao 4-bit weights, groups of 128", TORCHAO_INT4),
        linears_only("eetq-int8", "EETQ 8-bit", EETQ),
        *(gguf_format(file_type) for file_type in _file_types()),
    )


@cache
def _formats() -> Mapping[str, Format]:
    return MappingProxyType(_PLAIN | {fmt.name: fmt for fmt in _quantized()})


def __getattr__(name: str) -> Mapping[str, Format]:
    """``FORMATS``: every format with a fixed name. Others are parsed from their parameters by :func:`parse_format`."""
    if name == "FORMATS":
        return _formats()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_GGUF = "gguf:"
_ALIASES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "half": "fp16", "bnb-int8": "int8", "fp8_e4m3": "fp8"}


def format_names() -> tuple[str, ...]:
    """Names for completion, plain ones first."""
    return ("native", *_formats())


def parse_format(name: str) -> Format:
    """The format called ``name``. Raises :class:`UnknownFormat` with the nearest name as a suggestion."""
    if name == "native":
        return NATIVE
    alias = _ALIASES.get(name, name)
    known = _PLAIN.get(alias) or _formats().get(alias) or _parametric(name)
    if known is None:
        raise UnknownFormat(f"unknown weight format {name[:80]!r}{_meant(name)}")
    return known


def _meant(name: str) -> str:
    """The format that is spoken of so, GGUF's types also without their prefix, as people call them (``q4_k_m``)."""
    spoken: dict[str, str] = {}
    for known in format_names():
        spoken.setdefault(known.lower().removeprefix(_GGUF), known)
    short = name[:80].lower().removeprefix(_GGUF)
    return f" (did you mean {spoken[short]}?)" if short in spoken else nearest(name, format_names())


def _parametric(name: str) -> Format | None:
    if found := re.fullmatch(r"gptq-int([2348])(?:-g([1-9]\d{0,4}|-1))?", name):
        return gptq_format(int(found[1]), int(found[2] or 128))
    if found := re.fullmatch(r"awq-int(4)(?:-g([1-9]\d{0,4}|-1))?", name):
        return awq_format(int(found[1]), int(found[2] or 128))
    if found := re.fullmatch(r"hqq-int([12348])(?:-g([1-9]\d{0,4}))?", name):
        return hqq_format(int(found[1]), int(found[2] or 64))
    if name.startswith("gguf:") and name[5:].upper() in _file_types():
        return gguf_format(name[5:].upper())
    return None
