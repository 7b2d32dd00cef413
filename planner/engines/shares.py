"""Shares of a size in whole numbers."""

from __future__ import annotations

from fractions import Fraction
from functools import cache


@cache
def parts_of(fraction: float) -> tuple[int, int]:
    """A fraction as it is written: 0.92 is (23, 25)."""
    return Fraction(str(fraction)).as_integer_ratio()


def share_of(size_bytes: int, fraction: float) -> int:
    """⌊size · fraction⌋ in whole numbers, the fraction as it is written: 0.92 is 92 of 100 parts.

    The engines multiply floats, which differs by a byte at most.
    """
    parts, whole = parts_of(fraction)
    return size_bytes * parts // whole
