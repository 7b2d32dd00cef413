"""Drivers of several makers as one, and which of their GPUs CUDA shows."""

from __future__ import annotations

from typing import Any

import pytest

from probes.amd import LIBRARY_NOT_FOUND
from probes.drivers import Drivers, visible
from probes.readings import DriverState, GpuReading


class Stub:
    """A driver with so many GPUs, or a state."""

    driver_version, cuda_version = "1", ""

    def __init__(self, count: int, state: DriverState | None = None) -> None:
        self.state, self._count = state or DriverState(), count

    def open(self) -> DriverState:
        return self.state

    def close(self) -> None:
        """Nothing is held."""

    def readings(self) -> tuple[GpuReading, ...]:
        return tuple(GpuReading(index, f"u{index}", "n") for index in range(self._count))

    memory = readings


def test_cards_of_both_makers_are_numbered_on() -> None:
    both: Any = Drivers(Stub(2), Stub(1))  # type: ignore[arg-type]
    assert [gpu.index for gpu in both.readings()] == [gpu.index for gpu in both.memory()] == [0, 1, 2]
    assert both.driver_version == "1, 1"


@pytest.mark.parametrize(
    ("nvidia", "amd", "told"), [(0, LIBRARY_NOT_FOUND, 0), (12, 0, 0), (12, LIBRARY_NOT_FOUND, 12), (12, 34, 34), (0, 34, 0)]
)
def test_the_state_is_that_of_the_driver_that_is_here(nvidia: int, amd: int, told: int) -> None:
    assert Drivers(Stub(0, DriverState(nvidia)), Stub(0, DriverState(amd))).state.code == told  # type: ignore[arg-type]


CARDS = (
    GpuReading(0, "GPU-aaaa1111-0000", "n"),
    GpuReading(1, "MIG-bbbb-1", "n", mig_index=0),
    GpuReading(1, "MIG-bbbb-2", "n", mig_index=1),
    GpuReading(2, "GPU-cccc3333-0000", "n"),
)


@pytest.mark.parametrize(
    ("chosen", "uuids"),
    [
        ("2,0", ["GPU-cccc3333-0000", "GPU-aaaa1111-0000"]),
        ("GPU-cccc", ["GPU-cccc3333-0000"]),
        ("MIG-bbbb-2", ["MIG-bbbb-2"]),
        ("0,7,2", ["GPU-aaaa1111-0000"]),
        ("-1", []),
        ("", []),
        ("0, 2", ["GPU-aaaa1111-0000", "GPU-cccc3333-0000"]),
    ],
)
def test_the_gpus_that_cuda_shows_in_its_order(chosen: str, uuids: list[str]) -> None:
    """The list ends at what names no GPU."""
    assert [gpu.uuid for gpu in visible(CARDS, chosen)] == uuids


def test_without_the_variable_all_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible(CARDS) == CARDS
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [gpu.uuid for gpu in visible(CARDS)] == ["MIG-bbbb-1"]
