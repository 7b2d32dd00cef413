"""Every bundled model against what transformers builds: parameters to the last one, cache bytes to the byte."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import pytest

from planner.architecture import Architecture, iter_weights, parameter_count, read_config
from planner.architecture.counts import layer_weights
from planner.components.cache import cache_bytes
from resources.catalog import catalog_model, model_ids

ORACLE = json.loads((Path(__file__).parents[2] / "data" / "architecture_oracle.json").read_text(encoding="utf-8"))
MODELS = {row["id"]: row for row in ORACLE["models"]}


@cache
def architecture(model: str) -> Architecture:
    return read_config(catalog_model(model).config)


def test_the_oracle_covers_the_catalog() -> None:
    assert set(MODELS) == set(model_ids())


@pytest.mark.parametrize("model", [name for name, row in MODELS.items() if row["parameters"] is not None])
def test_parameters_equal_the_framework_s_to_the_last_one(model: str) -> None:
    found = architecture(model)
    assert parameter_count(found) == MODELS[model]["parameters"]
    assert found.verified


@pytest.mark.parametrize("model", [name for name, row in MODELS.items() if row["status"] == "exact"])
def test_parameters_equal_the_published_count_where_it_is_exact(model: str) -> None:
    assert parameter_count(architecture(model)) == MODELS[model]["published"] == catalog_model(model).published_parameters


@pytest.mark.parametrize("model", [name for name, row in MODELS.items() if row["status"] == "explained"])
def test_a_published_count_that_differs_is_explained_in_words(model: str) -> None:
    known = catalog_model(model)
    assert known.published_parameters != parameter_count(architecture(model)) or known.published_note
    assert known.published_note


@pytest.mark.parametrize("row", ORACLE["caches"], ids=lambda row: f"{row[0]}-{row[1]}x{row[2]}")
def test_cache_bytes_equal_the_framework_s(row: list[object]) -> None:
    """What the cache shows (logical) and what its tensors keep alive (held), in 16 bit, after a prefill."""
    model, batch, tokens, source, logical, held, _ = row
    found = cache_bytes(architecture(model), batch, tokens, source_tokens=source)
    assert (found.logical_bytes, found.held_bytes) == (logical, held)


@pytest.mark.parametrize("model", [name for name, row in MODELS.items() if row["parameters"] is not None])
def test_every_weight_has_a_name_a_shape_and_one_place(model: str) -> None:
    found = architecture(model)
    names: set[tuple[str, str, tuple[int, ...], str]] = set()
    for path, weight, times in iter_weights(found):
        assert weight.name
        assert times * weight.count >= 1
        assert math.prod(weight.shape) > 0
        names.add((path, weight.name, weight.shape, weight.role))
    owned = [weight.name for weight in layer_weights(found.decoder.layers[0])]
    assert len(owned) == len(set(owned))


def test_a_class_the_framework_does_not_know_is_read_by_its_keys_or_not_at_all() -> None:
    model = "nvidia/Llama-3_3-Nemotron-Super-49B-v1"
    try:
        found = architecture(model)
    except Exception as error:
        assert type(error).__name__ == "UnknownArchitecture"
        assert "nemotron-nas" in str(error)
    else:
        assert not found.verified or parameter_count(found) == MODELS[model]["published"]
