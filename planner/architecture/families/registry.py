"""The table of families: model type → how its config is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache

from planner.architecture.config import Config, Defaults
from planner.architecture.families.defaults import DEFAULTS, PARTS
from planner.architecture.layers import Architecture

ReadFamily = Callable[[Config], Architecture]

FAMILIES: dict[str, ReadFamily] = {}
SUB_CONFIGS: set[str] = set()
"""Model types that occur only inside another config: text parts, towers."""


def family(*model_types: str) -> Callable[[ReadFamily], ReadFamily]:
    """Register the decorated function as the reader of ``model_types``."""

    def register(read: ReadFamily) -> ReadFamily:
        FAMILIES.update(dict.fromkeys(model_types, read))
        return read

    return register


@cache
def defaults_of(model_type: str) -> Defaults:
    """Defaults of a model type's configuration class; empty for a type that is not in the table."""
    if model_type not in DEFAULTS:
        return Defaults()
    model_class, base, aliases, values = json.loads(DEFAULTS[model_type])
    return Defaults(model_class, base, aliases, values)


@cache
def parts_of(model_type: str) -> Mapping[str, tuple[str, bool, Mapping[str, object]]]:
    """Parts of a composite type: key → usual type, whether the part's own type is followed, defaults when absent."""
    return {key: (row[0], row[1], row[2]) for key, row in json.loads(PARTS.get(model_type, "{}")).items()}


@cache
def type_of_class(model_class: str) -> str | None:
    """The model type whose usual class this is, among those that are read."""
    return next((name for name in FAMILIES if defaults_of(name).model_class == model_class), None)
