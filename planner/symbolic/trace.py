"""What one run of a function on amounts leaves: the atoms its forms are made of, and what its comparisons decided."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import ceil
from typing import NamedTuple

from planner.symbolic.bounds import Bounds, covers
from planner.symbolic.forms import ONE, Form, add, is_constant


class Atom(NamedTuple):
    """An ``input``, a rounded quotient, or one of several forms.

    ``floor`` or ``ceil`` of a form over a divisor; the ``ratio`` of two forms, rounded down; the ``largest`` of forms; or
    ``chosen``: of the first half of the forms the largest says which of the second half it is.
    """

    kind: str
    forms: tuple[Form, ...] = ()
    divisor: int = 1


class Trace:
    """Atoms and conditions of one run. Inputs are the atoms 0, 1, …; each has a least value it may take.

    ``branches``: which of several amounts is the largest is decided here, and a condition; otherwise it is left open and
    an atom of its own: fewer programs for a grid, longer ones.
    """

    def __init__(self, *, branches: bool = True) -> None:
        self.branches = branches
        self.atoms: list[Atom] = []
        self.bounds = Bounds()
        self.conditions: dict[tuple[str, tuple[tuple[tuple[int, ...], int], ...]], Form] = {}
        self.texts: list[tuple[Form, int | None, str]] = []
        """Numbers in words: form, what it is divided by if anything, and how it is written."""
        self.pinned = False
        """Whether a value was used in a way that has no form: then it holds for this value alone."""
        self._numbers: dict[object, int] = {}

    def input(self, minimum: int) -> Form:
        """The next input, never below ``minimum``."""
        return self._atom(Atom("input"), len(self.atoms), minimum)

    def quotient(self, kind: str, form: Form, divisor: int) -> Form:
        """``floor`` or ``ceil`` of ``form / divisor``: multiples of the divisor are taken out, the rest is an atom."""
        whole = {product: factor // divisor for product, factor in form.items() if factor % divisor == 0}
        rest = {product: factor for product, factor in form.items() if factor % divisor}
        if is_constant(rest):
            constant = rest.get(ONE, 0)
            rounded = constant // divisor if kind == "floor" else -(-constant // divisor)
            return add(whole, {ONE: rounded}, 1)
        least = self.bound(rest)
        least = None if least is None else least // divisor if kind == "floor" else -(-least // divisor)
        key = (kind, divisor, tuple(sorted(rest.items())))
        return add(whole, self._atom(Atom(kind, (rest,), divisor), key, least), 1)

    def ratio(self, above: Form, below: Form) -> Form:
        """``above // below`` of two forms, the second more than 0."""
        key = ("ratio", tuple(sorted(above.items())), tuple(sorted(below.items())))
        least = self.bound(above)
        return self._atom(Atom("ratio", (above, below)), key, None if least is None or least < 0 else 0)

    def largest(self, forms: Sequence[Form]) -> Form:
        """The largest of forms, without a condition."""
        bounds = [bound for form in forms if (bound := self.bound(form)) is not None]
        key = ("largest", *(tuple(sorted(form.items())) for form in forms))
        return self._atom(Atom("largest", tuple(forms)), key, max(bounds, default=None))

    def chosen(self, sizes: Sequence[Form], values: Sequence[Form]) -> Form:
        """Of ``values`` the one that stands where ``sizes`` are largest (first), without a condition."""
        bounds = [self.bound(form) for form in values]
        least = None if None in bounds else min(bound for bound in bounds if bound is not None)
        key = ("chosen", *(tuple(sorted(form.items())) for form in (*sizes, *values)))
        return self._atom(Atom("chosen", (*sizes, *values)), key, least)

    def _atom(self, atom: Atom, key: object, least: int | None) -> Form:
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.atoms)
            self.atoms.append(atom)
            self.bounds.add(least, (atom.kind, atom.forms[0], atom.divisor) if atom.kind in ("floor", "ceil") else None)
        return {(number,): 1}

    def text(self, form: Form, divisor: int | None, spec: str) -> str:
        """A mark that stands in a text for a number."""
        self.texts.append((form, divisor, spec))
        return f"\x02{len(self.texts) - 1}\x03"

    def bound(self, form: Form) -> int | None:
        """A value that ``form`` is never below, None where that is not plain to see."""
        return self.bounds.of(form)[0]

    def decide(self, form: Form, value: int, sign: str) -> bool:
        """Whether ``form`` (at present ``value``) is ``>`` 0, ``>=`` 0 or ``==`` 0; noted unless it is always so."""
        holds = value > 0 if sign == ">" else value >= 0 if sign == ">=" else value == 0
        if is_constant(form) or self._always(form, sign, holds=holds):
            return holds
        if not holds:
            form, sign = (
                ({key: -factor for key, factor in form.items()}, {">": ">=", ">=": ">"}[sign]) if sign != "==" else (form, "!=")
            )
        self.conditions.setdefault((sign, tuple(sorted(form.items()))), form)
        return holds

    def on_top(self, forms: Sequence[Form]) -> list[int]:
        """Positions of the forms that may be the largest: a form below some mixture of two others is below one of them."""
        kept = list(range(len(forms)))
        for position in range(len(forms)):
            others = [self.bounds.above(add(forms[other], forms[position], -1)) for other in kept if other != position]
            found = [other for other in others if other is not None]
            if any(covers(one, other) for one, other in combinations(found, 2)):
                kept.remove(position)
        return kept

    def certain(self, form: Form, value: int) -> bool | None:
        """Whether ``form`` (at present ``value``) is more than 0, None where other inputs may decide otherwise."""
        return value > 0 if self._always(form, ">", holds=value > 0) else None

    def _always(self, form: Form, sign: str, *, holds: bool) -> bool:
        least, most = self.bounds.of(form)
        negative = {key: -factor for key, factor in form.items()}
        least_negative = None if most is None else -most
        if sign == "==":
            return not holds and (self._never_below(form, least, 1) or self._never_below(negative, least_negative, 1))
        if holds:
            return self._never_below(form, least, 1 if sign == ">" else 0)
        return self._never_below(negative, least_negative, 0 if sign == ">" else 1)

    def _never_below(self, form: Form, plain_least: int | None, value: int) -> bool:
        """Whether a form is never below a value. ``plain_least``: what it is plainly not below."""
        if plain_least is not None:
            return plain_least >= value
        least = self.bounds.least(form)
        return least is not None and ceil(least) >= value
