"""What is worked out when somebody looks: parts of an answer that most readers never open."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar, overload

Item = TypeVar("Item")
Key = TypeVar("Key")


class LaterSequence(Sequence[Item], Generic[Item]):
    """A tuple that is made by ``make`` at the first look."""

    __slots__ = ("_found", "_make")

    def __init__(self, make: Callable[[], Sequence[Item]]) -> None:
        self._make = make
        self._found: Sequence[Item] | None = None

    def _items(self) -> Sequence[Item]:
        if self._found is None:
            self._found = tuple(self._make())
        return self._found

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        return self._items()[index]

    def __len__(self) -> int:
        return len(self._items())

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items())

    def __eq__(self, other: object) -> bool:
        return tuple(self._items()) == (tuple(other) if isinstance(other, Sequence) else other)

    def __hash__(self) -> int:
        return hash(tuple(self._items()))

    def __repr__(self) -> str:
        return repr(self._items())


class LaterMapping(Mapping[Key, Item], Generic[Key, Item]):
    """A mapping that is made by ``make`` at the first look."""

    __slots__ = ("_found", "_make")

    def __init__(self, make: Callable[[], Mapping[Key, Item]]) -> None:
        self._make = make
        self._found: Mapping[Key, Item] | None = None

    def _items(self) -> Mapping[Key, Item]:
        if self._found is None:
            self._found = self._make()
        return self._found

    def __getitem__(self, key: Key) -> Item:
        return self._items()[key]

    def __len__(self) -> int:
        return len(self._items())

    def __iter__(self) -> Iterator[Key]:
        return iter(self._items())

    def __hash__(self) -> int:
        return hash(frozenset(self._items().items()))

    def __repr__(self) -> str:
        return repr(self._items())
