"""Decode steps that repeat: a few are traced, proved to repeat, and the rest is written down from them.

A greedy decode runs the same operators every step, on states that grow by one token. So the sizes of step k are
affine in k as long as no window fills up. Three steps are traced; if the last two differ by constants only, the states are
set to what they will be just before the end of the regime (the last step, or the filling of a window), the events between are
written from the pattern, and the next traced step has to equal the pattern's forecast; the result says so where it does not.

By the same token the allocated bytes at an event are affine in k, so the highest is at an end, which is traced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .attribution import tensors_of
from .trace import Trace
from .tracker import StorageTracker

TRACED_STEPS = 3
MAX_EVENTS = 2_000_000
"""Beyond this many written events the steps between are left out, and the result says so."""


@dataclass(frozen=True)
class Step:
    """One step's events with storages named by their age in steps and their place among that step's births."""

    shape: tuple[tuple[Any, ...], ...]
    sizes: tuple[int, ...]


Spec = tuple[int, ...]
"""A count, or a tensor's storage bytes, offset, shape and strides: what may grow."""


@dataclass(frozen=True)
class Traced:
    """A traced step and the states after it."""

    step: Step
    specs: tuple[Spec, ...]


class Recorder:
    """A sink between the tracker and the trace that also keeps each step's events."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._step = 0
        self._births: dict[int, tuple[int, int]] = {}
        self._shape: list[tuple[Any, ...]] = []
        self._sizes: list[int] = []

    def begin_step(self) -> None:
        """A decode step begins."""
        self._step += 1
        self._shape, self._sizes = [], []

    def end_step(self) -> Step:
        """The step's events."""
        return Step(tuple(self._shape), tuple(self._sizes))

    def births(self) -> dict[int, tuple[int, int]]:
        """(age, place) of storages by ident, as the next step will name them."""
        return {ident: (self._step + 1 - step, place) for ident, (step, place) in self._births.items()}

    def rename(self, new_idents: dict[int, int]) -> None:
        """Storages keep their places under new idents."""
        self._births = {new_idents.get(ident, ident): birth for ident, birth in self._births.items()}

    def alloc(self, ident: int, nbytes: int, component: int, op: Any) -> None:
        """A storage was born."""
        module, operator = self._trace.alloc(ident, nbytes, component, op)
        self._births[ident] = (self._step, len(self._sizes))
        self._shape.append(("a", component, module, operator))
        self._sizes.append(nbytes)

    def free(self, ident: int) -> None:
        """It died."""
        self._trace.free(ident)
        self._shape.append(("f", *self._name(ident, forget=True)))

    def relabel(self, ident: int, component: int) -> None:
        """It is known to be of another component."""
        self._trace.relabel(ident, component)
        self._shape.append(("c", *self._name(ident), component))

    def _name(self, ident: int, forget: bool = False) -> tuple[int, int]:
        step, place = self._births.get(ident, (-1, ident))
        if forget:
            self._births.pop(ident, None)
        return (self._step - step, place) if step >= 0 else (-1, place)


@dataclass
class Slot:
    """One piece of state between steps: a tensor or a count, and where it is kept."""

    get: Callable[[], Any]
    set: Callable[[Any], None]


def spec_of(value: Any) -> Spec:
    """The value's :data:`Spec`."""
    if isinstance(value, int):
        return (value,)
    return (value.untyped_storage().nbytes(), value.storage_offset(), *value.shape, *value.stride())


class Unroller:
    """Runs decode steps, tracing as few as it can prove enough."""

    def __init__(self, tracker: StorageTracker, recorder: Recorder, trace: Trace, slots: Callable[[], list[Slot]]) -> None:
        self._tracker = tracker
        self._recorder = recorder
        self._trace = trace
        self._slots = slots
        self._written_events = 0
        self.left_out_steps = 0
        self.missed_forecasts = 0

    def run(self, step: Callable[[], None], steps: int, breaks: list[int]) -> None:
        """Run ``steps`` steps; ``breaks`` are step numbers at which states stop growing."""
        done = 0
        recent: list[Traced] = []
        while done < steps:
            recent.append(self._traced(step))
            done += 1
            if any(at - 1 <= done <= at + 1 for at in breaks):
                recent.clear()
            ahead = min([steps, *(at - 1 for at in breaks if at - 1 > done)]) - done - 1
            pattern = _pattern(recent[-TRACED_STEPS:])
            if ahead < 1 or pattern is None:
                continue
            last = recent[-1]
            self._skip(last, pattern, ahead)
            recent = [self._traced(step)]
            self.missed_forecasts += recent[0].step != _forecast(last, pattern, ahead + 1)
            done += ahead + 1

    def notes(self) -> list[str]:
        """What the result has to say about steps that were not traced."""
        notes = []
        if self.left_out_steps:
            notes.append(f"{self.left_out_steps} decode steps between traced ones are not in the storage events")
        if self.missed_forecasts:
            notes.append("decode steps written from a pattern were not confirmed by the step after them")
        return notes

    def _traced(self, step: Callable[[], None]) -> Traced:
        self._recorder.begin_step()
        step()
        return Traced(self._recorder.end_step(), tuple(spec_of(slot.get()) for slot in self._slots()))

    def _skip(self, last: Traced, pattern: Pattern, count: int) -> None:
        """Write ``count`` steps and leave the states as they are after them."""
        step = last.step
        names = self._recorder.births()
        ident_of = {name: ident for ident, name in names.items()}
        if self._written_events + count * len(step.shape) <= MAX_EVENTS:
            self._written_events += count * len(step.shape)
            ident_of = self._write(step, pattern, count, ident_of)
        else:
            self.left_out_steps += count
        self._grow(last.specs, pattern, count)
        renamed = {ident: ident_of[name] for ident, name in names.items() if name in ident_of}
        self._tracker.rename(renamed)
        self._recorder.rename(renamed)

    def _write(self, step: Step, pattern: Pattern, count: int, ident_of: dict[tuple[int, int], int]) -> dict[tuple[int, int], int]:
        for number in range(1, count + 1):
            place = 0
            born: dict[tuple[int, int], int] = {}
            for entry in step.shape:
                if entry[0] == "a":
                    ident = born[0, place] = self._tracker.take_ident()
                    nbytes = step.sizes[place] + number * pattern.sizes[place]
                    self._trace.write(["a", ident, nbytes, self._trace.component(entry[1]), entry[2], entry[3]])
                    place += 1
                    continue
                name = (entry[1], entry[2])
                ident = born[name] if entry[1] == 0 else ident_of[name]
                if entry[0] == "f":
                    self._trace.write(["f", ident])
                    (born if entry[1] == 0 else ident_of).pop(name)
                else:
                    self._trace.write(["c", ident, self._trace.component(entry[3])])
            ident_of = {(age + 1, at): ident for (age, at), ident in (ident_of | born).items()}
        return ident_of

    def _grow(self, specs: tuple[Spec, ...], pattern: Pattern, count: int) -> None:
        made: dict[int, torch.Tensor] = {}
        replaced = []
        with self._tracker.paused():
            for slot, spec, slope in zip(self._slots(), specs, pattern.specs, strict=True):
                if not any(slope):
                    continue
                value = slot.get()
                # Kept until the end, so that no new storage takes the address of an old one.
                replaced.append(value)
                grown = tuple(old + count * by for old, by in zip(spec, slope, strict=True))
                slot.set(grown[0] if isinstance(value, int) else self._grown(value, grown, made))

    def _grown(self, tensor: torch.Tensor, spec: Spec, made: dict[int, torch.Tensor]) -> torch.Tensor:
        nbytes, offset, *rest = spec
        dims = len(rest) // 2
        key = tensor.untyped_storage()._cdata
        if key not in made:
            made[key] = torch.empty(nbytes // tensor.element_size(), dtype=tensor.dtype, device="cpu")
            self._tracker.move(key, made[key])
        return torch.as_strided(made[key], rest[:dims], rest[dims:], offset)


@dataclass(frozen=True)
class Pattern:
    """By how much a step's sizes, and the states, grow each step."""

    sizes: tuple[int, ...]
    specs: tuple[Spec, ...]


def _pattern(recent: list[Traced]) -> Pattern | None:
    if len(recent) < TRACED_STEPS:
        return None
    one, two, three = recent
    if two.step.shape != three.step.shape or not [*map(len, one.specs)] == [*map(len, two.specs)] == [*map(len, three.specs)]:
        return None
    slopes = tuple(map(_difference, three.specs, two.specs))
    if slopes != tuple(map(_difference, two.specs, one.specs)):
        return None
    return Pattern(_difference(three.step.sizes, two.step.sizes), slopes)


def _forecast(last: Traced, pattern: Pattern, ahead: int) -> Step:
    sizes = tuple(size + ahead * by for size, by in zip(last.step.sizes, pattern.sizes, strict=True))
    return Step(last.step.shape, sizes)


def _difference(new: Spec, old: Spec) -> Spec:
    return tuple(a - b for a, b in zip(new, old, strict=True))


def window_breaks(cache: Any, prompt_tokens: int) -> list[int]:
    """Steps at which a sliding window fills up and its cache stops growing."""
    windows = {getattr(layer, "sliding_window", None) for layer in _layers(cache)}
    return sorted(window - prompt_tokens for window in windows if isinstance(window, int) and window > prompt_tokens)


def slots_of(cache: Any, generation: Any) -> list[Slot]:
    """Every tensor and count that a cache's layers and the generation keep between steps."""
    holders = [generation, cache, *_layers(cache)]
    return [slot for holder in holders for slot in _slots_of_holder(holder)]


def _layers(cache: Any) -> Iterator[Any]:
    for name in ("self_attention_cache", "cross_attention_cache"):
        if hasattr(cache, name):
            yield from _layers(getattr(cache, name))
    yield from getattr(cache, "layers", [])


def _slots_of_holder(holder: Any) -> Iterator[Slot]:
    for name, value in list(vars(holder).items()):
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and not isinstance(value, bool)):
            yield Slot(_getter(vars(holder), name), _setter(vars(holder), name))
        elif isinstance(value, (list, dict)) and next(tensors_of([value]), None) is not None:
            keys = range(len(value)) if isinstance(value, list) else list(value)
            yield from (Slot(_getter(value, key), _setter(value, key)) for key in keys if isinstance(value[key], torch.Tensor))
        elif isinstance(value, tuple):
            places = [place for place, part in enumerate(value) if isinstance(part, torch.Tensor)]
            yield from (Slot(*_of_tuple(vars(holder), name, place)) for place in places)


def _of_tuple(container: Any, name: str, place: int) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    """A getter and a setter; tuples are replaced whole."""

    def set_value(value: Any) -> None:
        whole = container[name]
        container[name] = (*whole[:place], value, *whole[place + 1 :])

    return lambda: container[name][place], set_value


def _getter(container: Any, key: Any) -> Callable[[], Any]:
    return lambda: container[key]


def _setter(container: Any, key: Any) -> Callable[[Any], None]:
    def set_value(value: Any) -> None:
        container[key] = value

    return set_value
