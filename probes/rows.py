"""Rows: how a recording holds its many samples. Events of one form are written as rows of numbers, and read as columns.

A line ``{"event":"rows","id":3,"like":{…},"columns":[[["t"],6],[["allocated"],0]]}`` declares a form: ``like`` is the event
with its numbers left out, each column is the path of a number and its decimals. From then on a line ``[3,1050000,512]`` is
such an event: its numbers as integers, shifted by their decimals. A form that is met twenty times a second is declared once.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Event = dict[str, Any]
Path = tuple[str | int, ...]
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

SAMPLED = ("memory", "sample")
"""The events that come by the thousand."""
FORM_EVENT = "rows"
RANK = "rank"
"""The event that wraps what another rank said, and its field with the rank's number: a form is of one rank."""
DECIMALS = 6
_UNIT = 10**DECIMALS
_LARGEST = 2**62
_MAX_COLUMNS = 4096
_MAX_FORMS = 1000
"""Texts that never repeat would declare a form each; beyond this they are written as events."""
_NEWLINE, _OPEN, _CLOSE, _COMMA, _SPACE = b"\n[], "


@dataclass(frozen=True)
class Form:
    """What the events of one kind of row have in common."""

    id: int
    like: Event
    columns: tuple[tuple[Path, int], ...]

    @property
    def kind(self) -> str:
        """The name of the event."""
        return str(self.like.get("event"))

    def to_json(self) -> Event:
        """The line that declares it."""
        columns = [[list(path), decimals] for path, decimals in self.columns]
        return {"event": FORM_EVENT, "id": self.id, "like": self.like, "columns": columns}

    def event(self, values: Sequence[int]) -> Event:
        """The event of one row."""
        event = deepcopy(self.like)
        for (path, decimals), value in zip(self.columns, values, strict=True):
            _put(event, path, value / 10**decimals if decimals else value)
        return event


def is_event(value: object) -> bool:
    """Whether it has a name, a time if any, and of a rank an event of its own."""
    if not isinstance(value, dict) or not isinstance(value.get("event"), str):
        return False
    t = value.get("t", 0.0)
    timed = isinstance(t, int | float) and not isinstance(t, bool) and abs(t) <= sys.float_info.max
    return timed and (value["event"] != "rank" or (is_event(value.get("of")) and isinstance(value.get("rank"), int)))


def read_form(line: Mapping[str, Any]) -> Form | None:
    """The form a line declares; None when it makes no sense."""
    try:
        columns = tuple((tuple(path), int(decimals)) for path, decimals in line["columns"])
        form = Form(int(line["id"]), dict(line["like"]), columns)
        # First: ten to the power of what a broken file says may never end.
        if not 0 <= form.id < _MAX_FORMS or len(columns) > _MAX_COLUMNS or any(not 0 <= each <= DECIMALS for _, each in columns):
            return None
        if not is_event(form.event([0] * len(columns))):
            return None
        if form.kind == RANK:
            int(form.like[RANK]), dict(form.like["of"])
        hash(columns)
    except (LookupError, TypeError, ValueError, OverflowError):
        return None
    return form


class RowWriter:
    """Turns sampled events into rows; remembers the forms it has declared."""

    def __init__(self) -> None:
        self._forms: dict[str, Form] = {}

    def lines(self, event: Mapping[str, object]) -> bytes | None:
        """The line of a sampled event, with the declaration before it the first time; None for what is no row."""
        if not _is_sampled(event):
            return None
        numbers: list[tuple[Path, int, int]] = []
        try:
            like = _without_numbers({key: value for key, value in event.items() if key != RANK}, (), numbers)
        except _NoRow:
            return None
        if RANK in event:
            like[RANK] = event[RANK]
        key = json.dumps([like, [(path, decimals) for path, decimals, _ in numbers]])
        form = self._forms.get(key)
        declaration = b""
        if form is None:
            if not numbers or len(self._forms) >= _MAX_FORMS:
                return None
            columns = tuple((path, decimals) for path, decimals, _ in numbers)
            form = self._forms[key] = Form(len(self._forms), like, columns)
            declaration = json.dumps(form.to_json(), separators=(",", ":")).encode("ascii") + b"\n"
        row = ",".join(map(str, (form.id, *(value for *_, value in numbers))))
        return declaration + f"[{row}]\n".encode("ascii")


def _is_sampled(event: Mapping[str, object]) -> bool:
    """Whether it comes by the thousand: from this process or, as what a rank said, from another."""
    said = event.get("of") if event.get("event") == RANK else event
    return isinstance(said, Mapping) and said.get("event") in SAMPLED


class _NoRow(Exception):
    """An event holds a number that a row can't."""


def _without_numbers(value: Any, path: Path, numbers: list[tuple[Path, int, int]]) -> Any:
    """A copy with None for each number; the numbers go to ``numbers``. Raises :class:`_NoRow` for one that does not fit."""
    if isinstance(value, dict):
        return {str(key): _without_numbers(item, (*path, key), numbers) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_numbers(item, (*path, index), numbers) for index, item in enumerate(value)]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    decimals, shifted = _shifted(value)
    numbers.append((path, decimals, shifted))
    return None


def _shifted(value: float) -> tuple[int, int]:
    """A number's decimals, and the number without its point. Raises :class:`_NoRow` for one that does not fit.

    Integers have no −0, so that −0.0 does not fit either.
    """
    if not abs(value) < _LARGEST:
        raise _NoRow
    if isinstance(value, int):
        return 0, value
    shifted = round(value * _UNIT)
    if abs(shifted) >= _LARGEST or shifted / _UNIT != value or (not shifted and math.copysign(1.0, value) < 0):
        raise _NoRow
    return DECIMALS, shifted


def _put(event: Any, path: Path, value: float) -> None:
    for key in path[:-1]:
        event = event[key]
    event[path[-1]] = value


@dataclass(frozen=True)
class Part:
    """Rows of one form: their places among all rows of the run, and one column for each of the form's."""

    form: Form
    order: Integers
    values: Integers


@dataclass(frozen=True)
class Columns:
    """All events of one kind in a run of rows. ``values`` by path, NaN where a row has none; ``form_of`` indexes ``forms``."""

    values: Mapping[Path, Floats]
    forms: Sequence[Form]
    form_of: Integers

    def __len__(self) -> int:
        return len(self.form_of)

    def column(self, *path: str | int) -> Floats:
        """The column of a path, NaN throughout where there is none."""
        return self.values.get(path, np.full(len(self), np.nan))

    def text(self, name: str) -> tuple[list[str], Integers]:
        """A text field: its values, and for every row which of them it has."""
        texts = [str(form.like.get(name) or "") for form in self.forms]
        names = list(dict.fromkeys(texts))
        return names, np.array([names.index(text) for text in texts])[self.form_of]


@dataclass
class RowRun:
    """Rows that follow one another, without another event between them."""

    parts: list[Part] = field(default_factory=list)
    length: int = 0

    def add(self, parts: Sequence[Part], length: int) -> None:
        """Append rows whose order counts from 0."""
        self.parts += [Part(part.form, part.order + self.length, part.values) for part in parts]
        self.length += length

    def events(self) -> list[Event]:
        """Every row as the event it was, in order."""
        rows = [
            (order, part.form, row)
            for part in self.parts
            for order, row in zip(part.order.tolist(), part.values.tolist(), strict=True)
        ]
        rows.sort(key=lambda row: row[0])
        return [form.event(values) for _, form, values in rows]

    def thinned(self, limit: int) -> list[Event]:
        """At most about ``limit`` rows as events, in order, those among them at which a column is highest; all if they are few."""
        if self.length <= limit:
            return self.events()
        chosen = RowRun()
        for part in self.parts:
            rows = _peak_rows(part.values, max(1, limit * len(part.order) // self.length))
            chosen.parts.append(Part(part.form, part.order[rows], part.values[rows]))
        return chosen.events()

    def ranks(self) -> dict[int, RowRun]:
        """What each other rank said, as rows of its own events at the time at which they were heard."""
        found: dict[int, RowRun] = {}
        for part in self.parts:
            if part.form.kind == RANK:
                run = found.setdefault(int(part.form.like[RANK]), RowRun(length=self.length))
                run.parts.append(_said(part))
        return found

    def columns(self, kind: str) -> Columns | None:
        """The events called ``kind`` as columns in order; None without any."""
        parts = [part for part in self.parts if part.form.kind == kind]
        if not parts:
            return None
        order = np.argsort(np.concatenate([part.order for part in parts]), kind="stable")
        paths = dict.fromkeys(path for part in parts for path, _ in part.form.columns)
        values = {path: np.concatenate([_column(part, path) for part in parts])[order] for path in paths}
        forms = list({part.form.id: part.form for part in parts}.values())
        index = {form.id: number for number, form in enumerate(forms)}
        form_of = np.concatenate([np.full(len(part.order), index[part.form.id]) for part in parts])[order]
        return Columns(values, forms, form_of)


def _said(part: Part) -> Part:
    """Rows of a wrapped event as rows of the event itself."""
    inner = [
        (index, path if path == ("t",) else path[1:], decimals)
        for index, (path, decimals) in enumerate(part.form.columns)
        if path == ("t",) or (path[0] == "of" and path != ("of", "t"))
    ]
    form = Form(part.form.id, part.form.like["of"], tuple((path, decimals) for _, path, decimals in inner))
    return Part(form, part.order, part.values[:, [index for index, _, _ in inner]])


def _peak_rows(values: Integers, limit: int) -> NDArray[np.intp]:
    """Rows at which a column is highest within its stretch, stretches being as long as ``limit`` makes them."""
    count, columns = values.shape
    width = -(-count * columns // limit)
    whole = count // width
    starts = np.arange(whole) * width
    highest = [starts + values[: whole * width, column].reshape(whole, width).argmax(axis=1) for column in range(columns)]
    return np.unique(np.concatenate([*highest, [count - 1]]))


def _column(part: Part, path: Path) -> Floats:
    for index, (found, decimals) in enumerate(part.form.columns):
        if found == path:
            column: Floats = part.values[:, index].astype(np.float64)
            return column / 10**decimals if decimals else column
    return np.full(len(part.order), np.nan)


def read_rows(data: bytes, forms: Mapping[int, Form]) -> tuple[list[Part], int, int]:
    """Rows from whole lines that all begin with ``[``: parts, how many rows, how many lines are none of a known form."""
    buffer = np.frombuffer(data, np.uint8)
    starts, commas = _starts(buffer), np.flatnonzero(buffer == _COMMA)
    flat = _numbers(buffer, starts, len(commas))
    if flat is None:
        return _read_one_by_one(lines_of(data), forms)
    first = np.searchsorted(commas, starts) + np.arange(len(starts))
    lengths = np.diff(np.append(first, len(flat)))
    parts: list[Part] = []
    kinds = flat[first]
    for kind in np.flatnonzero(np.bincount(kinds[(kinds >= 0) & (kinds < _MAX_FORMS)])).tolist():
        form = forms.get(kind)
        if form is not None:
            order = np.flatnonzero((kinds == kind) & (lengths == len(form.columns) + 1))
            parts.append(Part(form, order, flat[first[order, None] + np.arange(1, len(form.columns) + 1)]))
    return parts, len(starts), len(starts) - sum(len(part.order) for part in parts)


def _numbers(buffer: NDArray[np.uint8], starts: NDArray[np.intp], commas: int) -> Integers | None:
    """Every number of the lines in one go; None when they hold anything else."""
    ends = np.append(starts[1:], len(buffer)) - 1
    text = buffer.copy()
    if text[-1] != _NEWLINE or (text[ends - 1] != _CLOSE).any():
        return None
    text[starts], text[ends], text[ends - 1] = _SPACE, _SPACE, _COMMA
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        try:
            flat = np.fromstring(text[:-2].tobytes(), dtype=np.int64, sep=",")
        except (ValueError, DeprecationWarning):
            return None
    return flat if len(flat) == commas + len(starts) else None


def _read_one_by_one(lines: Sequence[bytes], forms: Mapping[int, Form]) -> tuple[list[Part], int, int]:
    rows: dict[int, tuple[Form, list[int], list[list[int]]]] = {}
    for order, line in enumerate(lines):
        form, values = _row(line, forms)
        if form is not None:
            _, orders, matrix = rows.setdefault(form.id, (form, [], []))
            orders.append(order)
            matrix.append(values)
    parts = [Part(form, np.array(orders), np.array(matrix, dtype=np.int64)) for form, orders, matrix in rows.values()]
    return parts, len(lines), len(lines) - sum(len(part.order) for part in parts)


def _row(line: bytes, forms: Mapping[int, Form]) -> tuple[Form | None, list[int]]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None, []
    sane = isinstance(row, list) and all(type(value) is int and abs(value) < 2**63 for value in row)
    form = forms.get(row[0]) if sane and row else None
    return (form, row[1:]) if form is not None and len(row) == len(form.columns) + 1 else (None, [])


def lines_of(data: bytes) -> list[bytes]:
    """The lines of some bytes, without their ends."""
    return data.removesuffix(b"\n").split(b"\n")


def row_runs(data: bytes) -> Iterator[tuple[bool, bytes]]:
    """Whole lines cut into stretches: (whether they are rows, the bytes)."""
    buffer = np.frombuffer(data, np.uint8)
    starts = _starts(buffer)
    are_rows = buffer[starts] == _OPEN
    changes = np.concatenate(([0], starts[1:][are_rows[1:] != are_rows[:-1]], [len(data)]))
    rows = bool(are_rows[0])
    for begin, end in pairwise(changes.tolist()):
        yield rows, data[begin:end]
        rows = not rows


def _starts(buffer: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Where each line begins; what follows the last line end is a line too."""
    starts = np.concatenate(([0], np.flatnonzero(buffer == _NEWLINE) + 1))
    return starts[starts < len(buffer)]
