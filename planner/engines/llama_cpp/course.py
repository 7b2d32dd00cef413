"""A compute buffer over the cells of the cache: pieces on which it is a straight line.

Beside the cells all else of a graph being equal, the size of every tensor is a line in the number of 256-cell blocks, so the
allocator, which only adds and compares, makes buffers that are lines as well, as far as its comparisons come out alike. It is
played once for each such stretch, with lines in place of sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from planner.engines.llama_cpp.allocator import GIVE, Tape, played

ENDLESS_BLOCKS = 1 << 40


class Reach:
    """How far from where it was played every comparison comes out alike: ``low`` ≤ 0 ≤ ``high``, in blocks."""

    __slots__ = ("high", "low")

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high

    def not_negative(self, at: int, rise: int) -> bool:
        """Whether ``at`` ≥ 0; the reach ends where ``at + rise · blocks`` no longer says so."""
        if at >= 0:
            if rise < 0:
                self.high = min(self.high, at // -rise)
            elif rise > 0:
                self.low = max(self.low, -(at // rise))
            return True
        if rise > 0:
            self.high = min(self.high, (-at - 1) // rise)
        elif rise < 0:
            self.low = max(self.low, -((-at - 1) // -rise))
        return False

    def zero(self, at: int, rise: int) -> bool:
        """Whether ``at`` = 0; the reach ends where ``at + rise · blocks`` no longer says so."""
        if not rise:
            return not at
        if not at:
            self.low = self.high = 0
            return True
        blocks, rest = divmod(-at, rise)
        if not rest and blocks > 0:
            self.high = min(self.high, blocks - 1)
        elif not rest:
            self.low = max(self.low, blocks + 1)
        return False


class Line:
    """A whole number ``at + rise · blocks``; what a comparison decides shortens the reach."""

    __slots__ = ("at", "reach", "rise")

    def __init__(self, at: int, rise: int, reach: Reach) -> None:
        self.at, self.rise, self.reach = at, rise, reach

    def __repr__(self) -> str:
        return f"{self.at}{self.rise:+}m"

    def __add__(self, other: Line | int) -> Line:
        if isinstance(other, Line):
            return Line(self.at + other.at, self.rise + other.rise, self.reach)
        return Line(self.at + other, self.rise, self.reach)

    __radd__ = __add__

    def __neg__(self) -> Line:
        return Line(-self.at, -self.rise, self.reach)

    def __sub__(self, other: Line | int) -> Line:
        return self + -other

    def __rsub__(self, other: int) -> Line:
        return -self + other

    def __mul__(self, factor: int) -> Line:
        return Line(self.at * factor, self.rise * factor, self.reach)

    def __floordiv__(self, divisor: int) -> Line:
        """Rounded quotient: a block of cells is a multiple of every alignment."""
        assert self.rise % divisor == 0  # noqa: S101
        return Line(self.at // divisor, self.rise // divisor, self.reach)

    def __ge__(self, other: Line | int) -> bool:
        rest = self - other
        return self.reach.not_negative(rest.at, rest.rise)

    def __le__(self, other: Line | int) -> bool:
        rest = -self + other
        return self.reach.not_negative(rest.at, rest.rise)

    def __gt__(self, other: Line | int) -> bool:
        return not self <= other

    def __lt__(self, other: Line | int) -> bool:
        return not self >= other

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Line | int):
            return NotImplemented
        rest = self - other
        return self.reach.zero(rest.at, rest.rise)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return not self.reach.zero(self.at, self.rise)


@dataclass(frozen=True, slots=True)
class Piece:
    """From ``low`` to ``high`` blocks of cells: ``sizes`` of the buffers at ``at`` blocks, and their ``rises``."""

    low: int
    high: int
    at: int
    sizes: tuple[int, ...]
    rises: tuple[int, ...]

    def sizes_at(self, blocks: int) -> tuple[int, ...]:
        """Bytes of each buffer at ``blocks`` within the piece."""
        return tuple(size + rise * (blocks - self.at) for size, rise in zip(self.sizes, self.rises, strict=True))


Written = tuple[Tape, Sequence[int]]


class Course:
    """Buffers at any number of blocks. ``write`` writes the tape for a number of blocks and the order its pieces play in.

    ``bends``: numbers of blocks beyond which sizes follow other lines (a window is full). A first number is played as it is;
    when others follow, whole stretches are.
    """

    def __init__(self, write: Callable[[int], Written], alignments: Sequence[int], bends: Sequence[int]) -> None:
        self.write, self._alignments = write, alignments
        self._bends = [0, *sorted(set(bends)), ENDLESS_BLOCKS]
        self._first: Piece | None = None
        self._pieces: list[Piece] = []

    def at(self, blocks: int) -> tuple[int, ...]:
        """Bytes of each buffer at ``blocks`` blocks of cells."""
        if self._first is None:
            tape, order = self.write(blocks)
            sizes = played(tape, order, self._alignments)
            self._first = Piece(blocks, blocks, blocks, sizes, (0,) * len(sizes))
        if self._first.at == blocks:
            return self._first.sizes
        return self.piece(blocks).sizes_at(blocks)

    def piece(self, blocks: int) -> Piece:
        """The piece that ``blocks`` lies in."""
        for found in self._pieces:
            if found.low <= blocks <= found.high:
                return found
        self._pieces.append(self._played(blocks))
        return self._pieces[-1]

    def _played(self, blocks: int) -> Piece:
        low = max(bend for bend in self._bends if bend < blocks) + 1
        high = min(bend for bend in self._bends if bend >= blocks)
        tape, order = self.write(blocks)
        other, step = tape, 0
        if low < high:
            step = 1 if blocks < high else -1
            other, _ = self.write(blocks + step)
        if not step or _structure(tape) != _structure(other):
            sizes = played(tape, order, self._alignments)
            return Piece(blocks, blocks, blocks, sizes, (0,) * len(sizes))
        reach = Reach(low - blocks, high - blocks)
        lines = [Line(size, (beside - size) * step, reach) for size, beside in zip(tape.sizes, other.sizes, strict=True)]
        peaks = played(tape, order, self._alignments, lines)
        ends = [peak if isinstance(peak, Line) else Line(peak, 0, reach) for peak in peaks]
        return Piece(
            blocks + reach.low, blocks + reach.high, blocks, tuple(end.at for end in ends), tuple(end.rise for end in ends)
        )


def _structure(tape: Tape) -> list[Any]:
    """A tape without its sizes."""
    return [
        (piece.entry, piece.exit, [(slot, size == GIVE, device) for slot, size, device in piece.events]) for piece in tape.pieces
    ]
