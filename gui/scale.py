"""Round tick marks for an axis of bytes."""

from __future__ import annotations

import math

from gui.units import units

_WANTED_TICKS = 8
_PLAIN = 100_000
"""From here on ``g`` would write powers of ten."""


def ticks(limit_bytes: float, wanted: int = _WANTED_TICKS) -> list[tuple[float, str]]:
    """Positions from 0 to ``limit_bytes`` at 1, 2, 4 or 5 times a power of ten of one unit, with their labels."""
    if limit_bytes <= 0:
        return [(0.0, "0")]
    ladder = [(size, name) for size, name, _ in units().ladder]
    unit, name = next((rung for rung in ladder if limit_bytes >= rung[0]), ladder[-1])
    step = _round_step(limit_bytes / unit / wanted)
    count = int(limit_bytes / unit / step + 1e-9)
    labels = [f"{index * step:,g}" if index * step < _PLAIN else f"{index * step:,.0f}" for index in range(count + 1)]
    labels[-1] += f" {name}"
    return [(index * step * unit, label) for index, label in enumerate(labels)]


def round_up(size_bytes: float) -> float:
    """The end of an axis for ``size_bytes``: a twentieth of it at most beyond, and the same for most sizes near it."""
    power = 2.0 ** int(math.log2(max(size_bytes, 1.0)))
    return math.ceil(size_bytes / power * 20) / 20 * power


def _round_step(raw: float) -> float:
    power = 1.0
    while power * 10 <= raw:
        power *= 10
    while power > raw:
        power /= 10
    return next(power * factor for factor in (1, 2, 4, 5, 10) if power * factor >= raw * 0.999)
