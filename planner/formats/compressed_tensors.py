"""compressed-tensors: groups of modules, each with its own way of storing weights.

Source: compressed-tensors 0.20 ``quantization/quant_args.py``, ``quant_scheme.py``, ``lifecycle/initialize.py`` and the
compressors of each format. Scales have the weight's 16-bit dtype unless the format fixes another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.formats.format import HEAD, LINEARS_AND_EXPERTS, Format, Override
from planner.formats.readers import from_header_only, module_names, unquantized
from planner.formats.storage import WHOLE, PackedInt32, Plain, Scaled, Scheme
from planner.record import record

if TYPE_CHECKING:
    from planner.faults import Reader

STORED_FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
)
LINEAR_CLASSES = ("Linear", "LinearBase", "ParallelLinear")


@record
class _Arguments:
    """``QuantizationArgs`` of the weights, and whether the input has a static scale."""

    bits: int
    is_float: bool
    strategy: str
    group_size: int
    block: tuple[int, int]
    symmetric: bool
    group_index: bool
    input_scale_bytes: int


def compressed_tensors(reader: Reader) -> Format:
    """A ``quantization_config`` of compressed-tensors. Bad values are noted on ``reader``."""
    layout = reader.string("format", "dense").lower()
    groups = reader.child("config_groups") if reader.has("config_groups") else None
    if reader.child("sparsity_config").string("format", "dense") != "dense":
        return from_header_only("compressed-tensors", "sparse weights: their number is known to the file only")
    if groups is None or not groups.names():
        return unquantized()
    keeps = module_names(reader, "ignore") if reader.has("ignore") else ()
    overrides: list[Override] = []
    linears: Scheme | None = None
    for name in groups.names():
        group = groups.child(name)
        scheme = _scheme(group, group.string("format", layout).lower())
        if scheme is None:
            return from_header_only("compressed-tensors", f"format {layout} repacks the weights in its own way")
        targets = module_names(group, "targets") if group.has("targets") else ("Linear",)
        if any(target in LINEAR_CLASSES for target in targets):
            linears = scheme
        named = tuple(target for target in targets if target not in LINEAR_CLASSES)
        overrides += [Override(named, scheme)] if named else []
    return _format(linears, tuple(overrides), keeps)


def _format(linears: Scheme | None, overrides: tuple[Override, ...], keeps: tuple[str, ...]) -> Format:
    shown = linears or overrides[0].scheme or Plain("bf16")
    return Format(
        f"compressed-tensors {shown.dtype}",
        f"compressed-tensors, {shown.dtype}",
        shown,
        LINEARS_AND_EXPERTS | HEAD if linears else LINEARS_AND_EXPERTS,
        keeps=keeps,
        only=() if linears else tuple(pattern for override in overrides for pattern in override.patterns),
        overrides=(Override(keeps, None), *overrides) if keeps else overrides,
    )


def _scheme(group: Reader, layout: str) -> Scheme | None:
    arguments = _arguments(group)
    if layout == "dense":
        return Plain("bf16")
    if layout not in STORED_FORMATS:
        return None
    if layout == "pack-quantized":
        size = arguments.group_size if arguments.strategy == "group" else -1
        return PackedInt32(arguments.bits, size, arguments.symmetric, arguments.group_index)
    if arguments.is_float and arguments.bits == 4:
        return _four_bit_float(arguments)
    return _scaled(arguments, scale_bits=8 if layout == "mxfp8-quantized" else 16)


def _four_bit_float(arguments: _Arguments) -> Scheme:
    """NVFP4 (16 values a scale, and a global one) and MXFP4 (32)."""
    if arguments.strategy == "tensor_group":
        return Scaled("nvfp4", 4, (1, arguments.group_size), 8, tensor_bytes=4 + arguments.input_scale_bytes)
    return Scaled("mxfp4", 4, (1, arguments.group_size), 8, tensor_bytes=arguments.input_scale_bytes)


def _scaled(arguments: _Arguments, scale_bits: int) -> Scheme:
    blocks = {
        "tensor": (WHOLE, WHOLE),
        "channel": (1, WHOLE),
        "group": (1, arguments.group_size),
        "tensor_group": (1, arguments.group_size),
        "block": arguments.block,
    }
    dtype = "fp8" if arguments.is_float else f"int{arguments.bits}"
    zero_point_bits = 0 if arguments.symmetric else 8
    return Scaled(dtype, 8, blocks[arguments.strategy], scale_bits, zero_point_bits, arguments.input_scale_bytes)


def _arguments(group: Reader) -> _Arguments:
    weights = group.child("weights")
    size = weights.optional_integer("group_size", minimum=-1, maximum=2**24)
    strategy = weights.choice(
        "strategy",
        "tensor" if size is None else "channel" if size == -1 else "group",
        ("tensor", "channel", "group", "tensor_group", "block"),
    )
    return _Arguments(
        bits=weights.integer("num_bits", 8, minimum=1, maximum=8),
        is_float=weights.choice("type", "int", ("int", "float")) == "float",
        strategy=strategy,
        group_size=size if size and size > 0 else 128,
        block=_block(weights),
        symmetric=weights.boolean("symmetric", default=True),
        group_index=weights.raw("actorder") in ("group", True),
        input_scale_bytes=_input_scale_bytes(group, strategy),
    )


def _block(weights: Reader) -> tuple[int, int]:
    """``block_structure``: two numbers, or as older releases wrote it, ``"128x128"``."""
    value = weights.raw("block_structure")
    parts = value.split("x") if isinstance(value, str) else value
    if value is None:
        return 128, 128
    numbers = [int(part) for part in parts if str(part).isdecimal() and 0 < len(str(part)) < 10] if isinstance(parts, list) else []
    if len(numbers) != 2 or 0 in numbers:
        weights.fault("block_structure", "must be two whole numbers of at least 1")
        return 128, 128
    return numbers[0], numbers[1]


def _input_scale_bytes(group: Reader, strategy: str) -> int:
    """A scale of the input: fp32 beside NVFP4's, else 16-bit; none where it is computed as the input comes."""
    if not group.has("input_activations"):
        return 0
    inputs = group.child("input_activations")
    if inputs.raw("dynamic") is True:
        return 0
    return 4 if strategy == "tensor_group" else 2
