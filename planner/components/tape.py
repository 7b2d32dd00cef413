"""Bytes live over time: what a block holds and frees, in the order its code does.

A block of a model is written down as the tensors it makes and drops, one line each. From that follow its peak, what it
leaves behind (for a forward: what autograd saves), and the tensors that make up the peak with their formulas. Blocks
are laid one after another on a :class:`Course`, so that a model of a hundred equal layers costs as much as one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TypeVar

from planner.record import record
from planner.symbolic.amount import Sparse, chosen, exceeds, is_doubtful, largest, on_top, plain

Thing = TypeVar("Thing")
BLOCK_BYTES = 512
"""The caching allocator rounds every request up to this (c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize)."""


def rounded(size_bytes: int) -> int:
    """Bytes of a tensor's block in the allocator."""
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


COUNTS = frozenset({"batch", "sequence", "tokens", "queries", "keys", "chunks", "padded_sequence", "padded_keys", "positions"})
"""Factors that the workload decides, the others being the model's."""
OPEN_AT_MOST = 24
"""Moments of which a trace leaves open which is the highest; of more it is decided, for the inputs of the trace."""


class Size:
    """A tensor's bytes as a product of named factors, rounded up to the allocator's block. The names are the formula."""

    __slots__ = ("bytes", "formula", "values")

    def __init__(self, **values: int) -> None:
        self.values: Mapping[str, int | float | str] = values
        self.bytes = rounded(prod(values.values()))
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

    def relabel(self, old: str, new: str) -> None:
        """What counts as one component counts as another."""
        for component, name, size, count in list(self.items()):
            if component == old:
                self.change(old, name, size, -count)
                self.change(new, name, size, count)

    def largest(self, components: Collection[str]) -> int:
        """Bytes of the largest tensor of some components."""
        sizes = [size for (component, _, size), count in self.counts.items() if count and component in components]
        found: int = largest(0, *sizes)
        return found

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


Changes = Sequence[tuple[str, Held, int]]
"""Tensors with +1 (made) or −1 (gone)."""


@record
class Span:
    """What a block does to memory, relative to its start.

    ``tops``: its highest moment, as bytes above the start and the tensors that make the difference; several where the
    inputs of a trace decide which is highest. ``end``: bytes above the start after it (negative for a backward), with the
    tensors of ``end_change``. ``live``: what stays. ``steps``: all that was made and dropped, in order.
    """

    tops: Sequence[tuple[int, Changes]]
    end: int
    end_change: Changes
    live: Mapping[str, Held]
    steps: Changes = ()

    @property
    def peak(self) -> int:
        """Bytes above the start at the highest moment."""
        return largest(*(top for top, _ in self.tops))  # type: ignore[no-any-return]


class Tape:
    """Records one block. ``saving``: autograd is on, so that tensors held with ``saved=True`` outlive :meth:`free`."""

    def __init__(self, *, saving: bool = False, start: Mapping[str, Held] | None = None) -> None:
        self.saving = saving
        self._start = dict(start or {})
        self._live = dict(self._start)
        self._steps: list[tuple[str, Held, int]] = []
        self._above = 0
        self._rising = False
        self._tops: list[tuple[int, int]] = [(0, 0)]

    def hold(self, name: str, size: Size, component: str = "workspace", *, saved: bool = False) -> None:
        """A tensor is made. With ``saved`` and autograd on it becomes an activation and stays."""
        kept = saved and self.saving
        held = Held(size, "activations" if kept else component, kept)
        self._live[name] = held
        self._steps.append((name, held, 1))
        self._above += size.bytes
        self._rising = True

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
        self._mark()
        tops = [(top, _net(self._steps[:at])) for top, at in self._tops]
        return Span(tops, self._above, _net(self._steps), dict(self._live), tuple(self._steps))

    def _mark(self) -> None:
        """Note the moment when it is higher than those before."""
        if self._rising:
            self._rising = False
            _offer(self._tops, (self._above, len(self._steps)))

    def _drop(self, name: str, held: Held) -> None:
        self._mark()
        del self._live[name]
        self._steps.append((name, held, -1))
        self._above -= held.size.bytes


class Blocks:
    """What a phase asks of an allocator that has no block of the right size: worked out when somebody asks.

    ``logits``: all tensors of logits outside the layers, made and dropped in order.
    """

    __slots__ = ("_spans", "_tops", "logits")

    def __init__(self) -> None:
        self.logits: list[tuple[str, Held, int]] = []
        self._tops: Sequence[int] = (0,)
        self._spans: Sequence[Span] = ()

    def take_stack(self, tops: Sequence[int], spans: Sequence[Span]) -> None:
        """A stack of layers has been laid; the phase has been as high as one of ``tops``."""
        self._tops, self._spans = tops, spans

    @property
    def stack_bytes(self) -> int:
        """The highest level until the end of the last stack."""
        return largest(*self._tops)  # type: ignore[no-any-return]

    @property
    def slack_bytes(self) -> int:
        """Of the layer with most: what its tensors take beyond its peak when none finds room in a block of another size."""
        slacks = [separate_bytes(span.steps) - span.peak for span in self._spans]
        return largest(*slacks) if slacks else 0


def separate_bytes(steps: Changes) -> int:
    """Bytes of the blocks that tensors take in turn when none finds room in a block of another kind."""
    live: dict[object, int] = {}
    most: dict[object, int] = {}
    sizes: dict[object, int] = {}
    for _, held, count in steps:
        kind = _kind(held.size)
        now = live[kind] = live.get(kind, 0) + count
        if now > most.get(kind, 0):
            most[kind] = now
            sizes.setdefault(kind, held.size.bytes)
    return sum(sizes[kind] * count for kind, count in most.items())


def _kind(size: Size) -> object:
    """What sizes have in common that grow alike, the last token of a sequence aside. Sizes that are equal by chance differ."""
    if size.formula:
        return size.formula, tuple(size.values)
    counts = ["tokens" if name in ("batch", "sequence") else name for name in size.values if name in COUNTS]
    return prod(value for name, value in size.values.items() if name not in COUNTS), *dict.fromkeys(counts)


@record
class Peak:
    """The highest moment of a phase: what was live, and which block was running."""

    level: Level
    where: str = ""


class OpenLevel(Level):
    """The highest of several levels, when the inputs of a trace decide which it is."""

    def __init__(self, levels: Sequence[Level]) -> None:
        super().__init__()
        self._levels = levels
        self._settle()

    def change(self, component: str, name: str, size: Size, count: int) -> None:
        """``count`` more tensors, whichever it is."""
        for level in self._levels:
            level.change(component, name, size, count)
        self._settle()

    def components(self) -> dict[str, int]:
        """Bytes by component."""
        parts = [level.components() for level in self._levels]
        names = dict.fromkeys(name for part in parts for name in part)
        found = {name: self._of([part.get(name, 0) for part in parts]) for name in names}
        return Sparse(found, {name for name in names if any(name not in part or is_doubtful(part, name) for part in parts)})

    def largest(self, components: Collection[str]) -> int:
        """Bytes of the largest tensor of some components."""
        return self._of([level.largest(components) for level in self._levels])

    def _settle(self) -> None:
        self.total = largest(*(level.total for level in self._levels))

    def _of(self, values: Sequence[int]) -> int:
        return chosen([level.total for level in self._levels], values)  # type: ignore[no-any-return]


def highest(*peaks: Peak) -> Peak:
    """The peak with the highest level."""
    tops: list[tuple[int, Peak]] = []
    for peak in peaks:
        _offer(tops, (peak.level.total, peak))
    return tops[0][1] if len(tops) == 1 else Peak(OpenLevel([peak.level for _, peak in tops]))


class Course:
    """Blocks laid one after another from a starting level, and the highest moment of each phase."""

    def __init__(self) -> None:
        self.level = Level()
        self.blocks = Blocks()
        self._tops: list[tuple[int, Peak]] = [(0, Peak(self.level))]

    @property
    def peak(self) -> Peak:
        """The highest moment of the phase."""
        return highest(*(peak for _, peak in self._tops))

    def begin_phase(self) -> None:
        """Forget the peak so far: a phase starts at the level that stands."""
        self.blocks = Blocks()
        self._tops = [(self.level.total, Peak(self.level.copy()))]

    def run(self, span: Span, times: int = 1, where: str = "") -> None:
        """Run a block ``times`` in a row; its highest moment is in the first or the last repeat, the level being linear."""
        self.blocks.logits += [step for step in span.steps if step[1].component == "logits"]
        grows = exceeds(span.end, 0)
        repeats = (0, times - 1) if grows is None else (times - 1,) if grows else (0,)
        for before in repeats:
            for top, change in span.tops:
                total = self.level.total + before * span.end + top
                if _reaches(self._tops, total):
                    level = self.level.copy()
                    _apply(level, span.end_change, before)
                    _apply(level, change, 1)
                    _offer(self._tops, (total, Peak(level, where)))
        _apply(self.level, span.end_change, times)

    def run_stack(self, blocks: Sequence[tuple[Span, Sequence[int]]], where: str = "", *, backwards: bool = False) -> None:
        """Run blocks of several kinds, each at its positions in a stack; ``backwards`` from the last position to the first.

        The highest moment is in some kind's first or last block, since what each adds is the same at every position.
        """
        for span, positions in blocks:
            for here in {positions[0], positions[-1]}:
                before = [sum(other > here if backwards else other < here for other in others) for _, others in blocks]
                ends = sum(block.end * times for (block, _), times in zip(blocks, before, strict=True))
                for top, change in span.tops:
                    total = self.level.total + ends + top
                    if _reaches(self._tops, total):
                        level = self.level.copy()
                        for (block, _), times in zip(blocks, before, strict=True):
                            _apply(level, block.end_change, times)
                        _apply(level, change, 1)
                        _offer(self._tops, (total, Peak(level, where)))
        for span, positions in blocks:
            _apply(self.level, span.end_change, len(positions))
        self.blocks.take_stack([top for top, _ in self._tops], [span for span, _ in blocks])

    def hold(self, component: str, name: str, size: Size, count: int = 1, where: str = "") -> None:
        """Raise (or, with a negative count, lower) the level by ``count`` tensors."""
        self.level.change(component, name, size, count)
        if _reaches(self._tops, self.level.total):
            _offer(self._tops, (self.level.total, Peak(self.level.copy(), where)))


def _reaches(tops: Sequence[tuple[int, Thing]], total: int) -> bool:
    """Whether ``total`` may be higher than all so far."""
    return not any(exceeds(total, top) is False for top, _ in tops)


def _offer(tops: list[tuple[int, Thing]], found: tuple[int, Thing]) -> None:
    """Keep what may be the highest: one of plain numbers, of amounts all that the inputs may make so."""
    higher = [exceeds(found[0], top) for top, _ in tops]
    if False in higher:
        return
    tops[:] = [*(top for top, is_lower in zip(tops, higher, strict=True) if not is_lower), found]
    if len(tops) > OPEN_AT_MOST:
        tops[:] = [tops[position] for position in on_top([total for total, _ in tops])]
    if len(tops) > OPEN_AT_MOST:
        highest_top = max(tops, key=lambda top: plain(top[0]))
        tops[:] = [top for top in tops if top is highest_top or top[0] > highest_top[0]]


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
