"""Inverse questions of trainings over several GPUs: what is found fits, its neighbour does not."""

from __future__ import annotations

from typing import Any

import pytest

from planner.scenario import Parallel, Scenario, parse_scenario
from planner.solve import (
    SHARDINGS,
    Asked,
    cheapest_layout,
    fewest_gpus,
    largest_batch,
    longest_context,
    shardings,
    smallest_sharding,
    with_context,
    with_values,
)
from resources.plan import find_gpu, find_model

CARD = find_gpu("RTX 4090")
MODEL = find_model("meta-llama/Llama-3.1-8B", network=False).architecture


def asked(gpus: int = 1, sharding: str = "none", **work: Any) -> Asked:
    training = {"batch": 1, "sequence": 1024, "checkpointing": "full"} | work
    document = {
        "version": 1, "model": "meta-llama/Llama-3.1-8B", "task": "training", "training": training,
        "hardware": {"gpu": CARD.name, "gpus": gpus}, "parallel": {"sharding": sharding},
    }  # fmt: skip
    return Asked(parse_scenario(document), MODEL, CARD)


def over(scenario: Scenario, gpus: int, sharding: str) -> Scenario:
    return with_values(scenario, gpus=gpus, parallel=Parallel(data=gpus, sharding=sharding))


@pytest.mark.parametrize("engine", ["transformers", "deepspeed", "fsdp"])
def test_the_fewest_gpus(engine: str) -> None:
    """Some sharding fits on as many, none on one less."""
    question = asked(engine=engine)
    found = cheapest_layout(question)
    assert found is not None
    count = found.hardware.gpus
    assert count == fewest_gpus(question) > 1
    assert question.fits(found)
    assert not any(question.fits(over(question.scenario, count - 1, kind)) for kind in SHARDINGS[engine])


def test_replicas_alone_never_fit() -> None:
    """What one card cannot hold no number of replicas can."""
    question = asked()
    assert not any(question.fits(over(question.scenario, count, "none")) for count in (1, 2, 8, 64))


def test_a_named_sharding_is_kept() -> None:
    assert shardings(asked(sharding="zero3").scenario) == ("zero3",)


def test_the_smallest_sharding() -> None:
    """The first that fits, of those that move more each time."""
    question = asked(8)
    found = smallest_sharding(question)
    assert found is not None
    kinds = SHARDINGS["transformers"]
    before = kinds[: kinds.index(found)]
    assert not any(question.fits(over(question.scenario, 8, kind)) for kind in before)
    assert question.fits(over(question.scenario, 8, found))


def test_the_largest_micro_batch_and_the_longest_sequence() -> None:
    question = asked(8, "fsdp")
    batch, tokens = largest_batch(question), longest_context(question)
    assert batch
    assert tokens > 1024
    assert question.fits(with_values(question.scenario, batch=batch))
    assert not question.fits(with_values(question.scenario, batch=batch + 1))
    assert question.fits(with_context(question.scenario, tokens))
    assert tokens == MODEL.max_context_tokens or not question.fits(with_context(question.scenario, tokens + 1))


def test_megatron_spreads_by_tensor_and_pipeline() -> None:
    question = asked(engine="megatron")
    found = cheapest_layout(question, most=32)
    assert found is not None
    assert found.parallel.tensor * found.parallel.pipeline == found.hardware.gpus
    assert question.fits(found)
