"""Every family against models transformers builds from configs nobody wrote by hand.

A config is small and random; the model is built from it on the meta device; names and shapes of all its parameters must
be ours. ``python -m tests.planner.architecture.held_out 30`` tries thirty configs of every family.
"""

from __future__ import annotations

import logging

import pytest

from tests.planner.architecture.held_out import Outcome, families, trial

SEEDS = 2


@pytest.fixture(autouse=True)
def quiet(recwarn) -> None:
    logging.getLogger("transformers").setLevel(logging.CRITICAL)


@pytest.mark.parametrize("model_type", families())
def test_what_is_read_is_what_transformers_builds(model_type: str) -> None:
    """Exact, or refused by one side; never another number."""
    outcomes = [trial(model_type, seed) for seed in range(SEEDS)]
    assert [outcome for outcome in outcomes if outcome.differences] == []


def test_most_families_are_really_compared() -> None:
    """A reader that refused everything would pass the test above."""
    compared = [name for name in families() if any(trial(name, seed).kind is Outcome.Kind.COMPARED for seed in range(6))]
    assert len(compared) > 0.95 * len(families())
