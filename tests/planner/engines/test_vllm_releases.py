"""vLLM's own defaults by release and card, and what releases refuse."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from planner.architecture import read_config
from planner.engines.vllm.settings import settings_of
from planner.faults import Faults
from planner.formats import native_format
from planner.predict import predict
from planner.scenario import Parallel, parse_scenario
from resources.catalog import catalog_model
from resources.gpus import gpu

LLAMA = "meta-llama/Llama-3.1-8B"
H100, A100, L40S = "H100 SXM5 80GB", "A100 SXM4 80GB", "L40S"


@cache
def model(name: str):
    config = dict(catalog_model(name).config)
    return read_config(config), native_format(config)


def asked(version: str, card: str = H100, name: str = LLAMA, **work: object):
    options = {"version": version, **work.pop("engine_options", {})}  # type: ignore[dict-item]
    ask = {"engine": "vllm", "prompt_tokens": 1000, "new_tokens": 100, **work, "engine_options": options}
    return parse_scenario({"model": name, "task": "inference", "inference": ask, "hardware": {"gpu": card}})


def settled(version: str, card: str = H100, name: str = LLAMA, **work: object):
    found = gpu(card)
    return settings_of(asked(version, card, name, **work), model(name)[0], found.name, found.capacity_bytes, 132)[0]


@pytest.mark.parametrize(
    ("version", "card", "tokens", "sequences"),
    [
        ("0.8.4", H100, 8192, 1024), ("0.8.4", A100, 2048, 256), ("0.8.5", A100, 8192, 1024), ("0.9.0", A100, 2048, 256),
        ("0.11.0", A100, 2048, 256), ("0.11.0", H100, 8192, 1024), ("0.11.0", L40S, 2048, 256), ("0.8.4", "B200", 2048, 256),
        ("0.9.0", "B200", 8192, 1024),
    ],
)  # fmt: skip
def test_the_larger_defaults_went_by_name_then_by_memory_then_to_all_but_a100(version, card, tokens, sequences) -> None:
    """Pull requests 12369, 17073 and 17885 of vLLM."""
    found = settled(version, card)
    assert (found.batched_tokens, found.sequences) == (tokens, sequences)


@pytest.mark.parametrize(
    ("version", "name", "work", "tokens"),
    [
        ("0.6.3", LLAMA, {}, 512),
        ("0.6.6", LLAMA, {}, 2048),
        ("0.7.3", LLAMA, {"max_model_len": 8192}, 8192),
        ("0.7.3", LLAMA, {"max_model_len": 1024, "prompt_tokens": 100}, 2048),
        ("0.7.3", LLAMA, {"chunked_prefill": False, "max_model_len": 65536}, 65536),
        ("0.7.3", LLAMA, {"chunked_prefill": True, "max_model_len": 8192}, 2048),
        ("0.7.3", LLAMA, {"adapters": {"count": 1}, "max_model_len": 65536}, 65536),
        ("0.7.3", "deepseek-ai/DeepSeek-V2-Lite", {}, 163840),
    ],
)
def test_v0_cuts_long_prompts_of_plain_text_models(version, name, work, tokens) -> None:
    """``_set_default_args_v0``: above 32K tokens, but not with towers, windows, latent attention, drafts or adapters."""
    assert settled(version, name=name, **work).batched_tokens == tokens


def test_windows_share_a_pool_from_0_9_1_on_and_chunks_from_0_14() -> None:
    windows, chunks = "google/gemma-3-1b-it", "meta-llama/Llama-4-Scout-17B-16E-Instruct"
    assert [settled(version, name=windows).hybrid for version in ("0.8.5", "0.9.1", "0.19.0")] == [False, True, True]
    assert [settled(version, name=chunks).hybrid for version in ("0.9.1", "0.11.0", "0.14.0")] == [False, False, True]


def answered(version: str, **work: object):
    architecture, native = model(LLAMA)
    return predict(asked(version, max_model_len=4096, **work), architecture, gpu(H100), native)


def test_draft_models_are_refused_where_v1_had_none() -> None:
    draft = {"speculation": {"method": "draft", "tokens": 4, "draft_parameters": 10**9}}
    for version in ("0.10.0", "0.13.0"):
        with pytest.raises(Faults, match="has no draft models"):
            answered(version, **draft)
    for version in ("0.9.2", "0.19.0"):
        assert answered(version, **draft).verdict == "fits"


def test_slots_of_adapters_have_a_rank_that_vllm_takes() -> None:
    """``MaxLoRARanks``: rank 10 is served in slots of 16."""
    odd, even = (answered("0.19.0", adapters={"count": 2, "rank": rank}) for rank in (10, 16))
    held = [found.gpus[0].phases[-1].components["adapters"] for found in (odd, even)]
    assert held[0] == held[1]
    assert any("max_lora_rank 16" in note for note in odd.notes)
    with pytest.raises(Faults, match="up to rank 512"):
        answered("0.19.0", adapters={"count": 1, "rank": 600})


def step_of(version: str, name: str = LLAMA, **work: object) -> dict[str, int]:
    """What the server holds in its widest step, limited to requests of 8192 tokens."""
    scenario = asked(version, H100, name, max_model_len=8192, **work)
    found = predict(scenario, model(name)[0], gpu(H100), model(name)[1])
    return dict(found.gpus[0].phases[1].components)


@pytest.mark.parametrize(
    ("version", "name", "counted"),
    [
        ("0.22.0", LLAMA, False), ("0.23.0", LLAMA, True), ("0.24.0", "Qwen/Qwen2.5-7B", False),
        ("0.25.0", "Qwen/Qwen2.5-7B", True), ("0.28.0", "Qwen/Qwen3-30B-A3B", False), ("0.29.0", "Qwen/Qwen3-30B-A3B", True),
    ],
)  # fmt: skip
def test_the_second_runner_counts_the_tokens_of_every_sequence(version, name, counted) -> None:
    """``output_bin_counts`` and ``prompt_bin_mask`` of ``v1/worker/gpu/sample/penalties.py``: 1024 sequences by the vocabulary."""
    vocabulary = model(name)[0].vocab_size
    assert step_of(version, name).get("workspace", 0) == counted * 4 * 1024 * (vocabulary + -(-vocabulary // 32))


def test_the_second_runner_samples_greedily_until_its_profile_run_warms_every_parameter() -> None:
    """Three fp32 values for each logit of 1024 sequences in 0.22 and 0.33, none between, where the forward takes more."""
    before, between, since = (step_of(version)["activations"] for version in ("0.22.0", "0.31.0", "0.33.0"))
    assert before - since == 1024 * 4096 * 2
    assert between < since
    assert step_of("0.28.0", speculation={"method": "ngram", "tokens": 3})["activations"] == before


@pytest.mark.parametrize(("version", "stages", "steps"), [("0.24.0", 2, 1), ("0.26.0", 1, 2), ("0.26.0", 2, 3), ("0.33.0", 4, 5)])
def test_windows_are_kept_for_every_step_in_flight(version, stages, steps) -> None:
    """``VllmConfig.max_in_flight_tokens``: a step for each stage and one more."""
    scenario = replace(asked(version), parallel=Parallel(pipeline=stages))
    found = gpu(H100)
    settled = settings_of(scenario, model(LLAMA)[0], found.name, found.capacity_bytes, 132)[0]
    assert settled.scheduled_tokens == steps * 8192


@pytest.mark.parametrize(
    ("version", "name", "cached"),
    [
        ("0.24.0", "Qwen/Qwen3.5-9B", False), ("0.26.0", "Qwen/Qwen3.5-9B", True), ("0.33.0", "state-spaces/mamba-2.8b-hf", False),
    ],
)  # fmt: skip
def test_prefixes_of_hybrid_models_are_cached_where_there_is_attention(version, name, cached) -> None:
    assert settled(version, H100, name).prefix_caching == cached
