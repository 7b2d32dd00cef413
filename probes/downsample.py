"""Fewer points of a long series, with every peak and every valley kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np


def extremes(columns: Sequence[Sequence[int]], limit: int, always: Iterable[int] = ()) -> list[int]:
    """Indices, in order, at which columns of equal length are worth drawing: at most ``limit``.

    The series is cut into equal stretches, and of each the places of every column's lowest and highest value are kept.
    ``always`` are kept whatever they hold, unless they alone are more than a quarter of ``limit``; so is the last.
    """
    length = len(columns[0])
    if length <= limit:
        return list(range(length))
    wanted = {index for index in always if 0 <= index < length}
    kept = {length - 1} | (wanted if len(wanted) <= limit // 4 else set())
    stretches = max(1, (limit - len(kept)) // (2 * len(columns)))
    edges = np.linspace(0, length, stretches + 1).astype(np.int64).tolist()
    for column in columns:
        values = np.array(column)
        for start, end in pairwise(edges):
            part = values[start:end]
            kept |= {start + int(part.argmin()), start + int(part.argmax())}
    return sorted(kept)
