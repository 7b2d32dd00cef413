"""The stream of allocations and frees of a rehearsal, interned and batched for the wire."""

from __future__ import annotations

from typing import Any

from .attribution import Attribution
from .tracker import COMPONENTS
from .wire import Sender

BATCH_EVENTS = 4096


class Trace:
    """A tracker's sink that sends ``storage`` events, and a listener of phases."""

    def __init__(self, wire: Sender, attribution: Attribution) -> None:
        self._wire = wire
        self._attribution = attribution
        self._index: dict[str, int] = {}
        self._new_strings: list[str] = []
        self._batch: list[Any] = []
        self._components = [self._intern(name) for name in COMPONENTS]
        self._operators: dict[str, int] = {}

    def alloc(self, ident: int, nbytes: int, component: int, op: str) -> tuple[int, int]:
        """A storage was born. Returns the indices of its module and operator."""
        operator = self._operators.get(op)
        if operator is None:
            operator = self._operators[op] = self._intern(op.partition(".")[2].partition(".")[0] or op)
        module = self._intern(self._attribution.place_of(component))
        self.write(["a", ident, nbytes, self._components[component], module, operator])
        return module, operator

    def free(self, ident: int) -> None:
        """It died."""
        self.write(["f", ident])

    def relabel(self, ident: int, component: int) -> None:
        """It is known to be of another component."""
        self.write(["c", ident, self._components[component]])

    def phase(self, name: str, state: str, step: int) -> None:
        """A phase begins or ends."""
        self.write(["p", self._intern(name), state, step])
        if state == "end":
            self.flush()

    def flush(self) -> None:
        """Send what has gathered."""
        if self._batch:
            batch, self._batch = self._batch, []
            strings, self._new_strings = self._new_strings, []
            self._wire.send("storage", strings=strings, batch=batch)

    def component(self, component: int) -> int:
        """The index of a component's name in the table of strings."""
        return self._components[component]

    def write(self, entry: list[Any]) -> None:
        """Add one entry of the wire's form."""
        self._batch.append(entry)
        if len(self._batch) >= BATCH_EVENTS:
            self.flush()

    def _intern(self, text: str) -> int:
        index = self._index.get(text)
        if index is None:
            index = self._index[text] = len(self._index)
            self._new_strings.append(text)
        return index
