"""Types of options that refuse nonsense where they are read, with the option's name."""

from __future__ import annotations

import argparse
import math


def whole(text: str) -> int:
    """A whole number from 1."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
    if not 1 <= number < 2**63:
        raise argparse.ArgumentTypeError(f"must be at least 1{' and less than 2^63' if number > 0 else ''}, got {text}")
    return number


def positive(text: str) -> float:
    """A finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None
    if not (number > 0 and math.isfinite(number)):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return number
