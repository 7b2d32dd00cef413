"""What differs between plans: inputs by path, figures by component. Nothing here knows of widgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planner.footprint import COMPONENTS, METERS, Footprint, Phase

_LEFT_OUT = frozenset({"version"})
_WHOLE = frozenset({"model", "config"})
"""Compared as one value, not key by key."""


@dataclass(frozen=True, slots=True)
class Input:
    """A field whose values differ, one for each plan; None where a plan has no such field."""

    path: str
    values: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """Bytes of one component or meter at each plan's peak; None where nothing was sized."""

    name: str
    sizes: tuple[int | None, ...]

    @property
    def differences(self) -> tuple[int | None, ...]:
        """Against the first plan."""
        first = self.sizes[0]
        return tuple(None if size is None or first is None else size - first for size in self.sizes)


def differing_inputs(footprints: Sequence[Footprint]) -> tuple[Input, ...]:
    """The fields in which the settled scenarios differ, in the order in which a scenario has them."""
    flat = [_flat(footprint.scenario) for footprint in footprints]
    paths = dict.fromkeys(path for one in flat for path in one)
    rows = (Input(path, tuple(one.get(path) for one in flat)) for path in paths if path not in _LEFT_OUT)
    return tuple(row for row in rows if any(value != row.values[0] for value in row.values))


def figures(footprints: Sequence[Footprint]) -> tuple[Figure, ...]:
    """Every component of any peak, then the meters."""
    peaks = [peak_of(footprint) for footprint in footprints]
    named = [name for name in COMPONENTS if any(peak and peak.components.get(name) for peak in peaks)]
    parts = (Figure(name, tuple(peak.components.get(name, 0) if peak else None for peak in peaks)) for name in named)
    meters = (Figure(name, tuple(peak.meter(name) if peak else None for peak in peaks)) for name in METERS)
    return (*parts, *meters)


def peak_of(footprint: Footprint) -> Phase | None:
    """The highest phase of the fullest GPU."""
    return footprint.fullest.peak if footprint.fullest else None


def _flat(document: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in document.items():
        if isinstance(value, Mapping) and name not in _WHOLE:
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = _plain(value)
    return found


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return value.get("path") or "custom architecture"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
