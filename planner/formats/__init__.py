"""Weight formats: what each tensor of a model weighs under each way of storing it."""

from __future__ import annotations

from planner.formats.catalog import FORMATS, UnknownFormat, format_names, parse_format
from planner.formats.format import Format, TensorBytes, weight_bytes

__all__ = ["FORMATS", "Format", "TensorBytes", "UnknownFormat", "format_names", "parse_format", "weight_bytes"]
