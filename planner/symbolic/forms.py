"""Sums of integer multiples of products of atoms, by which amounts remember how they came about."""

from __future__ import annotations

Form = dict[tuple[int, ...], int]
"""Coefficient of each product of atoms (their numbers, sorted, repeated for powers); the empty product is one."""
ONE: tuple[int, ...] = ()


def is_constant(form: Form) -> bool:
    """Whether a form has no atom."""
    return not form or (len(form) == 1 and ONE in form)


def add(one: Form, other: Form, factor: int) -> Form:
    """``one + factor · other``."""
    found = dict(one)
    for product, count in other.items():
        total = found.get(product, 0) + factor * count
        if total:
            found[product] = total
        else:
            found.pop(product, None)
    return found


def times(one: Form, other: Form) -> Form:
    """The product of two forms, multiplied out."""
    found: Form = {}
    for left, factor in one.items():
        for right, count in other.items():
            product = tuple(sorted(left + right)) if left and right else left or right
            found[product] = found.get(product, 0) + factor * count
    return {product: factor for product, factor in found.items() if factor}
