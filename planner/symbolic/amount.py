"""Whole numbers that remember how they came about.

An :class:`Amount` goes through the planner's arithmetic like an int. Beside its value it carries its form: a sum of
integer multiples of products of atoms, an atom being an input or a rounded quotient. What a comparison of amounts decided
is noted as a condition, so that the same forms hold for every input that meets the conditions.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, isfinite
from typing import Any, NamedTuple

Form = dict[tuple[int, ...], int]
"""Coefficient of each product of atoms (their numbers, sorted, repeated for powers); the empty product is one."""
ONE: tuple[int, ...] = ()


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
        self.least: list[int | None] = []
        """What an atom is never below, None where that is not plain to see."""
        self.conditions: dict[tuple[str, tuple[tuple[tuple[int, ...], int], ...]], Form] = {}
        self.texts: list[tuple[Form, int | None, str]] = []
        """Numbers in words: form, what it is divided by if anything, and how it is written."""
        self.pinned = False
        """Whether a value was used in a way that has no form: then it holds for this value alone."""
        self._numbers: dict[object, int] = {}
        self._leasts: dict[tuple[int, ...], int | None] = {}

    def argument(self, value: int, minimum: int) -> Any:
        """The next input."""
        return Amount(value, self, self._atom(Atom("input"), len(self.atoms), minimum))

    def quotient(self, kind: str, form: Form, divisor: int) -> Form:
        """``floor`` or ``ceil`` of ``form / divisor``: multiples of the divisor are taken out, the rest is an atom."""
        whole = {product: factor // divisor for product, factor in form.items() if factor % divisor == 0}
        rest = {product: factor for product, factor in form.items() if factor % divisor}
        if not rest.keys() - {ONE}:
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

    def largest(self, values: Sequence[Any]) -> Any:
        """The largest of amounts and ints, without a condition."""
        forms = tuple(form_of(value) for value in values)
        bounds = [bound for form in forms if (bound := self.bound(form)) is not None]
        key = ("largest", *(tuple(sorted(form.items())) for form in forms))
        form = self._atom(Atom("largest", forms), key, max(bounds, default=None))
        return Amount(max(plain(value) for value in values), self, form)

    def chosen(self, sizes: Sequence[Any], values: Sequence[Any]) -> Any:
        """Of ``values`` the one that stands where ``sizes`` are largest (first), without a condition."""
        forms = tuple(form_of(value) for value in (*sizes, *values))
        bounds = [self.bound(form_of(value)) for value in values]
        least = None if None in bounds else min(bound for bound in bounds if bound is not None)
        key = ("chosen", *(tuple(sorted(form.items())) for form in forms))
        numbers = [plain(size) for size in sizes]
        value = plain(values[numbers.index(max(numbers))])
        return Amount(value, self, self._atom(Atom("chosen", forms), key, least))

    def _atom(self, atom: Atom, key: object, least: int | None) -> Form:
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.atoms)
            self.atoms.append(atom)
            self.least.append(least)
        return {(number,): 1}

    def text(self, form: Form, divisor: int | None, spec: str) -> str:
        """A mark that stands in a text for a number."""
        self.texts.append((form, divisor, spec))
        return f"\x02{len(self.texts) - 1}\x03"

    def bound(self, form: Form) -> int | None:
        """A value that ``form`` is never below, None where that is not plain to see."""
        return self.bounds(form)[0]

    def bounds(self, form: Form) -> tuple[int | None, int | None]:
        """Values that ``form`` is never below and never above, None where they are not plain to see."""
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

    def _least_of(self, product: tuple[int, ...]) -> int | None:
        found = self._leasts.get(product, -1)
        if found == -1:
            found = 1
            for atom in product:
                least = self.least[atom]
                found = None if found is None or least is None or least < 0 else found * least
            self._leasts[product] = found
        return found

    def decide(self, form: Form, value: int, sign: str) -> bool:
        """Whether ``form`` (at present ``value``) is ``>`` 0, ``>=`` 0 or ``==`` 0; noted unless it is always so."""
        holds = value > 0 if sign == ">" else value >= 0 if sign == ">=" else value == 0
        if not form.keys() - {ONE} or self._always(form, sign, holds=holds):
            return holds
        if not holds:
            form, sign = (
                ({key: -factor for key, factor in form.items()}, {">": ">=", ">=": ">"}[sign]) if sign != "==" else (form, "!=")
            )
        self.conditions.setdefault((sign, tuple(sorted(form.items()))), form)
        return holds

    def _always(self, form: Form, sign: str, *, holds: bool) -> bool:
        least, most = self.bounds(form)
        if sign == "==":
            return not holds and ((least or 0) > 0 or (most or 0) < 0)
        if holds:
            return least is not None and (least > 0 or (least == 0 and sign == ">="))
        return most is not None and (most < 0 or (most == 0 and sign == ">"))


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


class Amount:
    """A whole number with its form.

    It passes for an int where Python code asks, but it is none: C code that would take an int's value unseen (a float's
    multiplication, ``range``) has to ask for it, and what has been asked is noted.
    """

    __slots__ = ("form", "trace", "value")

    def __init__(self, value: int, trace: Trace, form: Form) -> None:
        self.value = value
        self.trace = trace
        self.form = form

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return int

    def _form_of(self, other: Any) -> Form | None:
        """The form of another operand; None for what is no whole number."""
        if type(other) is Amount:
            return other.form if other.trace is self.trace else {ONE: other.value}
        return {ONE: int(other)} if isinstance(other, int) else None

    def _pin(self) -> int:
        """The plain value, from now on for this value alone."""
        self.trace.pinned = True
        return self.value

    def _made(self, value: int, form: Form) -> Any:
        return Amount(value, self.trace, form) if form.keys() - {ONE} else value

    def __add__(self, other: Any) -> Any:
        form = self._form_of(other)
        if form is None:
            return self._pin() + other
        return self._made(self.value + plain(other), add(self.form, form, 1))

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        form = self._form_of(other)
        if form is None:
            return self._pin() - other
        return self._made(self.value - plain(other), add(self.form, form, -1))

    def __rsub__(self, other: Any) -> Any:
        form = self._form_of(other)
        if form is None:
            return other - self._pin()
        return self._made(plain(other) - self.value, add(form, self.form, -1))

    def __neg__(self) -> Any:
        return Amount(-self.value, self.trace, {key: -factor for key, factor in self.form.items()})

    def __pos__(self) -> Any:
        return self

    def __mul__(self, other: Any) -> Any:
        form = self._form_of(other)
        if form is None:
            return self._pin() * other
        return self._made(self.value * plain(other), times(self.form, form))

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        if type(other) is Amount and other.trace is self.trace and (self.trace.bound(other.form) or 0) > 0:
            return self._made(self.value // other.value, self.trace.ratio(self.form, other.form))
        if type(other) is Amount or not isinstance(other, int) or other <= 0:
            return self._pin() // (other._pin() if type(other) is Amount else other)
        if any(factor < 0 for factor in self.form.values()) and not any(factor > 0 for factor in self.form.values()):
            above = {key: -factor for key, factor in self.form.items()}
            form = {key: -factor for key, factor in self.trace.quotient("ceil", above, other).items()}
        else:
            form = self.trace.quotient("floor", self.form, other)
        return self._made(self.value // other, form)

    def __rfloordiv__(self, other: Any) -> Any:
        if type(other) is int and (self.trace.bound(self.form) or 0) > 0:
            return self._made(other // self.value, self.trace.ratio({ONE: other}, self.form))
        return other // self._pin()

    def __mod__(self, other: Any) -> Any:
        if type(other) is not Amount and (not isinstance(other, int) or other <= 0):
            return self._pin() % other
        return self - (self // other) * other

    def __rmod__(self, other: Any) -> Any:
        return other % self._pin()

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __truediv__(self, other: Any) -> Any:
        if type(other) is int and other > 0:
            return Ratio(self, other)
        return self._pin() / (other._pin() if type(other) is Amount else other)

    def __rtruediv__(self, other: Any) -> Any:
        return other / self._pin()

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        return pow(self._pin(), other, modulo)

    def __rpow__(self, other: Any) -> Any:
        return other ** self._pin()

    def __int__(self) -> int:
        return self._pin()

    def __index__(self) -> int:
        return self._pin()

    def __float__(self) -> float:
        return float(self._pin())

    def __round__(self, digits: Any = None) -> Any:
        return self

    def __ceil__(self) -> Any:
        return self

    def __floor__(self) -> Any:
        return self

    def __abs__(self) -> Any:
        return self if self >= 0 else -self

    def __bool__(self) -> bool:
        return not self.trace.decide(self.form, self.value, "==")

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.form.items())))

    def __eq__(self, other: object) -> bool:
        form = self._form_of(other)
        if type(other) is Amount and other.trace is not self.trace:
            return False
        if form is None:
            return bool(self._pin() == other)
        return self.trace.decide(add(self.form, form, -1), self.value - plain(other), "==")

    def __ne__(self, other: object) -> bool:
        return not self == other

    def _compare(self, other: Any, sign: str, *, turned: bool) -> Any:
        """``self - other`` (turned: ``other - self``) against 0. A fraction is taken to the next whole number."""
        if isinstance(other, float):
            if not isfinite(other):
                return (other < 0) != turned
            other = floor(other) if (sign == ">") != turned else ceil(other)
        form = self._form_of(other)
        if form is None:
            return NotImplemented
        difference, value = add(self.form, form, -1), self.value - plain(other)
        if turned:
            difference, value = {key: -factor for key, factor in difference.items()}, -value
        return self.trace.decide(difference, value, sign)

    def __gt__(self, other: Any) -> Any:
        return self._compare(other, ">", turned=False)

    def __ge__(self, other: Any) -> Any:
        return self._compare(other, ">=", turned=False)

    def __lt__(self, other: Any) -> Any:
        return self._compare(other, ">", turned=True)

    def __le__(self, other: Any) -> Any:
        return self._compare(other, ">=", turned=True)

    def __format__(self, spec: str) -> str:
        return self.trace.text(self.form, None, spec)

    def __str__(self) -> str:
        return self.__format__("")

    def __repr__(self) -> str:
        return self.__format__("")


class Ratio:
    """An amount over a whole number, which is a form again once it is rounded up or down."""

    __slots__ = ("_amount", "_divisor")

    def __init__(self, amount: Amount, divisor: int) -> None:
        self._amount = amount
        self._divisor = divisor

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return float

    def __ceil__(self) -> Any:
        return -(-self._amount // self._divisor)

    def __floor__(self) -> Any:
        return self._amount // self._divisor

    def __float__(self) -> float:
        return float(self._amount) / self._divisor

    def __int__(self) -> int:
        return int(float(self))

    def __add__(self, other: Any) -> Any:
        return float(self) + other

    def __radd__(self, other: Any) -> Any:
        return other + float(self)

    def __sub__(self, other: Any) -> Any:
        return float(self) - other

    def __rsub__(self, other: Any) -> Any:
        return other - float(self)

    def __mul__(self, other: Any) -> Any:
        return float(self) * other

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        return float(self) / other

    def __rtruediv__(self, other: Any) -> Any:
        return other / float(self)

    def __bool__(self) -> bool:
        return bool(self._amount)

    def __eq__(self, other: object) -> bool:
        return float(self) == other

    def __lt__(self, other: Any) -> Any:
        return float(self) < other

    def __le__(self, other: Any) -> Any:
        return float(self) <= other

    def __gt__(self, other: Any) -> Any:
        return float(self) > other

    def __ge__(self, other: Any) -> Any:
        return float(self) >= other

    def __neg__(self) -> float:
        return -float(self)

    def __hash__(self) -> int:
        return hash(float(self))

    def __format__(self, spec: str) -> str:
        return self._amount.trace.text(self._amount.form, self._divisor, spec)


def form_of(number: Any) -> Form:
    """The form of an amount or an int."""
    return number.form if type(number) is Amount else {ONE: int(number)}


def exceeds(one: Any, other: Any) -> bool | None:
    """Whether ``one`` is more than ``other``; None where a trace leaves that open."""
    difference = one - other
    if type(difference) is not Amount:
        return bool(difference > 0)
    trace, form = difference.trace, difference.form
    least, most = trace.bounds(form)
    if least is not None and least > 0:
        return True
    if most is not None and most <= 0:
        return False
    return trace.decide(form, difference.value, ">") if trace.branches else None


def largest(*values: Any) -> Any:
    """``max`` that takes no branch: of amounts it is an amount."""
    if not any(type(value) is Amount for value in values):
        return max(values)
    tops: list[Any] = []
    for value in values:
        if not any(exceeds(value, top) is False for top in tops):
            tops = [top for top in tops if not exceeds(value, top)] + [value]
    return tops[0] if len(tops) == 1 else _trace_of(tops).largest(tops)


def smallest(*values: Any) -> Any:
    """``min`` that takes no branch."""
    return -largest(*(-value for value in values))


def chosen(sizes: Sequence[Any], values: Sequence[Any]) -> Any:
    """Of ``values`` the one whose place among ``sizes`` is the largest's (first), without a branch."""
    if not any(type(size) is Amount for size in sizes):
        return values[sizes.index(max(sizes))]
    if all(type(value) is type(values[0]) and form_of(value) == form_of(values[0]) for value in values):
        return values[0]
    return _trace_of(sizes).chosen(sizes, values)


def _trace_of(values: Sequence[Any]) -> Trace:
    return next(value.trace for value in values if type(value) is Amount)


def plain(number: Any) -> int:
    """The value of an amount or an int, without a note: for arithmetic on forms only."""
    return number.value if type(number) is Amount else int(number)
