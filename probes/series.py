"""Columns of samples that stay small however long a run lasts, and never lose a peak."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

Value = float | int | None
POINTS = 20_000
"""The most rows kept: more than a screen has columns, even zoomed in tenfold."""


class PeakSeries:
    """Rows of (time, label, values by name). Beyond ``limit`` rows neighbours of one label are merged to their highest values."""

    def __init__(self, limit: int = POINTS) -> None:
        self._limit = limit
        self.t: list[float] = []
        self.labels: list[str] = []
        self.columns: dict[str, list[Value]] = {}

    def __len__(self) -> int:
        return len(self.t)

    def append(self, t: float, values: Mapping[str, Value], label: str = "") -> None:
        """Add a row; a name that is new, or left out, is None in the other rows."""
        for name in values.keys() - self.columns.keys():
            self.columns[name] = [None] * len(self.t)
        self.t.append(t)
        self.labels.append(label)
        for name, column in self.columns.items():
            column.append(values.get(name))
        if len(self.t) > self._limit:
            self._halve()

    def extend(
        self, t: NDArray[np.float64], values: Mapping[str, NDArray[np.float64]], labels: Sequence[str], label_of: NDArray[np.int64]
    ) -> None:
        """Add many rows at once, NaN for None; ``label_of`` indexes ``labels``. Beyond the limit they are merged first."""
        width = 1
        while len(t) > width * self._limit // 2:
            width *= 2
        starts = _stretches(label_of, width)
        columns = {name: np.fmax.reduceat(column, starts).tolist() for name, column in values.items() if len(t)}
        for row, start in enumerate(starts.tolist()):
            self.append(float(t[start]), {name: _value(column[row]) for name, column in columns.items()}, labels[label_of[start]])

    def peak(self, name: str, label: str | None = None) -> Value:
        """The highest value of a column, of the rows with ``label`` if given; None when there is none."""
        column = self.columns.get(name, [None] * len(self.t))
        return _highest(value for value, at in zip(column, self.labels, strict=True) if label in (None, at))

    def _halve(self) -> None:
        pairs: list[tuple[int, int]] = []
        row = 0
        while row < len(self.t):
            width = 2 if row + 1 < len(self.t) and self.labels[row] == self.labels[row + 1] else 1
            pairs.append((row, row + width))
            row += width
        self.columns = {name: [_highest(column[first:end]) for first, end in pairs] for name, column in self.columns.items()}
        self.t = [self.t[first] for first, _ in pairs]
        self.labels = [self.labels[first] for first, _ in pairs]


def _highest(values: Iterable[Value]) -> Value:
    return max((value for value in values if value is not None), default=None)


def _stretches(labels: NDArray[np.int64], width: int) -> NDArray[np.intp]:
    """Where stretches of ``width`` rows of one label begin; the last of a label may be shorter."""
    changes = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    return np.fromiter(chain.from_iterable(range(begin, end, width) for begin, end in pairwise(changes)), dtype=np.intp)


def _value(number: float) -> Value:
    """A column's number as a row has it: bytes are whole."""
    if number != number:  # noqa: PLR0124  NaN
        return None
    return int(number) if number == int(number) else number
