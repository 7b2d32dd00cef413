"""Bytes as people read them: GiB is 2**30 and is what is shown."""

from __future__ import annotations

KIB = 2**10
MIB = 2**20
GIB = 2**30
Ladder = tuple[tuple[int, str, int], ...]
"""Unit, name and digits after the point, the largest first."""
BINARY: Ladder = ((GIB, "GiB", 2), (MIB, "MiB", 1), (KIB, "KiB", 1))


def format_bytes(size: float, ladder: Ladder = BINARY) -> str:
    """A size in the largest unit that it fills, three to four significant digits: ``14.96 GiB``, ``896.0 MiB``; NaN is ``N/A``."""
    if size != size:  # noqa: PLR0124  NaN is the one value unequal to itself
        return "N/A"
    sign, magnitude = ("−" if size < 0 else ""), abs(size)
    for unit, name, digits in ladder:
        if magnitude >= unit:
            return f"{sign}{magnitude / unit:,.{digits}f} {name}"
    return f"{sign}{magnitude:.0f} B"


def align(size: int, granule: int) -> int:
    """The least multiple of ``granule`` not below ``size``."""
    return -(-size // granule) * granule
