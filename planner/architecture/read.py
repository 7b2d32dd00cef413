"""From a config to an :class:`Architecture`."""

from __future__ import annotations

from collections.abc import Mapping

from planner.architecture.config import Config, UnknownArchitecture
from planner.architecture.families import FAMILIES
from planner.architecture.layers import Architecture
from planner.faults import Fault, Faults, describe


def read_config(config: Mapping[str, object]) -> Architecture:
    """Read a model's config (the object in ``config.json``) into its architecture.

    Raises :class:`planner.faults.Faults` naming every field that is wrong, and :class:`UnknownArchitecture` when
    the model type is not known and the keys do not suffice.
    """
    if not isinstance(config, Mapping):
        raise Faults([Fault("", f"must be an object, got {describe(config)}")])
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise UnknownArchitecture(f"model_type {describe(model_type)} is not known")
    reading = Config(config, family.defaults)
    architecture = family.read(reading)
    reading.reader.raise_faults()
    return architecture
