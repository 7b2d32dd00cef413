"""Advice is the predictor's own word: savings, verdicts and the mildest change that fits."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.advise import advise
from planner.architecture import read_config
from planner.footprint import Footprint
from planner.gpu import Gpu
from planner.predict import predict
from planner.scenario import Scenario, parse_scenario, to_json
from resources.catalog import catalog_model
from resources.gpus import gpu

GIB = 2**30


@cache
def architecture(name: str):
    return read_config(catalog_model(name).config)


def asked(name: str, card: Gpu, **document: object):
    """The settled scenario, the predictor for its model and card, and how often it was asked."""
    scenario = parse_scenario({"version": 1, "model": name, **document})
    calls: list[Scenario] = []

    def answer(changed: Scenario) -> Footprint:
        calls.append(changed)
        return predict(changed, architecture(name), card)

    return parse_scenario(answer(scenario).scenario), answer, calls


LLAMA = "meta-llama/Llama-3.1-8B"
SERVED = {"task": "inference", "inference": {"engine": "transformers", "batch": 64, "prompt_tokens": 8192, "new_tokens": 256}}
LLAMA_CPP = {"task": "inference", "weights": "gguf:Q8_0", "inference": {"engine": "llama.cpp", "batch": 8, "prompt_tokens": 8000}}
TRAINED = {"task": "training", "training": {"batch": 8, "sequence": 4096}}


def device(footprint: Footprint) -> int:
    return max(found.peak.device for found in footprint.gpus if found.peak)


@pytest.mark.parametrize("document", [SERVED, LLAMA_CPP, TRAINED], ids=["transformers", "llama.cpp", "training"])
def test_every_proposal_is_what_the_predictor_says_of_it(document) -> None:
    card = gpu("RTX 4090 24GB")
    scenario, answer, _ = asked(LLAMA, card, **document)
    found = advise(scenario, architecture(LLAMA), answer)
    assert found
    for advice in found:
        after = answer(advice.scenario)
        assert (advice.device_bytes, advice.verdict) == (device(after), after.verdict)
        assert advice.saving_bytes == device(answer(scenario)) - device(after) > 0
        assert advice.title
        assert advice.cost
        parse_scenario(advice.to_json()["scenario"])


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm", "tgi"])
def test_what_a_server_gains_is_room_in_its_cache(engine: str) -> None:
    """It fills the card whatever it is asked for: smaller weights leave the cache as much more, and the card as full."""
    document = {"task": "inference", "inference": {"engine": engine, "batch": 8, "prompt_tokens": 4096, "new_tokens": 512}}
    scenario, answer, _ = asked(LLAMA, gpu("H100 SXM5 80GB"), **document)
    found = [advice for advice in advise(scenario, architecture(LLAMA), answer) if advice.title.startswith("Weights in ")]
    assert found
    for advice in found:
        before, after = answer(scenario), answer(advice.scenario)
        assert advice.gain_bytes == after.headroom_bytes - before.headroom_bytes
        assert advice.gain_bytes > before.weight_bytes - after.weight_bytes - GIB


def test_of_what_does_not_fit_a_server_that_which_gains_most_comes_first() -> None:
    document = {"task": "inference", "inference": {"engine": "vllm", "batch": 8, "prompt_tokens": 4096, "new_tokens": 512}}
    scenario, answer, _ = asked("meta-llama/Llama-3.1-70B", gpu("H100 SXM5 80GB"), **document)
    found = advise(scenario, architecture("meta-llama/Llama-3.1-70B"), answer)
    gains = [advice.gain_bytes for advice in found if advice.verdict == "does_not_fit"]
    assert gains == sorted(gains, reverse=True)
    assert len(set(gains)) == len(gains) > 2


@settings(max_examples=25)
@given(batch=st.integers(2, 300), capacity=st.integers(17, 90))
def test_a_smaller_batch_is_the_largest_that_fits(batch: int, capacity: int) -> None:
    """Rule: the batch proposed fits, one sequence more does not."""
    ask = {"engine": "transformers", "batch": batch, "prompt_tokens": 2048, "new_tokens": 64}
    scenario, answer, _ = asked(
        LLAMA, gpu("A100 SXM4 80GB"), task="inference", inference=ask, hardware={"capacity_bytes": capacity * GIB}
    )
    found = [advice for advice in advise(scenario, architecture(LLAMA), answer) if advice.title.startswith("Batch ")]
    fitting = [advice for advice in found if advice.verdict in ("fits", "tight") and ";" not in advice.title]
    if answer(scenario).verdict == "does_not_fit" and fitting:
        chosen = fitting[0].scenario.inference
        one_more = replace(scenario, inference=replace(chosen, batch=chosen.batch + 1))
        assert answer(one_more).verdict == "does_not_fit"


def test_what_fits_comes_first_by_what_it_costs() -> None:
    scenario, answer, _ = asked(LLAMA, gpu("A100 SXM4 80GB"), **TRAINED)
    found = advise(scenario, architecture(LLAMA), answer)
    fitting = [advice.verdict in ("fits", "tight") for advice in found]
    assert fitting == sorted(fitting, reverse=True)
    efforts = [advice.effort for advice, fits in zip(found, fitting, strict=True) if fits]
    assert efforts == sorted(efforts)
    savings = [advice.saving_bytes for advice, fits in zip(found, fitting, strict=True) if not fits]
    assert savings == sorted(savings, reverse=True)


def test_changes_are_combined_when_no_cheap_one_is_enough() -> None:
    scenario, answer, _ = asked("meta-llama/Llama-3.1-70B", gpu("RTX 4090 24GB"), **LLAMA_CPP | {"weights": "bf16"})
    found = advise(scenario, architecture("meta-llama/Llama-3.1-70B"), answer)
    combined = [advice for advice in found if ";" in advice.title]
    assert combined
    assert combined[0].verdict in ("fits", "tight")
    assert any("layers on the GPU" in advice.title for advice in combined)


def test_what_is_unknown_gets_no_advice_and_a_plan_that_fits_only_savings() -> None:
    scenario, answer, _ = asked(LLAMA, gpu("H200 SXM 141GB"), **SERVED | {"inference": SERVED["inference"] | {"batch": 1}})
    assert all(advice.saving_bytes > 0 for advice in advise(scenario, architecture(LLAMA), answer))

    def unknown(changed: Scenario) -> Footprint:
        found = answer(changed)
        return replace(found, gpus=tuple(replace(held, phases=()) for held in found.gpus), verdict="unknown")

    assert advise(scenario, architecture(LLAMA), unknown) == ()


def test_a_table_of_proposals_costs_few_predictions() -> None:
    """Dials are bisected: their settings are not tried one by one."""
    scenario, answer, calls = asked(LLAMA, gpu("A100 SXM4 80GB"), **SERVED)
    calls.clear()
    advise(scenario, architecture(LLAMA), answer)
    assert len(calls) < 80


def test_a_growing_conversation_may_be_retrieved_or_summarised() -> None:
    """The mildest number of turns that fits stands for the earlier ones; one more would not fit."""
    talk = {"turns": 12}
    document = {"task": "inference", "inference": {"batch": 2, "prompt_tokens": 4000, "new_tokens": 96, "conversation": talk}}
    scenario, answer, _ = asked(LLAMA, gpu("RTX 4090 24GB"), **document)
    assert answer(scenario).verdict == "does_not_fit"
    found = [advice for advice in advise(scenario, architecture(LLAMA), answer) if "earlier turns" in advice.title]
    assert {advice.scenario.inference.conversation.history for advice in found} == {"retrieve", "summarise"}
    for advice in found:
        kept = advice.scenario.inference.conversation
        more = replace(kept, kept_tokens=kept.kept_tokens + 4096)
        assert advice.verdict in ("fits", "tight")
        assert answer(replace(scenario, inference=replace(scenario.inference, conversation=more))).verdict == "does_not_fit"
        assert advice.because


def test_a_server_that_refuses_to_start_is_told_what_would_start_it() -> None:
    document = {"task": "inference", "inference": {"engine": "vllm", "prompt_tokens": 1024, "new_tokens": 128}}
    scenario, answer, _ = asked(LLAMA, gpu("L4"), **document)
    found = advise(scenario, architecture(LLAMA), answer)
    single = next(advice for advice in found if advice.title.startswith("max_model_len"))
    tokens = single.scenario.inference.max_model_len
    assert single.verdict in ("fits", "tight")
    longer = replace(scenario, inference=replace(scenario.inference, max_model_len=tokens + 256))
    assert answer(longer).verdict == "does_not_fit"


def test_fewer_requests_fit_a_servers_pool() -> None:
    asks = {"engine": "vllm", "batch": 30, "max_model_len": 8192, "prompt_tokens": 2048, "new_tokens": 256}
    scenario, answer, _ = asked(LLAMA, gpu("RTX 4090 24GB"), task="inference", inference=asks)
    titles = [advice.title for advice in advise(scenario, architecture(LLAMA), answer) if advice.verdict in ("fits", "tight")]
    assert any(title.startswith("Batch") for title in titles)
    assert any("FP8" in title for title in titles)


@pytest.mark.parametrize(
    ("training", "title"),
    [
        ({"objective": "dpo"}, "Reference scores computed before"),
        ({"objective": "grpo", "reference": "model", "rollout": {"engine": "vllm"}}, "vLLM sleeps"),
    ],
)
def test_advice_on_objectives_holds_fewer_models_and_stays_valid(training: dict[str, object], title: str) -> None:
    """Every proposal can be written down and read again, as TRL would take it."""
    card = gpu("H100 SXM5 80GB")
    document = {"task": "training", "training": {"batch": 4, "sequence": 2048, **training}}
    scenario, answer, _ = asked("Qwen/Qwen3-1.7B", card, **document)
    found = advise(scenario, architecture("Qwen/Qwen3-1.7B"), answer)
    assert any(title in advice.title for advice in found)
    for advice in found:
        assert parse_scenario(to_json(advice.scenario)) == advice.scenario
