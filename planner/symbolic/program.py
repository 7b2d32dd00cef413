"""A function of whole numbers, run once and written down: as conditions on the inputs, and as code for what it returned.

The code does only what depends on the inputs, so that it runs in microseconds, and its operators are those that NumPy
arrays know too, so that it fills a grid. Where the conditions do not hold the function took another path: it is run
again there and written down as well. So the answers are the function's own, everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from types import CodeType, FunctionType
from typing import Any, Generic, TypeVar

from planner.symbolic.amount import Amount, is_doubtful
from planner.symbolic.forms import ONE, Form
from planner.symbolic.trace import Trace

Result = TypeVar("Result")
MARK = re.compile("\x02(\\d+)\x03")


class Program(Generic[Result]):
    """What a function did for inputs that meet the same conditions."""

    def __init__(self, trace: Trace, result: Result, inputs: int) -> None:
        self.trace = trace
        writer = _Writer(trace, inputs)
        self._conditions = [writer.condition(sign, form) for (sign, _), form in trace.conditions.items()]
        checked = writer.lines_so_far
        self._result = writer.value(result)
        self._writer = writer
        self._point = writer.point(checked, " and ".join(self._conditions) or "True", self._result)
        self._arrays: Callable[..., tuple[Any, Any]] | None = None
        self.exact_to: tuple[int, ...] = ()
        """Inputs up to which 64 bits of an array hold the result, where that was found."""

    def at(self, values: Sequence[int]) -> Result | None:
        """The result for other inputs, None where they fail a condition."""
        found: Result | None = self._point(*values)
        return found

    def arrays(self) -> Callable[..., tuple[Any, Any]]:
        """A function of NumPy arrays and of ints: where the conditions hold, and the result there."""
        if self._arrays is None:
            self._arrays = self._writer.arrays(" & ".join(f"({one})" for one in self._conditions) or "True", self._result)
        return self._arrays


def record_program(
    function: Callable[..., Result], values: Sequence[int], minimums: Sequence[int], *, branches: bool = True
) -> tuple[Result, Program[Result] | None]:
    """Run ``function`` on ``values`` (none below its minimum); its result, and the program, None where it has no form.

    ``branches``: see :class:`~planner.symbolic.trace.Trace`.
    """
    trace = Trace(branches=branches)
    result = function(*(Amount(value, trace, trace.input(minimum)) for value, minimum in zip(values, minimums, strict=True)))
    if trace.pinned:
        return result, None
    return result, Program(trace, result, len(values))


class _Writer:
    """Writes forms, and values that contain them, as Python."""

    def __init__(self, trace: Trace, inputs: int) -> None:
        self._trace = trace
        self._inputs = inputs
        self._names: dict[str, Any] = {}
        self._lines: list[str] = []
        self._written = set(range(inputs))
        self._products: dict[tuple[int, ...], str] = {}

    @property
    def lines_so_far(self) -> int:
        return len(self._lines)

    def point(self, checked: int, condition: str, result: str) -> Callable[..., Any]:
        """A function of ints; of the lines the first ``checked`` are what the condition needs."""
        lines = [*self._lines[:checked], f"if not ({condition}):", "    return None", *self._lines[checked:], f"return {result}"]
        return self._function(lines, {"largest": max, "chosen": _chosen, "present": _present})

    def arrays(self, condition: str, result: str) -> Callable[..., Any]:
        """A function of arrays: where the condition holds, and the result."""
        return self._function([*self._lines, f"return ({condition}), {result}"], _array_functions())

    def _function(self, lines: Sequence[str], functions: dict[str, Any]) -> Callable[..., Any]:
        inputs = ", ".join(f"a{number}" for number in range(self._inputs))
        source = "\n    ".join([f"def program({inputs}):", *lines])
        module = compile(source, "<program>", "exec")
        code = next(constant for constant in module.co_consts if isinstance(constant, CodeType))
        return FunctionType(code, self._names | functions)

    def condition(self, sign: str, form: Form) -> str:
        return f"{self.form(form)} {sign} 0"

    def form(self, form: Form) -> str:
        parts = []
        for product, factor in form.items():
            if product == ONE:
                parts.append(str(factor))
            else:
                name = self._product(product)
                parts.append(name if factor == 1 else f"{factor}*{name}")
        return " + ".join(parts) or "0"

    def _product(self, product: tuple[int, ...]) -> str:
        found = self._products.get(product)
        if found is None:
            for atom in product:
                self._atom(atom)
            if len(product) == 1:
                found = f"a{product[0]}"
            else:
                found = f"p{len(self._products)}"
                self._lines.append(f"{found} = {self._product(product[:-1])}*a{product[-1]}")
            self._products[product] = found
        return found

    def _atom(self, number: int) -> None:
        if number in self._written:
            return
        self._written.add(number)
        kind, forms, divisor = self._trace.atoms[number]
        inside = [self.form(form) for form in forms]
        half = len(inside) // 2
        written = {
            "floor": f"({inside[0]}) // {divisor}",
            "ceil": f"-(-({inside[0]}) // {divisor})",
            "ratio": f"({inside[0]}) // ({inside[-1]})",
            "largest": f"largest({', '.join(inside)})",
            "chosen": f"chosen(({', '.join(inside[:half])},), ({', '.join(inside[half:])},))",
        }
        self._lines.append(f"a{number} = {written[kind]}")

    def value(self, value: Any) -> str:
        """An expression that makes ``value`` anew."""
        if not _varies(value):
            return self._constant(value)
        if type(value) is Amount:
            return f"({self.form(value.form)})"
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, tuple | list):
            inside = ", ".join(self.value(item) for item in value)
            return f"[{inside}]" if isinstance(value, list) else f"({inside},)"
        if isinstance(value, dict):
            items = [(f"{self.value(key)}: {self.value(item)}", is_doubtful(value, key)) for key, item in value.items()]
            sure, other = (", ".join(item for item, doubt in items if doubt is wanted) for wanted in (False, True))
            return f"{{{sure}, **present({{{other}}})}}" if other else f"{{{sure}}}"
        made = self._constant(type(value))
        return f"{made}(" + ", ".join(self.value(getattr(value, item.name)) for item in fields(value)) + ")"

    def _text(self, text: str) -> str:
        parts = MARK.split(text)
        written = []
        for index, part in enumerate(parts):
            if index % 2:
                form, divisor, spec = self._trace.texts[int(part)]
                number = self.form(form) if divisor is None else f"({self.form(form)}) / {divisor}"
                written.append(f"format({number}, {spec!r})")
            elif part:
                written.append(repr(part))
        return "(" + " + ".join(written) + ")"

    def _constant(self, value: Any) -> str:
        if value is None or (type(value) in (int, str)):
            return repr(value)
        name = f"k{len(self._names)}"
        self._names[name] = value
        return name


def _chosen(sizes: Sequence[int], values: Sequence[int]) -> int:
    return values[sizes.index(max(sizes))]


def _present(numbers: dict[str, int]) -> dict[str, int]:
    return {name: number for name, number in numbers.items() if number}


def _array_functions() -> dict[str, Any]:
    import numpy as np  # noqa: PLC0415  for grids alone

    def largest(*values: Any) -> Any:
        found = values[0]
        for value in values[1:]:
            found = max(found, value) if type(found) is type(value) is int else np.maximum(found, value)
        return found

    def chosen(sizes: Sequence[Any], values: Sequence[Any]) -> Any:
        size, found = sizes[0], values[0]
        for other, value in zip(sizes[1:], values[1:], strict=True):
            more = other > size
            if type(more) is bool:
                size, found = (other, value) if more else (size, found)
            else:
                size, found = np.where(more, other, size), np.where(more, value, found)
        return found

    return {"largest": largest, "chosen": chosen}


def _varies(value: Any) -> bool:
    if type(value) is Amount:
        return True
    if isinstance(value, str):
        return "\x02" in value
    if isinstance(value, tuple | list):
        return any(_varies(item) for item in value)
    if isinstance(value, dict):
        return any(_varies(key) or _varies(item) for key, item in value.items())
    return (
        hasattr(value, "__dataclass_fields__")
        and not isinstance(value, type)
        and any(_varies(getattr(value, name)) for name in value.__dataclass_fields__)
    )
