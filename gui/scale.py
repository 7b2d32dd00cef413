"""Round tick marks for an axis of bytes."""

from __future__ import annotations

import math

from gui.units import units

_WANTED_TICKS = 8
_PLAIN = 100_000
"""From here on ``g`` would write powers of ten."""


def ticks(limit_bytes: float, wanted: int = _WANTED_TICKS, begin_bytes: float = 0.0) -> list[tuple[float, str]]:
    """Positions from ``begin_bytes`` to ``limit_bytes`` at 1, 2, 4 or 5 times a power of ten of one unit, with their labels."""
    if limit_bytes <= 0:
        return [(0.0, "0")]
    ladder = [(size, name) for size, name, _ in units().ladder]
    unit, name = next((rung for rung in ladder if limit_bytes >= rung[0]), ladder[-1])
    step = _round_step((limit_bytes - begin_bytes) / unit / wanted)
    places = range(math.ceil(begin_bytes / unit / step - 1e-9), int(limit_bytes / unit / step + 1e-9) + 1)
    labels = [f"{place * step:,.9g}" if place * step < _PLAIN else f"{place * step:,.0f}" for place in places]
    labels[-1:] = [f"{label} {name}" for label in labels[-1:]]
    return [(place * step * unit, label) for place, label in zip(places, labels, strict=True)]


def round_up(size_bytes: float) -> float:
    """The end of an axis for ``size_bytes``: a twentieth of it at most beyond, and the same for most sizes near it."""
    power = 2.0 ** int(math.log2(max(size_bytes, 1.0)))
    return math.ceil(size_bytes / power * 20) / 20 * power


def round_up_span(seconds: float) -> float:
    """The length of an axis of time that grows: it stays the same for a while, so that the axis need not be laid out each time."""
    step = 2.0 ** (math.floor(math.log2(max(seconds, 1e-3))) - 5)
    return math.ceil(seconds / step) * step


def _round_step(raw: float) -> float:
    power = 1.0
    while power * 10 <= raw:
        power *= 10
    while power > raw:
        power /= 10
    return next(power * factor for factor in (1, 2, 4, 5, 10) if power * factor >= raw * 0.999)
