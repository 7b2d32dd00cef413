from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.footprint import COMPONENTS, Footprint, GpuFootprint, Phase, judge
from planner.units import format_bytes

ORDER = ["fits", "tight", "does_not_fit"]


@pytest.mark.parametrize(
    ("device", "capacity", "band", "verdict"),
    [
        (85, 100, 0, "fits"),
        (86, 100, 0, "tight"),
        (97, 100, 0, "tight"),
        (98, 100, 0, "does_not_fit"),
        (80, 100, 21, "tight"),
        (1, None, 0, "unknown"),
    ],
)
def test_the_bands_of_the_verdict(device: int, capacity: int | None, band: int, verdict: str) -> None:
    assert judge(device, capacity, band) == verdict


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(1, 10**12), st.integers(0, 10**11))
def test_more_memory_never_fits_better(one: int, other: int, capacity: int, band: int) -> None:
    """The verdict is monotone in what is asked for."""
    low, high = sorted((one, other))
    assert ORDER.index(judge(low, capacity, band)) <= ORDER.index(judge(high, capacity, band))


def test_the_peak_is_the_phase_that_takes_most_of_the_device() -> None:
    phases = (Phase("load", 1, 2, 3), Phase("prefill", 4, 5, 6), Phase("decode", 5, 5, 5))
    gpu = GpuFootprint(0, 10, phases)
    assert gpu.peak is phases[1]
    assert gpu.to_json()["peak"] == {"phase": "prefill", "allocated": 4, "reserved": 5, "device": 6}


def test_what_could_not_be_sized_has_no_peak() -> None:
    footprint = Footprint({}, "predict", 1, 0, 2, (GpuFootprint(0, 10, ()),), "unknown")
    assert footprint.to_json()["gpus"][0]["peak"] is None


def test_components_are_those_of_the_design_once_each() -> None:
    assert len(set(COMPONENTS)) == len(COMPONENTS) == 16


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (2**20, "1.0 MiB"),
        (16060522496, "14.96 GiB"),
        (-(2**30), "−1.00 GiB"),
        (float("nan"), "N/A"),
    ],
)
def test_sizes_as_people_read_them(size: float, text: str) -> None:
    assert format_bytes(size) == text
