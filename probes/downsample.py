"""Fewer points of a long series, with every peak and every valley kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

_LEAST_PER_PART = 16
"""Points of a part below which none is worth having."""


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


def extremes_of_parts(columns: Sequence[Sequence[int]], begins: Iterable[int], limit: int, always: Iterable[int] = ()) -> list[int]:
    """As :func:`extremes`, with the points shared out evenly among the parts that begin at ``begins``.

    So a part of few events beside a long one keeps its course: a load beside the decoding of hundreds of tokens. What a short part
    does not need, the longer ones have.
    """
    length, wanted = len(columns[0]), list(always)
    inner = sorted({begin for begin in begins if 0 < begin < length})
    if length <= limit or not inner or len(inner) > limit // _LEAST_PER_PART:
        return extremes(columns, limit, wanted)
    kept: list[int] = []
    left, parts = limit, sorted(pairwise([0, *inner, length]), key=lambda part: part[1] - part[0])
    for number, (start, end) in enumerate(parts):
        inside = [index - start for index in wanted if start <= index < end]
        found = extremes([column[start:end] for column in columns], left // (len(parts) - number), inside)
        kept += [start + index for index in found]
        left -= len(found)
    return sorted(kept)
