"""What happens to storages while one layer runs, written down so that it can be said again of another layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from .attribution import Attribution
from .tracker import Storage, StorageTracker

Name = tuple[Any, ...]
"""A storage as seen from a layer: its number among the births of a window, or its part in the call."""
Entry = tuple[Any, ...]
"""("a", bytes, component, operator, inside, module), ("f", name) or ("c", name, component)."""


class Events(Protocol):
    """Hears of storages in program order."""

    def alloc(self, ident: int, nbytes: int, component: int, op: str) -> Any:
        """A storage was born."""

    def free(self, ident: int) -> None:
        """It died."""

    def relabel(self, ident: int, component: int) -> None:
        """It is known to be of another component."""


class Window:
    """The events while a layer's forward ("forward") or backward ("backward") runs.

    ``names`` are those of storages that live before, and, at the end, of those that live after. Deaths of what the layer was
    only lent (``lent``) are left out: they come where the last holder lets go.
    """

    def __init__(self, kind: str, path: str, names: dict[int, Name]) -> None:
        self.names = names
        self.events: list[Entry] = []
        self._kind = kind
        self._path = path
        self._born = 0

    def alloc(self, ident: int, nbytes: int, component: int, op: str, module: str) -> None:
        """A storage was born."""
        self.names[ident] = (self._kind, self._born)
        self._born += 1
        self.events.append(("a", nbytes, component, op, *_relative(module, self._path)))

    def free(self, ident: int) -> None:
        """It died."""
        name = self.names.pop(ident, UNKNOWN)
        if name[0] != "lent":
            self.events.append(("f", name))

    def relabel(self, ident: int, component: int) -> None:
        """It is known to be of another component."""
        self.events.append(("c", self.names.get(ident, UNKNOWN), component))

    @property
    def is_closed(self) -> bool:
        """Whether every storage in it is known."""
        return not any(event[1] is UNKNOWN for event in self.events)


UNKNOWN: Name = ("unknown",)


class WindowSink:
    """A sink between the tracker and the next one that also fills the open window."""

    def __init__(self, inner: Events, attribution: Attribution) -> None:
        self.inner = inner
        self.window: Window | None = None
        self.between: Callable[[int], None] = lambda _ident: None
        """Hears of deaths while no window is open."""
        self._attribution = attribution

    def alloc(self, ident: int, nbytes: int, component: int, op: str) -> None:
        """A storage was born."""
        self.inner.alloc(ident, nbytes, component, op)
        if self.window is not None:
            self.window.alloc(ident, nbytes, component, op, self._attribution.module)

    def free(self, ident: int) -> None:
        """It died."""
        self.inner.free(ident)
        if self.window is not None:
            self.window.free(ident)
        else:
            self.between(ident)

    def relabel(self, ident: int, component: int) -> None:
        """It is known to be of another component."""
        self.inner.relabel(ident, component)
        if self.window is not None:
            self.window.relabel(ident, component)


@dataclass
class Writer:
    """Says a window's events again, of the layer at ``path``; ``storages`` are those it knows, by name."""

    tracker: StorageTracker
    attribution: Attribution
    path: str
    storages: dict[Name, Storage]

    def write(self, kind: str, events: tuple[Entry, ...]) -> None:
        """Write the events. Afterwards ``storages`` has what was born and lives."""
        attribution, path, storages = self.attribution, self.path, self.storages
        bear, bury = self.tracker.bear, self.tracker.bury
        born = 0
        for event in events:
            if event[0] == "a":
                _, nbytes, component, op, inside, module = event
                attribution.module = path + module if inside else module
                storages[kind, born] = bear(nbytes, component, op)
                born += 1
            elif event[0] == "f":
                bury(storages.pop(event[1]))
            else:
                self.tracker.recast(storages[event[1]], event[2])


def _relative(module: str, path: str) -> tuple[bool, str]:
    """Whether the module is inside the layer at ``path``, and the rest of its own path."""
    if module == path or module.startswith(path + "."):
        return True, module[len(path) :]
    return False, module
