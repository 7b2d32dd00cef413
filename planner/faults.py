"""Strict reading of JSON-like values: every fault with the path of its field, all of them at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from planner.record import record


@record
class Fault:
    """One thing wrong with an input. ``path`` is dotted (``inference.batch``), empty for the whole document."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class Faults(ValueError):
    """An input was refused; ``faults`` names every field that is wrong."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


class Reader:
    """Typed getters over one JSON object. A bad value is noted under its path and replaced by the default.

    Child readers share the list of faults, so that ``raise_faults`` on any of them reports all.
    """

    def __init__(self, value: object, path: str = "", faults: list[Fault] | None = None) -> None:
        self.path = path
        self.faults: list[Fault] = [] if faults is None else faults
        self._seen: set[str] = set()
        if isinstance(value, Mapping):
            self._value: Mapping[str, object] = value
        else:
            self._value = {}
            self.faults.append(Fault(path, f"must be an object, got {describe(value)}"))

    def fault(self, key: str, message: str) -> None:
        """Note a fault at ``key`` of this object."""
        self.faults.append(Fault(self._at(key), message))

    def has(self, key: str) -> bool:
        """Whether the object has ``key`` with a value other than null."""
        return self._value.get(key) is not None

    def names(self) -> tuple[str, ...]:
        """The keys of the object that are strings, in order."""
        return tuple(key for key in self._value if isinstance(key, str))

    def raw(self, key: str) -> object:
        """The value as it stands, or None."""
        self._seen.add(key)
        return self._value.get(key)

    def integer(self, key: str, default: int, *, minimum: int = 0, maximum: int = 2**53) -> int:
        """An integer within [minimum, maximum]."""
        found = self.optional_integer(key, minimum=minimum, maximum=maximum)
        return default if found is None else found

    def optional_integer(self, key: str, *, minimum: int = 0, maximum: int = 2**53) -> int | None:
        """Like :meth:`integer`; absent or null is None."""
        value = self.raw(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            self.fault(key, f"must be a whole number, got {describe(value)}")
        elif value < minimum:
            self.fault(key, f"must be at least {minimum}, got {value}")
        elif value > maximum:
            self.fault(key, f"must be at most {maximum}, got {describe(value)}")
        else:
            return value
        return None

    def number(self, key: str, default: float, *, minimum: float, maximum: float) -> float:
        """A finite number within [minimum, maximum]."""
        value = self.raw(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self.fault(key, f"must be a finite number, got {describe(value)}")
        elif not minimum <= value <= maximum:
            self.fault(key, f"must be between {minimum:g} and {maximum:g}, got {describe(value)}")
        else:
            return float(value)
        return default

    def choice(self, key: str, default: str, allowed: Iterable[str]) -> str:
        """One of ``allowed``; the fault suggests the nearest."""
        value = self.raw(key)
        names = tuple(allowed)
        if value is None:
            return default
        if isinstance(value, str) and value in names:
            return value
        self.fault(key, f"must be one of {', '.join(names)}; got {describe(value)}{nearest(value, names)}")
        return default

    def boolean(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fault(key, f"must be true or false, got {describe(value)}")
            return default
        return value

    def string(self, key: str, default: str = "") -> str:
        """A string of at most 4096 characters."""
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, str) or not value or len(value) > 4096:
            self.fault(key, f"must be a non-empty string, got {describe(value)}")
            return default
        return value

    def strings(self, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
        """A non-empty list of non-empty strings."""
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, list | tuple) or not value or not all(isinstance(item, str) and item for item in value):
            self.fault(key, f"must be a list of names, got {describe(value)}")
            return default
        return tuple(value)

    def integers(self, key: str, *, minimum: int, maximum: int) -> tuple[int, ...]:
        """A non-empty list of whole numbers between two bounds; nothing when it is not given."""
        value = self.raw(key)
        if value is None:
            return ()
        items = value if isinstance(value, list | tuple) else ()
        if not items or not all(type(item) is int and minimum <= item <= maximum for item in items):
            self.fault(key, f"must be a list of whole numbers of at least {minimum}, got {describe(value)}")
            return ()
        return tuple(items)

    def child(self, key: str) -> Reader:
        """A reader of the object at ``key``; absent or null reads as empty."""
        value = self.raw(key)
        return Reader({} if value is None else value, self._at(key), self.faults)

    def refuse_unknown(self, known: Iterable[str] = ()) -> None:
        """Note every key that no getter asked for and that is not ``known``: with the nearest of those, else with all."""
        names = {*self._seen, *known}
        for key in self._value:
            if key not in names:
                instead = nearest(key, names) or f"; known here: {', '.join(sorted(names)) or 'none'}"
                self.fault(str(key), f"unknown key{instead}")

    def raise_faults(self) -> None:
        """Raise :class:`Faults` if any was noted."""
        if self.faults:
            raise Faults(self.faults)

    def _at(self, key: str) -> str:
        shown = key if len(key) <= 80 else key[:77] + "..."
        return f"{self.path}.{shown}" if self.path else shown


def describe(value: object) -> str:
    """A value as an error shows it: short, quoted, never megabytes."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    text = {True: "true", False: "false", None: "null"}.get(value) if value is None or isinstance(value, bool) else repr(value)
    shown = text or ""
    return shown if len(shown) <= 60 else shown[:57] + "..."


def nearest(value: object, names: Iterable[str]) -> str:
    """``; did you mean …?`` when a close name exists, else nothing."""
    if not isinstance(value, str):
        return ""
    import difflib  # noqa: PLC0415  for faults alone

    found = difflib.get_close_matches(value[:200], list(names), n=1)
    return f" (did you mean {found[0]}?)" if found else ""
