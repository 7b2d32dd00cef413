"""Rows of a product by the size of its result."""

from __future__ import annotations

import pytest

from planner.components.quantised import rows_of
from planner.components.tape import Size


@pytest.mark.parametrize(
    ("size", "rows"),
    [
        (Size(batch=2, sequence=5, hidden_size=64, bytes=2), {"batch": 2, "sequence": 5}),
        (Size(tokens=7, intermediate_size=64, bytes=2), {"tokens": 7}),
        (Size(batch=2, keys=9, heads=8, head_dim=16, bytes=2), {"batch": 2, "keys": 9}),
        (Size(batch=2, sequence=5, experts_per_token=2, features=64, bytes=2), {"batch": 2, "sequence": 5, "experts_per_token": 2}),
    ],
    ids=["of all tokens", "of an expert's tokens", "of all that is cached", "of every chosen expert"],
)
def test_rows_are_what_the_product_is_made_for(size: Size, rows: dict[str, int]) -> None:
    assert rows_of(size) == rows
