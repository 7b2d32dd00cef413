"""The table of families: model type → how its config is read."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from planner.architecture.config import Config, Defaults
from planner.architecture.families.defaults import DEFAULTS
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
    return Defaults(*DEFAULTS[model_type]) if model_type in DEFAULTS else Defaults()
