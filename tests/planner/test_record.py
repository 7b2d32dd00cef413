"""A record is a frozen dataclass, whoever looks first."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest

from planner.record import record


def make():
    @record
    class Base:
        x: int
        names: Mapping[str, int] = dataclasses.field(default_factory=dict, hash=False)

        @property
        def twice(self) -> int:
            return 2 * self.x

    @record
    class Derived(Base):
        y: str = "y"

    return Base, Derived


def test_a_derived_record_first() -> None:
    base, derived = make()
    found = derived(1, y="z")
    assert (found.x, found.y, found.twice, dict(found.names)) == (1, "z", 2, {})
    assert found == derived(1, {}, "z") != derived(2)
    assert dataclasses.replace(base(1), x=5).x == 5


def test_the_fields_first() -> None:
    base, derived = make()
    assert [item.name for item in dataclasses.fields(derived)] == ["x", "names", "y"]
    assert dataclasses.is_dataclass(base)
    assert dataclasses.asdict(base(3)) == {"x": 3, "names": {}}
    assert hash(base(1)) == hash(base(1))


def test_it_is_frozen() -> None:
    base, _ = make()
    with pytest.raises(dataclasses.FrozenInstanceError):
        base(1).x = 2
    with pytest.raises(TypeError, match="x"):
        base()
