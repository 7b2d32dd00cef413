"""The trace of a rehearsal in columns: each storage from birth to death, in the order the worker told it."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from planner.allocator import Alloc, Event, Free, Mark

STILL_ALIVE = 2**62


@dataclass(frozen=True, slots=True)
class Boundary:
    """A phase begins or ends before the event with this index."""

    event: int
    name: str
    step: int
    begins: bool


class Trace:
    """Takes the worker's ``storage`` events (:mod:`probes.worker`). Entries that make no sense are counted in ``faults``.

    ``events`` has one number for each birth (the storage's row) and death (``~row``). The other columns have one entry for each
    row: ``size_bytes`` as requested, ``component``, ``module`` and ``operator`` as indices into ``strings``, and the events
    at which it was ``born`` and ``died``. A component that becomes clear later counts from the birth on.
    """

    def __init__(self) -> None:
        self.strings: list[str] = []
        self.events = array("q")
        self.size_bytes, self.born, self.died = array("q"), array("q"), array("q")
        self.component, self.module, self.operator = array("i"), array("i"), array("i")
        self.boundaries: list[Boundary] = []
        self.faults = 0
        self._row_of: dict[int, int] = {}

    def take(self, event: Mapping[str, Any]) -> None:
        """Take one ``storage`` event."""
        self.strings += map(str, event.get("strings") or ())
        for entry in event.get("batch") or ():
            try:
                self._take(entry)
            except (ValueError, TypeError, LookupError, OverflowError):
                self.faults += 1
                self._mend()

    def text(self, index: int) -> str:
        """The string of an index; empty for one that was never told."""
        return self.strings[index] if 0 <= index < len(self.strings) else ""

    def allocator_events(self) -> Iterator[Event]:
        """The trace as the allocator's simulator takes it: storages named by their rows, a mark where a phase begins."""
        begins = {boundary.event: boundary for boundary in self.boundaries if boundary.begins}
        for index, row in enumerate(self.events):
            if index in begins:
                yield Mark(_title(begins[index]))
            yield Alloc(row, self.size_bytes[row]) if row >= 0 else Free(~row)

    def _take(self, entry: Any) -> None:
        kind = entry[0]
        if kind == "a":
            self._bear(entry)
        elif kind == "f":
            row = self._row_of.pop(entry[1])
            self.died[row] = len(self.events)
            self.events.append(~row)
        elif kind == "c":
            self.component[self._row_of[entry[1]]] = entry[2]
        elif kind == "p":
            self.boundaries.append(Boundary(len(self.events), self.strings[entry[1]], int(entry[3]), entry[2] == "begin"))
        else:
            self.faults += 1

    def _bear(self, entry: Any) -> None:
        _, ident, size, component, module, operator = entry
        if size <= 0 or ident in self._row_of:
            raise ValueError(entry)
        row = len(self.size_bytes)
        self.size_bytes.append(size)
        self.component.append(component)
        self.module.append(module)
        self.operator.append(operator)
        self.born.append(len(self.events))
        self.died.append(STILL_ALIVE)
        self._row_of[ident] = row
        self.events.append(row)

    def _mend(self) -> None:
        """Drop the half of a row that an entry left."""
        columns = (self.size_bytes, self.component, self.module, self.operator, self.born, self.died)
        rows = min(map(len, columns))
        for column in columns:
            del column[rows:]


def _title(boundary: Boundary) -> str:
    return f"{boundary.name} {boundary.step}" if boundary.step else boundary.name
