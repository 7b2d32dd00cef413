"""Samples over time in buffers that a plot can show without copying."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Ring:
    """The last ``capacity`` rows of ``1 + columns`` numbers (time first), always one contiguous slice.

    The buffer is twice as long as what it keeps; when it is full the newer half moves to the front, so that adding is
    constant time on average and a view needs no copy.
    """

    def __init__(self, columns: int, capacity: int) -> None:
        self._capacity = capacity
        self._rows = np.full((1 + columns, 2 * capacity), np.nan)
        self._end = self._moved = 0

    def add(self, time_s: float, values: tuple[float, ...]) -> None:
        """One row; NaN for a missing reading."""
        if self._end == self._rows.shape[1]:
            self._rows[:, : self._capacity] = self._rows[:, self._capacity :]
            self._end = self._capacity
            self._moved += self._capacity
        self._rows[0, self._end] = time_s
        self._rows[1:, self._end] = values
        self._end += 1

    def clear(self) -> None:
        """Forget everything."""
        self._end = self._moved = 0

    def __len__(self) -> int:
        return min(self._end, self._capacity)

    @property
    def first(self) -> int:
        """How many rows came before the oldest that is kept."""
        return self._moved + self._begin

    @property
    def time_s(self) -> Floats:
        """The times, oldest first."""
        return self._rows[0, self._begin : self._end]

    def column(self, number: int) -> Floats:
        """The values of a column, as old as :attr:`time_s`."""
        return self._rows[1 + number, self._begin : self._end]

    @property
    def _begin(self) -> int:
        return max(0, self._end - self._capacity)


class Thinner:
    """Of a long series the lowest and the highest value of each of equal stretches, in order, and the rest at both ends.

    A series that grows at its end and is forgotten at its beginning is thinned frame after frame: what was found of stretches
    that are complete is kept.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Another series comes."""
        self._size = self._next = 0
        self._places = np.array([], dtype=np.intp)

    def thinned(self, time_s: Floats, values: Floats, most: int, first: int = 0) -> tuple[Floats, Floats]:
        """At most about ``most`` points: two for each pixel draw the same as all. ``first``: the number of the first value.

        A stretch without any reading stays a gap (NaN).
        """
        size = -(-2 * len(values) // most)
        if size <= 2:
            return time_s, values
        begin, end = -(-first // size) * size, (first + len(values)) // size * size
        if size != self._size or not begin <= self._next <= end:
            self._size, self._next, self._places = size, begin, np.array([], dtype=np.intp)
        if end > self._next:
            found = _extremes(values[self._next - first : end - first], size) + self._next
            self._places, self._next = np.concatenate((self._places, found)), end
        self._places = self._places[np.searchsorted(self._places, begin) :]
        kept = np.concatenate((np.arange(begin - first), self._places - first, np.arange(end - first, len(values))))
        return time_s[kept], values[kept]


def _extremes(values: Floats, size: int) -> NDArray[np.intp]:
    """Where each stretch of ``size`` has its lowest and its highest value, in order."""
    rows = values.reshape(-1, size)
    missing = np.isnan(rows)
    low = np.where(missing, np.inf, rows).argmin(axis=1)
    high = np.where(missing, -np.inf, rows).argmax(axis=1)
    places = np.sort(np.stack([low, high], axis=1), axis=1) + size * np.arange(len(rows))[:, None]
    return places.ravel()
