"""Published parameter counts: equal, or the difference in words that add up."""

from __future__ import annotations

import pytest

from planner.architecture import parameter_count, read_config
from planner.architecture.published import explain_published
from resources.catalog import catalog_model, model_ids

COUNTED = [name for name in model_ids() if catalog_model(name).published_parameters]
ROUNDED = 1e-3
"""Publishers that print a name's figure ("7B") are this far off or further."""


def read(name: str):
    return read_config(catalog_model(name).config)


@pytest.mark.parametrize("name", COUNTED)
def test_differences_add_up_to_the_published_count(name: str) -> None:
    found, published = read(name), catalog_model(name).published_parameters
    reasons = explain_published(found, published)
    if reasons is None:
        assert published % 10**6 == 0, "only a rounded figure may stay unexplained"
        return
    assert parameter_count(found) + sum(reason.elements for reason in reasons) == published


def test_a_tied_head_counted_twice_is_named() -> None:
    (reason,) = explain_published(read("Qwen/Qwen3-0.6B"), 751_632_384) or ()
    assert reason.elements == 151_936 * 1024
    assert "tied" in reason.words


def test_an_equal_count_needs_no_words() -> None:
    assert explain_published(read("meta-llama/Llama-3.1-8B"), 8_030_261_248) == ()


def test_a_count_nothing_adds_up_to_stays_unexplained() -> None:
    assert explain_published(read("meta-llama/Llama-3.1-8B"), 8_031_000_000) is None
    assert explain_published(read("meta-llama/Llama-3.1-8B"), 7_000_000_000) is None
