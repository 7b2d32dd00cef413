from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from probes.series import PeakSeries


@given(st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 100)), st.sampled_from("abc")), max_size=300))
def test_thinning_never_loses_a_peak(rows: list[tuple[int | None, str]]) -> None:
    """The highest value of each label is the same however few rows are kept."""
    series = PeakSeries(limit=8)
    for number, (value, label) in enumerate(rows):
        series.append(float(number), {"x": value}, label)
    for label in "abc":
        expected = max((value for value, at in rows if at == label and value is not None), default=None)
        assert series.peak("x", label) == expected
    assert series.t == sorted(series.t)


def test_a_long_run_stays_small() -> None:
    series = PeakSeries(limit=1000)
    for number in range(100_000):
        series.append(number * 0.05, {"x": number})
        assert len(series) <= 1000
    assert len(series) > 400
    assert series.t[0] == 0.0


def test_columns_that_come_late_or_pause_are_none_elsewhere() -> None:
    series = PeakSeries()
    series.append(0.0, {"a": 1})
    series.append(1.0, {"b": 2})
    assert series.columns == {"a": [1, None], "b": [None, 2]}
    assert series.peak("c") is None
