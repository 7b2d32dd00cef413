"""Weight and cache formats: what each tensor of a model weighs under each way of storing it."""

from __future__ import annotations

from planner.formats.cache_formats import CACHE_FORMATS, CacheFormat, cache_format, cache_value_bytes
from planner.formats.catalog import FORMATS, UnknownFormat, format_names, parse_format
from planner.formats.checkpoint import (
    BytesUnknown,
    FormatBytes,
    PlacedWeight,
    checkpoint_bytes,
    placed_weights,
    resolve_format,
)
from planner.formats.format import Format, TensorBytes, weight_bytes
from planner.formats.gguf_tensors import GgufTensor, gguf_tensors
from planner.formats.gguf_types import FILE_TYPES, GGML_TYPES, GGML_TYPES_BY_ID, FileType, GgmlType
from planner.formats.header import FileHeader
from planner.formats.native import native_format

__all__ = [
    "CACHE_FORMATS",
    "FILE_TYPES",
    "FORMATS",
    "GGML_TYPES",
    "GGML_TYPES_BY_ID",
    "BytesUnknown",
    "CacheFormat",
    "FileHeader",
    "FileType",
    "Format",
    "FormatBytes",
    "GgmlType",
    "GgufTensor",
    "PlacedWeight",
    "TensorBytes",
    "UnknownFormat",
    "cache_format",
    "cache_value_bytes",
    "checkpoint_bytes",
    "format_names",
    "gguf_tensors",
    "native_format",
    "parse_format",
    "placed_weights",
    "resolve_format",
    "weight_bytes",
]
