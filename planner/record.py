"""Frozen dataclasses that cost nothing until they are used.

``dataclasses.dataclass`` compiles six methods for every class when it is defined, about a millisecond each; a start
defines a hundred such classes and uses a dozen. ``record`` puts that off until the first instance, or the first look at
the fields. What results is the same frozen dataclass (without slots, which would have to be known at the definition).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar, dataclass_transform

Class = TypeVar("Class")
FIELDS = "__dataclass_fields__"


class _Pending:
    """Stands where the fields will be, and makes the class a dataclass when somebody asks for them."""

    def __get__(self, instance: object, owner: type) -> Any:
        _finish(next(cls for cls in owner.__mro__ if cls.__dict__.get(FIELDS) is self))
        return getattr(owner, FIELDS)


def _finish(cls: Any) -> None:
    if isinstance(cls.__dict__[FIELDS], _Pending):
        del cls.__init__, cls.__dataclass_fields__
        dataclass(frozen=True)(cls)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[Class]) -> type[Class]:
    """Make ``cls`` a frozen dataclass, at its first use."""
    made: Any = cls

    def first(self: object, *args: object, **kwargs: object) -> None:
        _finish(cls)
        made.__init__(self, *args, **kwargs)

    made.__init__ = first
    setattr(made, FIELDS, _Pending())
    return cls
