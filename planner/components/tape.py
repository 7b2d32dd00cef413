"""Bytes live over time: what a block holds and frees, in the order its code does.

A block of a model is written down as the tensors it makes and drops, one line each. From that follow its peak, what it
leaves behind (for a forward: what autograd saves), and the tensors that make up the peak with their formulas. Blocks
are laid one after another on a :class:`Course`, so that a model of a hundred equal layers costs as much as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from planner.record import record

BLOCK_BYTES = 512
"""The caching allocator rounds every request up to this (c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize)."""


class Size:
    """A tensor's bytes as a product of named factors, rounded up to the allocator's block. The names are the formula."""

    __slots__ = ("bytes", "formula", "values")

    def __init__(self, **values: int) -> None:
        self.values: Mapping[str, int | float | str] = values
        self.bytes = -(-prod(values.values()) // BLOCK_BYTES) * BLOCK_BYTES
        self.formula = ""

    @classmethod
    def stated(cls, size_bytes: int, formula: str, **values: int | float | str) -> Size:
        """Bytes that are no plain product, with the formula in words."""
        size = cls()
        size.bytes, size.formula, size.values = size_bytes, formula, values
        return size

    def text(self) -> str:
        """``batch · sequence · hidden_size · bytes``."""
        return self.formula or " · ".join(self.values)


@record
class Held:
    """One live tensor: its size, the component it counts as, and whether autograd keeps it."""

    size: Size
    component: str
    saved: bool = False


Key = tuple[str, str, int]
"""Component, tensor's name, bytes of one."""


@dataclass(slots=True)
class Level:
    """What is live: how many tensors of each key, their sizes, and the total."""

    counts: dict[Key, int] = field(default_factory=dict)
    sizes: dict[Key, Size] = field(default_factory=dict)
    total: int = 0

    def copy(self) -> Level:
        """A level that can be changed on its own (sizes are shared, they only ever grow)."""
        return Level(dict(self.counts), self.sizes, self.total)

    def fork(self) -> Level:
        """A level that shares nothing with this one."""
        return Level(dict(self.counts), dict(self.sizes), self.total)

    def change(self, component: str, name: str, size: Size, count: int) -> None:
        """``count`` more tensors (fewer, when negative)."""
        key = (component, name, size.bytes)
        self.sizes.setdefault(key, size)
        self.counts[key] = self.counts.get(key, 0) + count
        self.total += count * size.bytes

    def components(self) -> dict[str, int]:
        """Bytes by component."""
        totals: dict[str, int] = {}
        for (component, _, size_bytes), count in self.counts.items():
            if count:
                totals[component] = totals.get(component, 0) + count * size_bytes
        return totals

    def items(self) -> Iterator[tuple[str, str, Size, int]]:
        """Component, name, size and count of everything live."""
        for key, count in self.counts.items():
            if count:
                yield key[0], key[1], self.sizes[key], count


@record
class Span:
    """What a block does to memory, relative to its start.

    ``peak``/``end``: bytes above the start at the highest moment and after it (negative for a backward).
    ``peak_change``/``end_change``: the tensors that make the difference, with +1 or −1. ``live``: what stays.
    """

    peak: int
    end: int
    peak_change: Sequence[tuple[str, Held, int]]
    end_change: Sequence[tuple[str, Held, int]]
    live: Mapping[str, Held]


class Tape:
    """Records one block. ``saving``: autograd is on, so that tensors held with ``saved=True`` outlive :meth:`free`."""

    def __init__(self, *, saving: bool = False, start: Mapping[str, Held] | None = None) -> None:
        self.saving = saving
        self._start = dict(start or {})
        self._live = dict(self._start)
        self._steps: list[tuple[str, Held, int]] = []
        self._above = self._peak = self._peak_at = 0

    def hold(self, name: str, size: Size, component: str = "workspace", *, saved: bool = False) -> None:
        """A tensor is made. With ``saved`` and autograd on it becomes an activation and stays."""
        kept = saved and self.saving
        held = Held(size, "activations" if kept else component, kept)
        self._live[name] = held
        self._steps.append((name, held, 1))
        self._above += size.bytes
        if self._above > self._peak:
            self._peak, self._peak_at = self._above, len(self._steps)

    def keep(self, name: str) -> None:
        """Autograd saves a tensor that is live already: from now on it is the activation ``kept {name}``."""
        held = self._live.get(name)
        if held is not None and self.saving and not held.saved:
            self._drop(name, held)
            self.hold(f"kept {name}", held.size, saved=True)

    def free(self, *names: str) -> None:
        """The last reference of the code goes; what autograd saved stays alive, what is gone already is passed over."""
        for name in names:
            held = self._live.get(name)
            if held is not None and not held.saved:
                self._drop(name, held)

    def consume(self, *names: str) -> None:
        """A backward step has used what the forward saved."""
        for name in names:
            held = self._live.get(name)
            if held is not None:
                self._drop(name, held)

    def rename(self, old: str, new: str) -> None:
        """The tensor goes on under another name."""
        held = self._live[old]
        self._drop(old, held)
        self._live[new] = held
        self._steps.append((new, held, 1))
        self._above += held.size.bytes

    def relabel(self, name: str, component: str) -> None:
        """The tensor counts as another component from now on."""
        held = self._live.get(name)
        if held is not None:
            self._drop(name, held)
            self.hold(name, held.size, component)

    def span(self) -> Span:
        """The block as a whole."""
        return Span(
            self._peak,
            self._above,
            _net(self._steps[: self._peak_at]),
            _net(self._steps),
            dict(self._live),
        )

    def _drop(self, name: str, held: Held) -> None:
        del self._live[name]
        self._steps.append((name, held, -1))
        self._above -= held.size.bytes


@record
class Peak:
    """The highest moment of a phase: what was live, and which block was running."""

    level: Level
    where: str = ""


class Course:
    """Blocks laid one after another from a starting level, and the highest moment of each phase."""

    def __init__(self) -> None:
        self.level = Level()
        self.peak = Peak(self.level.copy())

    def begin_phase(self) -> None:
        """Forget the peak so far: a phase starts at the level that stands."""
        self.peak = Peak(self.level.copy())

    def run(self, span: Span, times: int = 1, where: str = "") -> None:
        """Run a block ``times`` in a row; its highest moment is in the first or the last repeat, the level being linear."""
        last = (times - 1) if span.end > 0 else 0
        if self.level.total + last * span.end + span.peak > self.peak.level.total:
            top = self.level.copy()
            _apply(top, span.end_change, last)
            _apply(top, span.peak_change, 1)
            self.peak = Peak(top, where)
        _apply(self.level, span.end_change, times)

    def run_stack(self, blocks: Sequence[tuple[Span, Sequence[int]]], where: str = "", *, backwards: bool = False) -> None:
        """Run blocks of several kinds, each at its positions in a stack; ``backwards`` from the last position to the first.

        The highest moment is in some kind's first or last block, since what each adds is the same at every position.
        """
        best: tuple[int, int, tuple[int, ...]] = (self.peak.level.total, -1, ())
        for index, (span, positions) in enumerate(blocks):
            for here in {positions[0], positions[-1]}:
                before = tuple(
                    sum(other > here if backwards else other < here for other in others) for _, others in blocks
                )  # fmt: skip
                reached = (
                    self.level.total + span.peak + sum(block.end * times for (block, _), times in zip(blocks, before, strict=True))
                )
                best = max(best, (reached, index, before), key=lambda found: found[0])
        if best[1] >= 0:
            top = self.level.copy()
            for (span, _), times in zip(blocks, best[2], strict=True):
                _apply(top, span.end_change, times)
            _apply(top, blocks[best[1]][0].peak_change, 1)
            self.peak = Peak(top, where)
        for span, positions in blocks:
            _apply(self.level, span.end_change, len(positions))

    def hold(self, component: str, name: str, size: Size, count: int = 1, where: str = "") -> None:
        """Raise (or, with a negative count, lower) the level by ``count`` tensors."""
        self.level.change(component, name, size, count)
        if self.level.total > self.peak.level.total:
            self.peak = Peak(self.level.copy(), where)


def _apply(level: Level, changes: Sequence[tuple[str, Held, int]], times: int) -> None:
    if times:
        for name, held, sign in changes:
            level.change(held.component, name, held.size, sign * times)


def _net(steps: Sequence[tuple[str, Held, int]]) -> list[tuple[str, Held, int]]:
    """The steps without the tensors that came and went."""
    found: dict[tuple[str, int], tuple[str, Held, int]] = {}
    for name, held, sign in steps:
        key = (name, id(held))
        if key in found:
            del found[key]
        else:
            found[key] = (name, held, sign)
    return list(found.values())
