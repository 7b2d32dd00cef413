"""JSON from strangers: bounded before it is parsed, and refused with the path of the field that is wrong.

Beyond what ``json`` refuses: repeated keys, NaN, numbers that overflow, lone surrogates, depth, size and item count.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from planner.faults import Fault, Faults

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Limits:
    """What a document may cost. An item is a member or an element; ten of them take about a kilobyte parsed."""

    max_bytes: int
    max_items: int
    max_depth: int = 64


CONFIG = Limits(max_bytes=4 * MIB, max_items=200_000)
"""``config.json`` and the like: the largest known (per-layer block lists) are under 100 KB."""
INDEX = Limits(max_bytes=32 * MIB, max_items=300_000)
"""Tensor tables: ``model.safetensors.index.json`` of a 1T mixture of experts has 140,000 entries in 14 MB."""


class _Repeated(dict[str, object]):
    """An object some key of which came twice."""

    key = ""


class _BadNumber(float):
    """NaN, or a number too large to hold."""


def parse_object(data: bytes, label: str, limits: Limits = CONFIG, *, infinity: bool = False) -> dict[str, object]:
    """The JSON object in ``data``; ``label`` (a file name) leads the path of every fault. Raises :class:`Faults`.

    ``infinity`` lets the literal through: configs of state-space models write it (``time_step_limit``).
    """
    value = parse(data, label, limits, infinity=infinity)
    if not isinstance(value, dict):
        _refuse(label, f"must hold a JSON object, got {type(value).__name__}")
    return value


def parse(data: bytes, label: str, limits: Limits = CONFIG, *, infinity: bool = False) -> object:
    """The JSON value in ``data``, under ``limits``. Raises :class:`Faults`."""
    if len(data) > limits.max_bytes:
        _refuse(label, f"must be at most {limits.max_bytes} bytes, got {len(data)}")
    if data.count(b",") + data.count(b"[") + data.count(b"{") > limits.max_items:
        _refuse(label, f"must hold at most {limits.max_items} items")
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
    except UnicodeDecodeError as error:
        _refuse(label, f"is not UTF-8 (byte {error.start})")
    except RecursionError:
        _refuse(label, f"is nested deeper than {limits.max_depth} levels")
    except json.JSONDecodeError as error:
        _refuse(label, f"is not JSON: {error.msg} (line {error.lineno}, column {error.colno})")
    except ValueError:
        _refuse(label, "holds a number of more digits than can be read")
    _check(value, label, limits.max_depth, infinity=infinity, surrogates="\\u" in text)
    return value


def read_object(path: Path, limits: Limits = CONFIG, *, infinity: bool = False) -> dict[str, object]:
    """The JSON object in a regular file. Raises :class:`Faults` when it can't be read."""
    return parse_object(read_bytes(path, limits.max_bytes), path.name, limits, infinity=infinity)


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """A regular file of at most ``max_bytes``, whole. Raises :class:`Faults`; pipes and devices are never opened."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            _refuse(path.name, "is not a file")
        if found.st_size > max_bytes:
            _refuse(path.name, f"must be at most {max_bytes} bytes, got {found.st_size}")
        with path.open("rb") as file:
            return file.read(max_bytes)
    except (OSError, ValueError) as error:
        if isinstance(error, Faults):
            raise
        _refuse(path.name, f"can't be read: {getattr(error, 'strerror', None) or error}")


def shown(key: str) -> str:
    """A key as a path shows it: short, and printable on any terminal."""
    plain = key.encode("utf-8", "backslashreplace").decode("utf-8")
    if plain.isprintable() and len(plain) <= 80:
        return plain
    printable = "".join(letter if letter.isprintable() else "�" for letter in plain[:81])
    return printable if len(printable) <= 80 else printable[:77] + "..."


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    repeated = _Repeated(found)
    repeated.key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    return repeated


def _constant(name: str) -> float:
    return _BadNumber("nan") if name == "NaN" else float(name.lower())


def _float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _BadNumber("nan")


def _check(value: object, label: str, max_depth: int, *, infinity: bool, surrogates: bool) -> None:
    faults: list[Fault] = []
    stack: list[tuple[object, _Place, int]] = [(value, None, 1)]
    while stack and len(faults) < 10:
        item, place, depth = stack.pop()
        if depth > max_depth:
            _refuse(_path(label, place), f"is nested deeper than {max_depth} levels")
        if isinstance(item, _Repeated):
            faults.append(Fault(_path(label, (place, item.key)), "is given twice"))
        for key, child in _children(item):
            if isinstance(child, dict | list):
                stack.append((child, (place, key), depth + 1))
            elif isinstance(child, float) and not math.isfinite(child) and (isinstance(child, _BadNumber) or not infinity):
                faults.append(Fault(_path(label, (place, key)), "must be a finite number"))
            if surrogates and not (_is_text(child) and _is_text(key)):
                faults.append(Fault(_path(label, (place, key)), "must be valid Unicode"))
    if isinstance(value, float) and not math.isfinite(value):
        faults.append(Fault(label, "must be a finite number"))
    if faults:
        raise Faults(faults)


_Place = tuple[Any, str | int] | None
"""Where a value stands: its container's place and its key there. Spelled out only for a fault."""


def _children(item: object) -> Iterator[tuple[str | int, object]]:
    if isinstance(item, dict):
        yield from item.items()
    elif isinstance(item, list):
        yield from enumerate(item)


def _is_text(value: object) -> bool:
    if not isinstance(value, str) or value.isascii():
        return True
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _path(label: str, place: _Place) -> str:
    keys: list[str | int] = []
    while place is not None:
        place, key = place
        keys.append(key)
    path = ""
    for key in reversed(keys[-20:]):
        path += f"[{key}]" if isinstance(key, int) else f".{shown(key)}"
    return f"{label}:{path.removeprefix('.')}"


def _refuse(path: str, message: str) -> NoReturn:
    raise Faults([Fault(path, message)])
