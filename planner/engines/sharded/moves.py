"""What a sharding makes and drops between the parts of a step, as spans that are laid before and behind them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from planner.components.tape import Course, Held, Span

Move = tuple[str, Held, int]
"""A tensor's name, the tensor, and how many are made (fewer: gone)."""


def moves(steps: Sequence[Move]) -> Span:
    """Tensors made and gone one after another. Their sizes must be plain numbers, as those of all weights are."""
    above = top = at = 0
    for index, (_, held, count) in enumerate(steps):
        above += count * held.size.bytes
        if above > top:
            top, at = above, index + 1
    return Span([(top, steps[:at])], above, steps, {}, steps)


def then(*spans: Span) -> Span:
    """Spans one after another as one."""
    tops: list[tuple[int, Sequence[Move]]] = []
    end, change = 0, list[Move]()
    for span in spans:
        tops += [(end + top, [*change, *moved]) for top, moved in span.tops]
        end += span.end
        change = [*change, *span.end_change]
    return Span(tops, end, change, {}, [step for span in spans for step in span.steps])


def gradients_of(span: Span) -> list[Move]:
    """The gradients that a span leaves, as moves that drop them."""
    return [(name, held, -count) for name, held, count in span.end_change if held.component == "gradients"]


def gradients_held(course: Course, names: Iterable[str]) -> list[Move]:
    """The gradients alive under some names, as moves that drop them."""
    wanted = set(names)
    return [
        (name, Held(size, component), -count)
        for component, name, size, count in course.level.items()
        if component == "gradients" and name in wanted
    ]
