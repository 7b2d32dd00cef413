"""Programs give what the function gives."""

from __future__ import annotations

from math import ceil, floor, prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.symbolic.amount import Amount, chosen, largest, plain, smallest
from planner.symbolic.program import record_program
from planner.symbolic.trace import Trace


def rounded(size: int) -> int:
    return -(-size // 512) * 512


def branches(batch: int, tokens: int, window: int) -> dict[str, object]:
    """A miniature of what engines do: products, rounding, paging, windows, a peak, a text."""
    cells = min(tokens, window - 1)
    sizes = [
        rounded(prod((batch, tokens, 96, 2))),
        rounded(batch * cells * 40),
        16 * (tokens // 16) + tokens % 16,
        10**6,
        ceil(tokens / 7) * floor(batch / 3),
    ]
    peak = max(sizes)
    where = "window" if sizes[1] * 3 >= peak * 2 > 1.5 * window else "whole"
    held: dict[int, int] = {}
    for size in sizes:
        held[size] = held.get(size, 0) + size
    return {
        "peak": peak,
        "where": where,
        "held": sum(held.values()),
        "shares": (tokens * 1000 // window, 10**9 // batch % 7, sizes[0] % tokens),
        "note": f"{tokens:,} tokens of {batch}, {tokens / 1024:.2f} Ki, {abs(batch - 200)} apart",
        "parts": (sizes, None),
    }


numbers = st.tuples(st.integers(1, 300), st.integers(1, 20_000), st.integers(2, 9000))


@settings(max_examples=300)
@given(numbers, st.lists(numbers, min_size=1, max_size=20))
def test_a_program_says_what_the_function_says_or_nothing(first, others) -> None:
    """For every input a program answers as the function does, or None; for the recorded input it answers."""
    result, program = record_program(branches, first, (1, 1, 2))
    assert program is not None
    assert program.at(first) == branches(*first)
    assert result["peak"] == branches(*first)["peak"]
    for other in others:
        assert program.at(other) in (None, branches(*other))


def test_a_program_is_for_more_than_one_point() -> None:
    _, program = record_program(branches, (2, 5000, 9000), (1, 1, 2))
    assert program.at((3, 5001, 9000)) == branches(3, 5001, 9000)
    assert program.at((3, 9500, 9000)) is None


@given(numbers, st.lists(numbers, min_size=2, max_size=30))
def test_open_choices_take_no_branch(first, others) -> None:
    """The largest of amounts, and what goes with it, come out as for plain numbers, for points and arrays alike."""

    def function(batch: int, tokens: int, window: int) -> tuple[int, int, int]:
        sizes = [batch * tokens, 300 * window, 50 * tokens + 7, 10_000]
        return largest(*sizes), chosen([*sizes[:3]], [batch, 3, window + tokens]), smallest(*sizes)

    _, program = record_program(function, first, (1, 1, 2), branches=False)
    assert program is not None
    assert not program.trace.conditions
    points = [program.at(other) for other in others]
    assert points == [function(*other) for other in others]
    _, columns = program.arrays()(*np.array(others).T)
    assert [tuple(row) for row in np.stack(np.broadcast_arrays(*columns)).T.tolist()] == points


def test_arrays_take_the_same_code() -> None:
    _, program = record_program(lambda batch, tokens: rounded(batch * tokens * 6) + max(tokens, 100), (2, 500), (1, 1))
    batch, tokens = np.array([1, 2, 3]), np.array([500, 99, 1000])
    where, values = program.arrays()(batch, tokens)
    assert where.tolist() == [True, False, True]
    assert values[where].tolist() == [rounded(3000) + 500, rounded(18000) + 1000]


@pytest.mark.parametrize(
    "use",
    [
        float,
        int,
        lambda x: x / 2 + 1,
        lambda x: 0.5 * x,
        lambda x: 7 // (x - 5),
        lambda x: 2**x,
        lambda x: (x / 1) > 0.3,
        lambda x: sum(range(x)),
        lambda x: len([0] * x),
    ],
)
def test_what_has_no_form_has_no_program(use) -> None:
    result, program = record_program(use, (12,), (1,))
    assert program is None
    assert result == use(12)


@given(st.integers(-50, 50), st.integers(-50, 50), st.one_of(st.integers(-60, 60), st.floats(-60, 60)))
def test_an_amount_is_an_int(value, other, bound) -> None:
    """Every operator gives what it gives for plain numbers."""
    trace = Trace()
    a, b = (Amount(each, trace, trace.input(-50)) for each in (value, other))
    assert type(a + b) is Amount
    assert isinstance(a, int)
    for amount, number in (
        (a + b, value + other),
        (a - b, value - other),
        (3 - a, 3 - value),
        (a * b, value * other),
        (-a, -value),
    ):
        assert plain(amount) == number
        assert (amount > bound, amount >= bound, amount < bound, amount <= bound) == (
            number > bound, number >= bound, number < bound, number <= bound,
        )  # fmt: skip
    for divisor in (1, 7, 512):
        assert plain((a * 14 + b) // divisor) == (value * 14 + other) // divisor
        assert plain((a * 14 + b) % divisor) == (value * 14 + other) % divisor
        assert plain(-(-a // divisor)) == -(-value // divisor)
