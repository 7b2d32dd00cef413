"""vLLM's own defaults by release and card, and what releases refuse."""

from __future__ import annotations

from functools import cache

import pytest

from planner.architecture import read_config
from planner.engines.vllm.settings import settings_of
from planner.faults import Faults
from planner.formats import native_format
from planner.predict import predict
from planner.scenario import parse_scenario
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
