"""The table of families: model type → how its config is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from planner.architecture.config import Config
from planner.architecture.layers import Architecture

ReadFamily = Callable[[Config], Architecture]


@dataclass(frozen=True, slots=True)
class Family:
    """A model type: its default class, its configuration class's defaults, and the function that reads it."""

    model_type: str
    model_class: str
    defaults: Mapping[str, object]
    read: ReadFamily


FAMILIES: dict[str, Family] = {}


def family(model_type: str, model_class: str, /, **defaults: object) -> Callable[[ReadFamily], ReadFamily]:
    """Register the decorated function as the reader of ``model_type``.

    ``defaults`` are those of the framework's configuration class (transformers 5.23), for keys a config omits.
    """

    def register(read: ReadFamily) -> ReadFamily:
        FAMILIES[model_type] = Family(model_type, model_class, defaults, read)
        return read

    return register
