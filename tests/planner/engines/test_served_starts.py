"""What servers start with: dtypes that the card lacks, pages that kernels read, releases nobody read, pools without room."""

from __future__ import annotations

import pytest

from planner.architecture import read_config
from planner.faults import Faults
from planner.formats import native_format
from planner.predict import predict
from planner.scenario import parse_scenario
from resources.catalog import catalog_model
from resources.gpus import gpu

LLAMA, QWEN = "meta-llama/Llama-3.2-1B", "Qwen/Qwen3.5-9B"
H200 = "H200 SXM 141GB"


def answer(engine: str, card: str = H200, name: str = LLAMA, **options: object):
    ask = {"engine": engine, "prompt_tokens": 100, "new_tokens": 10, "max_model_len": 2048, "engine_options": options}
    document = {"model": name, "task": "inference", "inference": ask, "hardware": {"gpu": card}}
    config = dict(catalog_model(name).config)
    return predict(parse_scenario(document), read_config(config), gpu(card), native_format(config))


@pytest.mark.parametrize(
    ("engine", "card"), [("vllm", "T4"), ("vllm", "V100 SXM2 32GB"), ("sglang", "T4"), ("tgi", "T4")]
)  # fmt: skip
def test_bf16_runs_as_fp16_where_the_card_has_no_bf16(engine, card) -> None:
    """``_resolve_auto_dtype``, ``Compute capability below sm80``: as many bytes."""
    found = answer(engine, card)
    assert found.verdict == "fits"
    assert any("runs bf16 as fp16" in note for note in found.notes)
    assert not any("runs bf16 as fp16" in note for note in answer(engine).notes)


@pytest.mark.parametrize(
    ("engine", "card", "options", "words"),
    [
        ("vllm", "T4", {"version": "0.8.0"}, "runs bf16 from compute capability 8.0 on"),
        ("sglang", "V100 SXM2 32GB", {}, "from compute capability 7.5 on"), ("tensorrt-llm", "T4", {}, "capability 8.0 on"),
        ("vllm", H200, {"block_size": 17}, "multiples of 16 tokens; got 17"),
    ],
)  # fmt: skip
def test_what_engines_refuse_to_start_with(engine, card, options, words) -> None:
    with pytest.raises(Faults, match=words):
        answer(engine, card, **options)


@pytest.mark.parametrize(("engine", "newest"), [("vllm", "0.33.0"), ("sglang", "0.5.23")])
def test_a_release_newer_than_those_read_is_said_to_be(engine, newest) -> None:
    told = [note for note in answer(engine, version="9.1.0").notes if "version" in note]
    assert len(told) == 1
    assert newest in told[0]
    assert not any("version" in note for note in answer(engine, version=newest).notes)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"max_mamba_cache_size": 1}, "hold no request"), ({"max_mamba_cache_size": 1_000_000}, "no token's cache fits")],
)
def test_sglang_refuses_pools_that_hold_nothing(options, words) -> None:
    found = answer("sglang", name=QWEN, **options)
    assert (found.verdict, found.limits["max_batch"]) == ("does_not_fit", 0)
    assert any(words in note and "refuses to start" in note for note in found.notes)


def test_options_for_pools_that_a_model_lacks_are_said_to_change_nothing() -> None:
    notes = answer("sglang", swa_full_tokens_ratio=0.5, max_mamba_cache_size=5).notes
    assert sum("swa_full_tokens_ratio" in note or "max_mamba_cache_size" in note for note in notes) == 2
