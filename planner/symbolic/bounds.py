"""What forms are never below, as far as it follows from what their atoms are never below.

A rounded quotient lies between the quotient and one less than one beside it, so that a form lies above a polynomial of what
stands for itself (inputs, largest values). Written in how far those are above their least values, a polynomial without
negative coefficients is never below its constant. Arithmetic is exact throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from planner.symbolic.forms import ONE, Form, times

Number = int | Fraction
Polynomial = Mapping[tuple[int, ...], Number]
"""Coefficients of products of what atoms are above their least values."""


class Bounds:
    """Of the atoms of one trace, in their order."""

    def __init__(self) -> None:
        self._least: list[int | None] = []
        self._quotients: dict[int, tuple[str, Form, int]] = {}
        self._leasts: dict[tuple[int, ...], int | None] = {}
        self._limits: dict[tuple[tuple[int, ...], bool], tuple[Polynomial, int] | None] = {}

    def add(self, least: int | None, quotient: tuple[str, Form, int] | None = None) -> None:
        """The next atom: what it is never below (None where that is not plain to see), and what it is a quotient of.

        ``quotient``: ``floor`` or ``ceil``, a form, a divisor.
        """
        if quotient is not None:
            self._quotients[len(self._least)] = quotient
        self._least.append(least)

    def of(self, form: Form) -> tuple[int | None, int | None]:
        """Values that a form is never below and never above, by the signs of its coefficients alone; None where not plain."""
        total = 0
        rises = falls = True
        for product, factor in form.items():
            least = self._least_of(product)
            if least is None:
                return None, None
            if product:
                if factor > 0:
                    falls = False
                else:
                    rises = False
                if not rises and not falls:
                    return None, None
            total += factor * least
        return total if rises else None, total if falls else None

    def least(self, form: Form) -> Number | None:
        """A value that a form is never below, None where that is not plain to see."""
        above = self.above(form)
        if above is None or any(factor < 0 for product, factor in above.items() if product):
            return None
        return above.get(ONE, 0)

    def above(self, form: Form) -> Polynomial | None:
        """A polynomial that a form is never below."""
        found: dict[tuple[int, ...], Number] = {}
        for product, factor in form.items():
            limit = self._limit(product, low=factor > 0)
            if limit is None:
                return None
            polynomial, divisor = limit
            times_, rest = divmod(factor, divisor)
            scale: Number = Fraction(factor, divisor) if rest else times_
            for each, count in polynomial.items():
                found[each] = found.get(each, 0) + scale * count
        return found

    def _limit(self, product: tuple[int, ...], *, low: bool) -> tuple[Polynomial, int] | None:
        """What a product is never below (``low``) or never above: a polynomial over a divisor."""
        key = (product, low)
        if key not in self._limits:
            self._limits[key] = self._limit_of(product, low=low)
        return self._limits[key]

    def _limit_of(self, product: tuple[int, ...], *, low: bool) -> tuple[Polynomial, int] | None:
        last = next((atom for atom in reversed(product) if atom in self._quotients), None)
        if last is None:
            return self._expanded(product)
        index = product.index(last)
        rest = product[:index] + product[index + 1 :]
        if rest and (self._least_of(rest) is None or (self._least[last] or -1) < 0):
            return None
        kind, form, divisor = self._quotients[last]
        beside = (divisor - 1) * (low is (kind == "floor")) * (-1 if low else 1)
        rounded = times({rest: 1}, form | {ONE: form.get(ONE, 0) + beside})
        above = self.above(rounded if low else {each: -factor for each, factor in rounded.items()})
        if above is None:
            return None
        scale = 1
        for factor in above.values():
            scale *= Fraction(factor * scale).denominator
        sign = scale if low else -scale
        return {each: int(factor * sign) for each, factor in above.items()}, divisor * scale

    def _expanded(self, product: tuple[int, ...]) -> tuple[Polynomial, int] | None:
        found: Form = {ONE: 1}
        for atom in product:
            least = self._least[atom]
            if least is None:
                return None
            found = times(found, {(atom,): 1, ONE: least} if least else {(atom,): 1})
        return found, 1

    def _least_of(self, product: tuple[int, ...]) -> int | None:
        """The product of what its atoms are never below, None where one may be less than nothing."""
        found = self._leasts.get(product, -1)
        if found == -1:
            found = 1
            for atom in product:
                least = self._least[atom]
                found = None if found is None or least is None or least < 0 else found * least
            self._leasts[product] = found
        return found


MIXTURES = 2**20
"""Mixtures are weighed in so many parts."""


def covers(one: Polynomial, other: Polynomial) -> bool:
    """Whether some mixture of two differences is above nothing whatever the inputs: one of them is then, at every input."""
    least, most = 0.0, 1.0  # of the first in the mixture
    for product in one.keys() | other.keys():
        first, second = one.get(product, 0), other.get(product, 0)
        if first < 0 > second:
            return False
        if first < 0 or second < 0:
            even = float(second / (second - first))
            least, most = (max(least, even), most) if first > 0 else (least, min(most, even))
            if least > most:
                return False
    share = round(MIXTURES * (least + most) / 2)
    mixed = {product: share * one.get(product, 0) + (MIXTURES - share) * other.get(product, 0) for product in {**one, **other}}
    return mixed.get(ONE, 0) > 0 and all(factor >= 0 for factor in mixed.values())
