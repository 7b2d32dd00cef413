"""Smaller models of a family, and what advice makes of them."""

from __future__ import annotations

import pytest

from planner.advise import advise
from planner.architecture.counts import parameter_count
from planner.scenario import parse_scenario
from resources.family import answer_for, smaller_models
from resources.plan import find_model, make_plan


def plan(model: object, **changed: object):
    asked = {"engine": "vllm", "batch": 4, "prompt_tokens": 2000, "new_tokens": 200, "max_model_len": 4096}
    document = {"model": model, "task": "inference", "inference": asked, "hardware": {"gpu": "RTX 4090 24GB"}, **changed}
    return make_plan(parse_scenario(document), network=False, calibrated=False)


@pytest.mark.parametrize(
    ("model", "holds", "lacks"),
    [
        ("meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.2-1B", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"),
        ("Qwen/Qwen2.5-72B", "Qwen/Qwen2.5-0.5B", "Qwen/Qwen3-0.6B"),
        ("Qwen/Qwen3-235B-A22B", "Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-Coder-30B-A3B-Instruct"),
        ("google/gemma-3-27b-it", "google/gemma-3-4b-it", "google/gemma-4-E2B-it"),
    ],
)
def test_a_family_shares_its_name_and_tokenizer_and_is_smaller(model, holds, lacks) -> None:
    found = smaller_models(plan(model))
    counts = [parameter_count(find_model(name, network=False).architecture) for name in (model, *found)]
    assert holds in found
    assert lacks not in found
    assert counts == sorted(counts, reverse=True)


def test_a_config_of_no_name_has_no_family() -> None:
    assert smaller_models(plan({"config": dict(find_model("Qwen/Qwen3-8B").source.config)})) == ()


def test_the_largest_model_of_the_family_that_fits_is_proposed() -> None:
    """The one before it does not fit, and what is said of it is what a plan for it says."""
    large = plan("Qwen/Qwen2.5-72B")
    names = smaller_models(large)
    settled = parse_scenario(large.footprint.scenario)
    (found,) = [one for one in advise(settled, large.architecture, answer_for(large), names) if one.title.endswith(" instead")]
    place = names.index(str(found.scenario.model))
    assert found.verdict in ("fits", "tight")
    assert found.verdict == make_plan(found.scenario, network=False, calibrated=False).footprint.verdict
    assert plan(names[place - 1]).footprint.verdict == "does_not_fit"


def test_a_training_stays_of_its_model() -> None:
    trained = plan("Qwen/Qwen2.5-7B", task="training", inference={}, training={"batch": 1, "sequence": 512})
    settled = parse_scenario(trained.footprint.scenario)
    found = advise(settled, trained.architecture, answer_for(trained), smaller_models(trained))
    assert {one.scenario.model for one in found} == {"Qwen/Qwen2.5-7B"}
