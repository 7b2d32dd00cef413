"""Every family against models transformers builds from configs nobody wrote by hand.

A config is small and random; the model is built from it on the meta device; names and shapes of all its parameters must
be ours. ``python -m tests.planner.architecture.held_out 30`` tries thirty configs of every family.
"""

from __future__ import annotations

import logging

import pytest

from planner.architecture import read_config
from planner.architecture.families import parts_of
from tests.planner.architecture.framework import build, differences
from tests.planner.architecture.held_out import Outcome, families, trial
from tests.planner.architecture.variations import vary

SEEDS = (0, 2)
"""One config as somebody might write it, one as transformers saves it."""


@pytest.fixture(autouse=True)
def quiet(recwarn: pytest.WarningsRecorder) -> None:
    logging.getLogger("transformers").setLevel(logging.CRITICAL)


@pytest.mark.parametrize("model_type", families())
def test_what_is_read_is_what_transformers_builds(model_type: str) -> None:
    """Exact, or refused by one side; never another number."""
    outcomes = [trial(model_type, seed) for seed in SEEDS]
    assert [outcome for outcome in outcomes if outcome.differences] == []


def test_most_families_are_really_compared() -> None:
    """A reader that refused everything would pass the test above."""
    compared = [name for name in families() if any(trial(name, seed).kind is Outcome.Kind.COMPARED for seed in range(6))]
    assert len(compared) > 0.95 * len(families())


@pytest.mark.parametrize(("outer", "inner"), [(True, False), (False, True)])
@pytest.mark.parametrize("model_type", [name for name in families() if "text_config" in parts_of(name)])
def test_the_head_is_tied_by_the_config_its_class_asks(model_type: str, outer: bool, inner: bool) -> None:
    """Some classes ask their own config, some the text's, some either, some none."""
    config = vary(model_type, 0, small=True) | {"tie_word_embeddings": outer}
    config["text_config"] = config["text_config"] | {"tie_word_embeddings": inner}
    found = read_config(config)
    assert differences(found, build(config, found.model_class)) == []
