"""Frozen dataclasses that cost next to nothing until they are used.

``dataclasses.dataclass`` compiles six methods for every class when it is defined, about a millisecond each time; a start
defines a hundred such classes and uses a dozen. A record shares its methods with all others; its ``__init__`` is
compiled at the first instance, its fields are told when somebody asks (``dataclasses.fields``, ``replace``, ``asdict``).
To a reader, a type checker and the functions of ``dataclasses`` it is a frozen dataclass, without slots.
"""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING, Field, FrozenInstanceError, field
from types import CodeType, FunctionType
from typing import Any, TypeVar, dataclass_transform

Class = TypeVar("Class")
FIELDS = "__dataclass_fields__"
OWN = "_record_names"


class _Pending:
    """Stands where the fields will be, and has them read when somebody asks for them."""

    def __get__(self, instance: object, owner: type) -> Any:
        found = next(cls for cls in owner.__mro__ if cls.__dict__.get(FIELDS) is self)
        _tell_fields(found)
        return getattr(owner, FIELDS)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[Class]) -> type[Class]:
    """Make ``cls`` a frozen dataclass."""
    made: Any = cls

    def first(self: object, *args: object, **kwargs: object) -> None:
        if made.__dict__["__init__"] is first:
            made.__init__ = _init_of(made)
        made.__init__(self, *args, **kwargs)

    made.__init__ = first
    for name, method in _METHODS.items():
        if name not in made.__dict__ or (name == "__hash__" and made.__dict__[name] is None):
            setattr(made, name, method)
    setattr(made, FIELDS, _Pending())
    return cls


def _tell_fields(cls: Any) -> None:
    """Let ``dataclasses`` read the fields; it finds defaults where the class body left them, and compiles nothing."""
    delattr(cls, FIELDS)
    dataclasses.dataclass(init=False, repr=False, eq=False, match_args=False)(cls)


def _names_of(cls: Any) -> tuple[str, ...]:
    """The fields of a class and of those it derives from, in order."""
    names: dict[str, None] = {}
    for base in reversed(cls.__mro__):
        if FIELDS in base.__dict__:
            names |= dict.fromkeys(
                name for name, kind in vars(base).get("__annotations__", {}).items() if "ClassVar" not in str(kind)
            )
    return tuple(names)


def _specifier(cls: Any, name: str) -> Any:
    """What a class body says of a field: a value, a ``field(…)``, or nothing."""
    for base in cls.__mro__:
        if name in vars(base).get("__annotations__", {}):
            told = base.__dict__.get(FIELDS)
            return told[name] if isinstance(told, dict) else base.__dict__.get(name, MISSING)
    return MISSING


def _init_of(cls: Any) -> FunctionType:
    """``__init__``, which puts each argument where it belongs."""
    space: dict[str, Any] = {"MISSING": MISSING}
    signature, lines = [], []
    compared, hashed = [], []
    names = _names_of(cls)
    for name in names:
        told = _specifier(cls, name)
        found = told if isinstance(told, Field) else None
        default = told if found is None else found.default
        value = name
        if found is not None and found.default_factory is not MISSING:
            space[f"make_{name}"] = found.default_factory
            signature.append(f"{name}=MISSING")
            value = f"make_{name}() if {name} is MISSING else {name}"
        elif default is MISSING:
            signature.append(name)
        else:
            space[f"default_{name}"] = default
            signature.append(f"{name}=default_{name}")
        lines.append(f"held[{name!r}] = {value}")
        compare = found is None or found.compare
        compared += [name] * compare
        hashed += [name] * (compare if found is None or found.hash is None else found.hash)
    after = ["self.__post_init__()"] if hasattr(cls, "__post_init__") else []
    body = "\n  ".join(["held = self.__dict__", *lines, *after])
    module = compile(
        f"def make({', '.join(space)}):\n def __init__(self, {', '.join(signature)}):\n  {body}\n return __init__",
        cls.__name__,
        "exec",
    )
    made = FunctionType(next(one for one in module.co_consts if isinstance(one, CodeType)), {})
    every = len(compared) == len(hashed) == len(names)
    setattr(cls, OWN, None if every else (tuple(compared), tuple(hashed)))
    init: FunctionType = made(**space)
    init.__qualname__ = f"{cls.__qualname__}.__init__"
    return init


def _eq(self: Any, other: object) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    own = getattr(self, OWN)
    if own is None:
        return tuple(self.__dict__.values()) == tuple(other.__dict__.values())
    return all(self.__dict__[name] == other.__dict__[name] for name in own[0])


def _hash(self: Any) -> int:
    own = getattr(self, OWN)
    return hash(tuple(self.__dict__.values()) if own is None else tuple([self.__dict__[name] for name in own[1]]))


def _repr(self: Any) -> str:
    shown = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
    return f"{type(self).__qualname__}({shown})"


def _setattr(self: object, name: str, value: object) -> None:  # noqa: ARG001  every __setattr__'s
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _delattr(self: object, name: str) -> None:  # noqa: ARG001  likewise
    raise FrozenInstanceError(f"cannot delete field {name!r}")


_METHODS = {"__eq__": _eq, "__hash__": _hash, "__repr__": _repr, "__setattr__": _setattr, "__delattr__": _delattr}
