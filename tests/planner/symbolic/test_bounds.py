"""What is said of forms whatever their inputs holds for every input."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.symbolic.amount import Amount, exceeds, form_of, on_top, plain
from planner.symbolic.bounds import covers
from planner.symbolic.trace import Trace

LEAST = (1, 2)
inputs = st.tuples(st.integers(LEAST[0], 400), st.integers(LEAST[1], 9000))
factors = st.tuples(*(st.integers(-3000, 3000) for _ in range(6)), st.sampled_from([16, 100, 512]))


def made(trace: Trace, at: tuple[int, int]) -> tuple[Amount, Amount]:
    return tuple(Amount(value, trace, trace.input(least)) for value, least in zip(at, LEAST, strict=True))


def size(batch, tokens, numbers):
    """What sizes of tensors are made of: products of counts, some rounded up or down, and a constant."""
    constant, one, two, up, down, square, unit = numbers
    rounded = -(-batch * tokens * 4 // unit)
    return (
        constant * 1000 + one * batch * tokens + two * tokens + up * rounded + down * (tokens * 7 // unit) * batch
        + square * -(-tokens * tokens // unit)
    )  # fmt: skip


@given(factors, factors, inputs, st.lists(inputs, min_size=1, max_size=12))
def test_what_always_exceeds_does_so_at_every_input(one, other, first, others) -> None:
    """A comparison that leaves no condition comes out the same whatever the inputs."""
    trace = Trace(branches=False)
    counts = made(trace, first)
    found = exceeds(size(*counts, one), size(*counts, other))
    assert not trace.conditions
    if found is not None:
        assert all((size(*at, one) > size(*at, other)) is found for at in (first, *others))


@given(factors, inputs, st.lists(inputs, min_size=1, max_size=12))
def test_a_bound_is_below_every_value(numbers, first, others) -> None:
    trace = Trace()
    least = trace.bounds.least(form_of(size(*made(trace, first), numbers)))
    if least is not None:
        assert all(size(*at, numbers) >= least for at in (first, *others))


@given(st.lists(factors, min_size=3, max_size=9), inputs, st.lists(inputs, min_size=1, max_size=12))
def test_what_is_left_out_is_never_the_largest(numbers, first, others) -> None:
    """At every input one of those that are kept is larger than each that is not."""
    trace = Trace(branches=False)
    counts = made(trace, first)
    values = [counts[0] * counts[1] * abs(each[1]) + 10 * each[0] for each in numbers] + [counts[0] + size(*counts, numbers[0])]
    kept = on_top(values)
    for at in (first, *others):
        plain_values = [at[0] * at[1] * abs(each[1]) + 10 * each[0] for each in numbers] + [at[0] + size(*at, numbers[0])]
        largest = max(plain_values[position] for position in kept)
        assert all(plain_values[position] < largest for position in set(range(len(values))) - set(kept))


@pytest.mark.parametrize(
    ("above", "below"),
    [
        (lambda b, s: 8192 * b * s, lambda b, s: -(-b * s * 4 // 512) * 512 + 500),
        (lambda b, s: 640 * -(-b * s // 128), lambda b, s: 5 * b * s - 1),
        (lambda b, s: b * s * s, lambda b, s: s * s - 1),
        (lambda b, s: b * -(-s // 16) * 16 * -(-s // 16) * 16, lambda b, s: b * s * s - 1),
    ],
)
def test_roundings_do_not_hide_which_is_larger(above, below) -> None:
    counts = made(Trace(branches=False), (3, 77))
    assert exceeds(above(*counts), below(*counts)) is True
    assert exceeds(below(*counts), above(*counts)) is False


def test_the_middle_of_three_is_never_the_largest() -> None:
    """Of a constant, a steep line and one between them below their crossing, the last is left out; above it it stays."""
    count, _ = made(Trace(branches=False), (5, 9))
    steep, flat = count * 100, count * 0 + 10_000
    assert on_top([count, flat + count, steep]) == [1, 2]
    assert on_top([flat + count, 4000 + 50 * count, steep]) == [0, 2]
    assert on_top([flat + count, 6000 + 50 * count, steep]) == [0, 1, 2]
    assert plain(count) == 5


def test_a_mixture_covers_what_neither_does() -> None:
    assert covers({(): 5, (0,): -1}, {(): -4, (0,): 1})
    assert not covers({(): 5, (0,): -1}, {(): -6, (0,): 1})
    assert not covers({(): 5, (0,): -1}, {(): 5, (0,): -1})
