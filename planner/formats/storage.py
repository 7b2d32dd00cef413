"""How one weight matrix lies in memory under each scheme: the tensors that a library really keeps, byte by byte.

A scheme's ``store(shape)`` answers with every tensor that one weight of ``shape`` becomes. The last two dimensions
are (out_features, in_features); dimensions before them (stacked experts) multiply. Shapes are those of the
implementing library, named at each scheme.
"""

from __future__ import annotations

import math
from typing import Protocol

from planner.record import record

DTYPE_BITS: dict[str, int] = {
    "fp64": 64,
    "fp32": 32,
    "fp16": 16,
    "bf16": 16,
    "fp8": 8,
    "fp8_e5m2": 8,
    "int64": 64,
    "int32": 32,
    "int16": 16,
    "int8": 8,
    "uint8": 8,
    "bool": 8,
    "int4": 4,
    "fp4": 4,
}
"""Bits a value takes, by the names of dtypes used throughout planner."""

WHOLE = 0
"""A block size: the whole dimension."""


@record
class Stored:
    """One tensor on the device. ``is_payload``: it holds the weight's values, else what is needed to read them."""

    name: str
    size_bytes: int
    is_payload: bool = False


class Scheme(Protocol):
    """How a weight is stored."""

    @property
    def dtype(self) -> str:
        """What the values are stored as, for people: ``nf4``, ``fp8``, ``Q4_K``."""
        ...

    def store(self, shape: tuple[int, ...]) -> tuple[Stored, ...]:
        """The tensors that one weight of ``shape`` becomes."""
        ...

    def __hash__(self) -> int:
        """Schemes are frozen values."""
        ...


def ceil_div(numerator: int, denominator: int) -> int:
    """⌈numerator / denominator⌉ in integers."""
    return -(-numerator // denominator)


def matrix(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """A shape as (matrices, out_features, in_features)."""
    if not shape:
        return 1, 1, 1
    rows = shape[-2] if len(shape) > 1 else 1
    return math.prod(shape[:-2]), rows, shape[-1]


@record
class Plain:
    """Every value in one dtype."""

    dtype: str

    def store(self, shape: tuple[int, ...]) -> tuple[Stored, ...]:
        """numel · bytes(dtype)."""
        return (Stored("weight", ceil_div(math.prod(shape) * DTYPE_BITS[self.dtype], 8), is_payload=True),)


@record
class Scaled:
    """Low-precision values with a scale for each block of ``block`` = (rows, columns); ``WHOLE`` spans a dimension.

    fp8 per tensor (WHOLE, WHOLE), per channel (1, WHOLE), DeepSeek's blocks (128, 128): compressed-tensors
    ``quantization/lifecycle/initialize.py``, transformers ``integrations/finegrained_fp8.py``. LLM.int8: bitsandbytes
    ``nn/modules.py`` ``Int8Params`` (CB and the fp32 row statistics SCB). mxfp4 (1, 32) with E8M0 scales: transformers
    ``integrations/mxfp4.py``. nvfp4 (1, 16) with fp8 scales and two fp32 scalars a tensor: compressed-tensors ``nvfp4``.
    """

    dtype: str
    value_bits: int
    block: tuple[int, int]
    scale_bits: int
    zero_point_bits: int = 0
    tensor_bytes: int = 0
    """Scalars of the tensor as a whole besides its scales: a global scale, a static scale of the input."""
    padded_to: tuple[int, int] = (1, 1)
    """Rows and columns are padded up to multiples of these before anything is stored."""

    def store(self, shape: tuple[int, ...]) -> tuple[Stored, ...]:
        """values: out · ⌈in · bits / 8⌉; scales: ⌈out / rows⌉ · ⌈in / columns⌉."""
        matrices, rows, columns = matrix(shape)
        rows, columns = (ceil_div(size, step) * step for size, step in zip((rows, columns), self.padded_to, strict=True))
        blocks = matrices * ceil_div(rows, self.block[0] or rows) * ceil_div(columns, self.block[1] or columns)
        return _present(
            Stored("weight", matrices * rows * ceil_div(columns * self.value_bits, 8), is_payload=True),
            Stored("scale", ceil_div(blocks * self.scale_bits, 8)),
            Stored("zero_point", ceil_div(blocks * self.zero_point_bits, 8)),
            Stored("tensor_scale", self.tensor_bytes * matrices),
        )


@record
class BitsAndBytes4Bit:
    """NF4 or FP4 of bitsandbytes (``functional.py`` ``quantize_4bit``, ``QuantState``), flattened into blocks.

    Two values a byte; an fp32 absmax for each block of 64 values; the 16-entry fp32 code book. With double quantisation
    (Dettmers et al. 2023, section 3) absmax is 8-bit with an fp32 absmax for each 256 of them, its own 256-entry
    fp32 code book and one fp32 offset.
    """

    dtype: str
    double_quant: bool
    block_values: int = 64
    nested_block_values: int = 256
    storage_bytes: int = 1
    """Bytes of ``bnb_4bit_quant_storage``, to which the packed values are padded."""

    def store(self, shape: tuple[int, ...]) -> tuple[Stored, ...]:
        """⌈n / 2⌉ padded to the storage dtype, ⌈n / 64⌉ absmax, nested ⌈⌈n / 64⌉ / 256⌉."""
        values = math.prod(shape)
        blocks = ceil_div(values, self.block_values)
        packed = Stored("weight", ceil_div(values, 2 * self.storage_bytes) * self.storage_bytes, is_payload=True)
        code = Stored("quant_map", 16 * 4)
        if not self.double_quant:
            return packed, Stored("absmax", 4 * blocks), code
        nested = 4 * ceil_div(blocks, self.nested_block_values)
        return (
            packed,
            Stored("absmax", blocks),
            code,
            Stored("nested_absmax", nested),
            Stored("nested_quant_map", 256 * 4),
            Stored("nested_offset", 4),
        )


@record
class Gptq:
    """GPTQ as AutoGPTQ and GPTQModel keep it (``PackedGroupedQuantLinear``): int32 words, 32 values in ``bits`` words.

    qweight (in/32·bits, out), qzeros (groups, out/32·bits), scales fp16 (groups, out), g_idx int32 (in). Both
    dimensions are padded up to a word's boundary where a library can hold such a shape at all. The zeros are stored
    whether or not the quantisation is symmetric, g_idx whether or not act-order was used.
    """

    bits: int
    group_size: int
    scale_bits: int = 16

    @property
    def dtype(self) -> str:
        """``int4``."""
        return f"int{self.bits}"

    def store(self, shape: tuple[int, ...]) -> tuple[Stored, ...]:
        """4 · words of qweight, qzeros and g_idx, 2 · scales."""
        matrices, rows, columns = matrix(shape)
        groups = _groups(columns, self.group_size)
        return (
            Stored("qweight", 4 * matrices * _words(columns, self.bits) * rows, is_payload=True),
            Stored("qzeros", 4 * matrices * groups * _words(rows, self.bits)),
            Stored("scales", matrices * ceil_div(groups * rows * self.scale_bits, 8)),
            Stored("g_idx", 4 * matrices * columns),
        )


@record
class Awq:
    """AWQ's GEMM layout (AutoAWQ ``modules/linear/gemm.py``).

    qweight (in, out/8), qzeros (in/g, out/8), scales fp16 (in/g, out).
    """

    bits: int
    group_size: int

    @property
    def dtype(self) -> str:
        """``int4``."""
        return f"int{self.bits}"

    def store(self, shape: tuple[int, ...]) -> tuple[Stored, ...]:
        """4 · packed words, 4 · packed zeros, 2 · scales."""
        matrices, rows, columns = matrix(shape)
        groups = _groups(columns, self.group_size)
        packed_rows = ceil_div(rows, 32 // self.bits)
        return (
            Stored("qweight", 4 * matrices * columns * packed_rows, is_payload=True),
            Stored("qzeros", 4 * matrices * groups * packed_rows),
            Stored("scales", 2 * matrices * groups * rows),
        )


@record
class PackedInt32:
    """Integers packed densely into int32 rows (compressed-tensors ``pack-quantized``, ``compressors/pack_quantized``).

    weight_packed (out, ⌈in · bits / 32⌉), weight_scale (out, groups), the packed weight_zero_point when asymmetric,
    weight_shape (two int64), and weight_g_idx int32 (in) where groups follow the activation order.
    """

    bits: int
    group_size: int
    symmetric: bool = True
    has_group_index: bool = False
    scale_bits: int = 16

    @property
    def dtype(self) -> str:
        """``int4``."""
        return f"int{self.bits}"

    def store(self, shape: tuple[int, ...]) -> tuple[Stored, ...]:
        """4 · packed words, 2 · scales, 16 B of shape."""
        matrices, rows, columns = matrix(shape)
        groups = _groups(columns, self.group_size)
        return _present(
            Stored("weight_packed", 4 * matrices * rows * _words(columns, self.bits), is_payload=True),
            Stored("weight_scale", matrices * ceil_div(rows * groups * self.scale_bits, 8)),
            Stored("weight_zero_point", 0 if self.symmetric else 4 * matrices * groups * _words(rows, self.bits)),
            Stored("weight_shape", 16 * matrices),
            Stored("weight_g_idx", 4 * matrices * columns if self.has_group_index else 0),
        )


@record
class Hqq:
    """Half-quadratic quantisation (hqq ``core/quantize.py``, ``core/bitpack.py``): packed values, a scale and a zero a group.

    The matrix is regrouped as (groups, group_size) and packed along its first dimension: bytes for 8, 4, 2 and 1 bits,
    ten values in an int32 for 3. Scales and zeros are in the compute dtype.
    """

    bits: int
    group_size: int | None
    compute_bits: int = 16

    @property
    def dtype(self) -> str:
        """``int4``."""
        return f"int{self.bits}"

    def store(self, shape: tuple[int, ...]) -> tuple[Stored, ...]:
        """⌈groups · bits / 8⌉ · group_size (3 bits: ⌈groups / 10⌉ · group_size · 4), and two values a group."""
        matrices, rows, columns = matrix(shape)
        width = self.group_size or columns
        groups = ceil_div(rows * columns, width)
        packed = 4 * ceil_div(groups, 10) if self.bits == 3 else ceil_div(groups * self.bits, 8)
        statistics = matrices * ceil_div(groups * self.compute_bits, 8)
        return (
            Stored("W_q", matrices * packed * width, is_payload=True),
            Stored("scale", statistics),
            Stored("zero", statistics),
        )


@record
class QuantoBits:
    """4 and 2 bits of optimum-quanto (``nn/qmodule.py``): groups of 128, or less where 128 does not divide the input.

    Scale and shift are kept in the weight's 16-bit dtype, and each module holds an input and an output scale.
    """

    bits: int

    @property
    def dtype(self) -> str:
        """``int4``."""
        return f"int{self.bits}"

    def store(self, shape: tuple[int, ...]) -> tuple[Stored, ...]:
        """out · in · bits / 8, two 16-bit values a group, two 16-bit scalars."""
        matrices, rows, columns = matrix(shape)
        group = next((size for size in (128, 96, 64, 32) if columns > 128 and columns % size == 0), columns)
        statistics = 2 * matrices * rows * (columns // group)
        return (
            Stored("weight", matrices * ceil_div(rows * columns * self.bits, 8), is_payload=True),
            Stored("scale", statistics),
            Stored("shift", statistics),
            Stored("input_output_scale", 4 * matrices),
        )


def _groups(columns: int, group_size: int) -> int:
    """Groups of a row; −1 is the whole row."""
    return 1 if group_size == -1 else ceil_div(columns, group_size)


def _words(values: int, bits: int) -> int:
    """int32 words for ``values``: 32 of them take ``bits`` words; shorter tails are padded to whole words."""
    return ceil_div(values * bits, 32)


def _present(*tensors: Stored) -> tuple[Stored, ...]:
    return tuple(tensor for tensor in tensors if tensor.size_bytes)
