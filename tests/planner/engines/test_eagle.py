"""EAGLE's heads under serving engines: their parameters as published, and the cache of their layer."""

from __future__ import annotations

import pytest

from planner.architecture import read_config
from planner.engines.eagle import head_parameters, is_third
from planner.formats import native_format
from planner.predict import predict
from planner.scenario import parse_scenario
from resources.catalog import catalog_model
from resources.gpus import gpu

LLAMA, CARD = "meta-llama/Llama-3.1-8B", "H200 SXM 141GB"


def head_of(name: str, **changes: object) -> dict[str, object]:
    return dict(catalog_model(name).config) | {"num_hidden_layers": 1} | changes


@pytest.mark.parametrize(
    ("name", "changes", "billions"),
    [
        ("meta-llama/Llama-2-7b-hf", {}, 0.24), ("meta-llama/Llama-2-13b-hf", {}, 0.37), ("meta-llama/Meta-Llama-3-8B", {}, 0.25),
        ("meta-llama/Meta-Llama-3-70B", {}, 0.99), (LLAMA, {"draft_vocab_size": 32000}, 0.42),
    ],
)  # fmt: skip
def test_heads_have_the_parameters_that_are_published(name, changes, billions) -> None:
    """github.com/SafeAILab/EAGLE, its table of weights; EAGLE-3's file for Llama 3.1 holds 850 MB in 16 bit."""
    config = head_of(name, **changes)
    target = read_config(dict(catalog_model(name).config))
    assert head_parameters(config, read_config(config), target, 1) / 1e9 == pytest.approx(billions, abs=0.006)
    assert is_third(config) == bool(changes)


@pytest.mark.parametrize("engine", ["vllm", "tensorrt-llm", "sglang"])
@pytest.mark.parametrize("told", [{"draft": head_of(LLAMA)}, {"draft_parameters": 250_000_000}])
def test_a_head_caches_one_layer_more(engine, told) -> None:
    def token_bytes(**speculation: object) -> float:
        ask = {"engine": engine, "prompt_tokens": 1000, "new_tokens": 100, "speculation": speculation}
        document = {"model": LLAMA, "task": "inference", "inference": ask, "hardware": {"gpu": CARD}}
        config = dict(catalog_model(LLAMA).config)
        found = predict(parse_scenario(document), read_config(config), gpu(CARD), native_format(config)).extra["engine"]
        return found["kv_cache_bytes"] / found["kv_tokens"]

    assert token_bytes(method="eagle", tokens=3, **told) / token_bytes() == pytest.approx(33 / 32, rel=1e-4)


def test_ranks_share_the_layers_of_a_head_and_each_holds_what_joins_the_states() -> None:
    config = head_of(LLAMA)
    draft = read_config(config)
    whole, half = (head_parameters(config, draft, draft, ranks) for ranks in (1, 2))
    assert whole - half == (whole - 2 * 4096**2 - 2 * 4096) // 2
