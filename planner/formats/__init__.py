"""Weight and cache formats: what each tensor of a model weighs under each way of storing it.

A name is loaded with its module when it is first asked for: most answers need plain formats only, and the tables of
GGUF's and of quantised formats take longer to load than an answer takes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    from planner.formats.gguf_file import GgufTensor, gguf_tensors
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

_MODULES = {
    "cache_formats": ("CACHE_FORMATS", "CacheFormat", "cache_format", "cache_value_bytes"),
    "catalog": ("FORMATS", "UnknownFormat", "format_names", "parse_format"),
    "checkpoint": ("BytesUnknown", "FormatBytes", "PlacedWeight", "checkpoint_bytes", "placed_weights", "resolve_format"),
    "format": ("Format", "TensorBytes", "weight_bytes"),
    "gguf_file": ("GgufTensor", "gguf_tensors"),
    "gguf_types": ("FILE_TYPES", "GGML_TYPES", "GGML_TYPES_BY_ID", "FileType", "GgmlType"),
    "header": ("FileHeader",),
    "native": ("native_format",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = found
    return found
