"""From a config to an :class:`Architecture`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from planner.architecture.config import Config, UnknownArchitecture
from planner.architecture.families import FAMILIES, defaults_of
from planner.architecture.layers import Architecture
from planner.faults import Fault, Faults, describe


def read_config(config: Mapping[str, object], *, model_class: str | None = None) -> Architecture:
    """Read a model's config (the object in ``config.json``) into its architecture.

    ``model_class``: the transformers class to read it for; by default the first of ``architectures``, else the type's
    usual one. Raises :class:`planner.faults.Faults` naming every field that is wrong, and :class:`UnknownArchitecture`
    when the model type is not known and the keys do not suffice.
    """
    if not isinstance(config, Mapping):
        raise Faults([Fault("", f"must be an object, got {describe(config)}")])
    model_type = config.get("model_type")
    read = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if read is None or not isinstance(model_type, str):
        raise UnknownArchitecture(f"model_type {describe(model_type)} is not known")
    defaults = defaults_of(model_type)
    wanted = model_class or _named_class(config) or defaults.model_class
    bare = wanted.endswith("Model") and not wanted.endswith("LMHeadModel")
    if wanted != defaults.model_class:
        defaults = replace(defaults, model_class=wanted)
    reading = Config(
        config, defaults, base="" if bare or not defaults.base else f"{defaults.base}.", head="" if bare else "lm_head"
    )
    found = read(reading)
    reading.reader.raise_faults()
    unread = tuple(f"{path} was not understood and could change sizes" for path in reading.unread())
    return replace(found, notes=(*found.notes, *reading.notes, *unread), sources=reading.sources)


def _named_class(config: Mapping[str, object]) -> str:
    named = config.get("architectures")
    first = named[0] if isinstance(named, list | tuple) and named else ""
    return first if isinstance(first, str) and len(first) <= 256 else ""
