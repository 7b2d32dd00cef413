"""Whole numbers that remember how they came about.

An :class:`Amount` goes through the planner's arithmetic like an int. Beside its value it carries its form: a sum of
integer multiples of products of atoms, an atom being an input or a rounded quotient. What a comparison of amounts decided
is noted as a condition, so that the same forms hold for every input that meets the conditions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import ceil, floor, isfinite
from typing import Any

from planner.symbolic.forms import ONE, Form, add, is_constant, times
from planner.symbolic.trace import Trace


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
        return value if is_constant(form) else Amount(value, self.trace, form)

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


class Sparse(dict[str, Any]):
    """Numbers by name, of which ``doubtful`` ones are there only where they are not 0."""

    def __init__(self, numbers: Mapping[str, Any], doubtful: Collection[str]) -> None:
        super().__init__(numbers)
        self.doubtful = doubtful


def is_doubtful(numbers: Mapping[str, Any], name: str) -> bool:
    """Whether an entry is there only where it is not 0."""
    return isinstance(numbers, Sparse) and name in numbers.doubtful


def form_of(number: Any) -> Form:
    """The form of an amount or an int."""
    return number.form if type(number) is Amount else {ONE: int(number)}


def exceeds(one: Any, other: Any) -> bool | None:
    """Whether ``one`` is more than ``other``; None where a trace leaves that open."""
    difference = one - other
    if type(difference) is not Amount:
        return bool(difference > 0)
    trace, form = difference.trace, difference.form
    if trace.branches:
        return trace.decide(form, difference.value, ">")
    return trace.certain(form, difference.value)


def largest(*values: Any) -> Any:
    """``max`` that takes no branch: of amounts it is an amount."""
    if not any(type(value) is Amount for value in values):
        return max(values)
    tops: list[Any] = []
    for value in values:
        if not any(exceeds(value, top) is False for top in tops):
            tops = [top for top in tops if not exceeds(value, top)] + [value]
    if len(tops) == 1:
        return tops[0]
    trace = _trace_of(tops)
    return Amount(max(map(plain, tops)), trace, trace.largest([form_of(top) for top in tops]))


def smallest(*values: Any) -> Any:
    """``min`` that takes no branch."""
    return -largest(*(-value for value in values))


def on_top(sizes: Sequence[Any]) -> list[int]:
    """Positions of the amounts that may be the largest, for some inputs of their trace."""
    return _trace_of(sizes).on_top([form_of(size) for size in sizes])


def chosen(sizes: Sequence[Any], values: Sequence[Any]) -> Any:
    """Of ``values`` the one whose place among ``sizes`` is the largest's (first), without a branch."""
    if not any(type(size) is Amount for size in sizes):
        return values[sizes.index(max(sizes))]
    if all(type(value) is type(values[0]) and form_of(value) == form_of(values[0]) for value in values):
        return values[0]
    trace, numbers = _trace_of(sizes), [plain(size) for size in sizes]
    form = trace.chosen([form_of(size) for size in sizes], [form_of(value) for value in values])
    return Amount(plain(values[numbers.index(max(numbers))]), trace, form)


def _trace_of(values: Sequence[Any]) -> Trace:
    return next(value.trace for value in values if type(value) is Amount)


def plain(number: Any) -> int:
    """The value of an amount or an int, without a note: for arithmetic on forms only."""
    return number.value if type(number) is Amount else int(number)
