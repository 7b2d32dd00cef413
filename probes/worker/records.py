"""What layers did, as values that can be compared and said again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from .kinds import Member
from .segments import Entry, Name
from .tracker import Storage
from .trees import Tree


class FoldError(Exception):
    """Layers were written from a record that the layers after them did not confirm."""


@dataclass(frozen=True)
class Forward:
    """What a call did: events, its result, the cache entries it changed, and what of its input and results the graph keeps.

    Of several results that require gradients only the first may be used; the others are such as attention scores.
    """

    events: tuple[Entry, ...]
    out: Tree
    changes: tuple[tuple[tuple[int, Any], Tree], ...]
    asked: frozenset[tuple[bool, str]]
    kept: frozenset[Name] = frozenset()


@dataclass(frozen=True)
class Backward:
    """What its backward did: events, the gradient it passes on, and the gradients its parameters then have."""

    events: tuple[Entry, ...]
    gradient: Tree
    gradients: tuple[Tree, ...]
    asked: frozenset[tuple[bool, str]]


@dataclass
class Traced:
    """A traced call that takes part in a graph: what its backward is recognised by. It holds no tensors."""

    member: Member
    key: Any
    names: dict[int, Name]
    out_name: Name
    input: Storage
    beside: dict[Name, Storage]
    record: Forward


@dataclass(eq=False)
class Written:
    """A call that was written and takes part in a graph."""

    call_key: Any
    member: Member
    storages: dict[Name, Storage]
    keeps: list[Any]


class Asked:
    """Which modules asked for values (:class:`probes.worker.fake.Answers`)."""

    def __init__(self, counts: dict[str, int]) -> None:
        self._counts = counts

    def names(self) -> set[str]:
        """The modules so far."""
        return set(self._counts)

    def since(self, before: set[str], path: str) -> frozenset[tuple[bool, str]]:
        """The modules since then; those of the layer at ``path`` by the rest of their own path."""
        new = self._counts.keys() - before
        return frozenset((True, name[len(path) :]) if name.startswith(path) else (False, name) for name in new)

    def repeat(self, asked: frozenset[tuple[bool, str]], path: str) -> None:
        """The same modules of the layer at ``path`` ask."""
        for inside, name in asked:
            self._counts.setdefault(path + name if inside else name, 1)


def trained(member: Member) -> list[nn.Parameter]:
    """The layer's parameters that have gradients."""
    return [parameter for parameter in member.layer.parameters() if parameter.requires_grad]
