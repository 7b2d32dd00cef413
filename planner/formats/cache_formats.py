"""What one cached key or value takes in each format of a KV cache."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from planner.faults import nearest
from planner.formats.catalog import UnknownFormat
from planner.formats.gguf_types import GGML_TYPES
from planner.record import record

if TYPE_CHECKING:
    from collections.abc import Mapping


@record
class CacheFormat:
    """``block_values`` values, with the scales they share, take ``block_bytes``."""

    name: str
    block_values: int
    block_bytes: int

    def row_bytes(self, values: int) -> int:
        """Bytes of one cached row of ``values``, its last block padded."""
        return -(-values // self.block_values) * self.block_bytes


_PLAIN = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "fp8_e5m2": 1}
_QUANTIZED_CACHE = {f"int{bits}": CacheFormat(f"int{bits}", 64, 64 * bits // 8 + 4) for bits in (8, 4, 2)}
_GGUF_CACHE = ("f32", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
_ALIASES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "fp8_e4m3": "fp8", "fp8_e4m3fn": "fp8"}

CACHE_FORMATS: Mapping[str, CacheFormat] = MappingProxyType(
    {
        **{name: CacheFormat(name, 1, size) for name, size in _PLAIN.items()},
        **_QUANTIZED_CACHE,
        "nvfp4": CacheFormat("nvfp4", 16, 9),
        **{
            name: CacheFormat(name, GGML_TYPES[name.upper()].block_values, GGML_TYPES[name.upper()].block_bytes)
            for name in _GGUF_CACHE
        },
    }
)
"""Cache formats by name. ``int8``, ``int4``, ``int2``: transformers' QuantizedCache, groups of 64 with a 16-bit scale and
shift (``cache_utils.py``); ``nvfp4``: an fp8 scale for 16 values; ``q8_0`` and its like: llama.cpp's types."""


def cache_format(name: str) -> CacheFormat:
    """The cache format called ``name``. Raises :class:`UnknownFormat` with the nearest name as a suggestion."""
    found = CACHE_FORMATS.get(_ALIASES.get(name, name))
    if found is None:
        raise UnknownFormat(f"unknown cache format {name[:80]!r}{nearest(name, CACHE_FORMATS)}")
    return found


def cache_value_bytes(name: str) -> tuple[int, int]:
    """(values, bytes) of a block in the format called ``name``: (1, 2) for bf16, (32, 34) for q8_0."""
    found = cache_format(name)
    return found.block_values, found.block_bytes
