"""Launch lines of servers tell what proposes tokens, the slots for adapters, and what else the plan asks of them."""

from __future__ import annotations

import json
import shlex

import pytest

from planner.commands import commands_of
from planner.gpu import Gpu
from planner.scenario import parse_scenario


def lines(engine: str, **work: object) -> tuple[list[str], tuple[str, ...]]:
    ask = {"engine": engine, "prompt_tokens": 100, "new_tokens": 10, **work}
    document = {"model": "org/model", "task": "inference", "inference": ask, "hardware": {"gpu": "H200 SXM 141GB"}}
    command = commands_of(parse_scenario(document))[-1]
    return shlex.split(command.text.replace("\\\n", " ")), command.notes


def after(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"method": "ngram", "tokens": 5}, {"method": "ngram", "num_speculative_tokens": 5}),
        ({"method": "mtp", "tokens": 1}, {"method": "mtp", "num_speculative_tokens": 1}),
        (
            {"method": "draft", "tokens": 4, "draft_parameters": 10**9},
            {"method": "draft_model", "num_speculative_tokens": 4, "model": "PATH/TO/DRAFT"},
        ),
        (
            {"method": "eagle", "tokens": 3, "draft": {"model_type": "llama", "draft_vocab_size": 32000}},
            {"method": "eagle3", "num_speculative_tokens": 3, "model": "PATH/TO/DRAFT"},
        ),
    ],
)
def test_vllm_is_told_what_proposes(asked, expected) -> None:
    words, notes = lines("vllm", speculation=asked)
    assert json.loads(after(words, "--speculative-config")) == expected
    assert any("PATH/TO/DRAFT" in note for note in notes) == ("model" in expected)


@pytest.mark.parametrize(
    ("method", "algorithm", "steps"),
    [("ngram", "NGRAM", False), ("eagle", "EAGLE", True), ("mtp", "NEXTN", True), ("draft", "STANDALONE", True)],
)
def test_sglang_is_told_what_proposes(method, algorithm, steps) -> None:
    words, _ = lines("sglang", speculation={"method": method, "tokens": 3, "draft_parameters": 10**8})
    assert after(words, "--speculative-algorithm") == algorithm
    assert after(words, "--speculative-num-draft-tokens") == "4"
    assert ("--speculative-num-steps" in words) == steps


def test_what_is_not_asked_for_is_not_told() -> None:
    for engine in ("vllm", "sglang", "tgi", "tensorrt-llm"):
        words, _ = lines(engine)
        assert not [word for word in words if "spec" in word or "lora" in word]


def test_adapters_get_their_slots() -> None:
    adapters = {"count": 4, "rank": 32}
    vllm, _ = lines("vllm", adapters=adapters)
    assert (after(vllm, "--max-loras"), after(vllm, "--max-lora-rank"), "--enable-lora" in vllm) == ("4", "32", True)
    sglang, notes = lines("sglang", adapters=adapters)
    assert (after(sglang, "--max-loras-per-batch"), after(sglang, "--max-lora-rank")) == ("4", "32")
    assert any("--lora-paths" in note for note in notes)
    for engine, words in (("tgi", "--lora-adapters"), ("tensorrt-llm", "lora_config")):
        assert any(words in note for note in lines(engine, adapters=adapters)[1])


def test_options_of_the_plan_reach_the_line() -> None:
    options = {"kv_cache_memory_bytes": 2**30, "disable_hybrid_kv_cache_manager": True}
    words, _ = lines("vllm", kv_cache="fp8_per_token_head", chunked_prefill=False, engine_options=options)
    assert after(words, "--kv-cache-memory-bytes") == str(2**30)
    assert after(words, "--kv-cache-dtype") == "fp8_per_token_head"
    assert {"--disable-hybrid-kv-cache-manager", "--no-enable-chunked-prefill"} <= set(words)
    words, _ = lines(
        "sglang", engine_options={"page_size": 64, "swa_full_tokens_ratio": 0.5, "version": "0.5.9", "cuda_graph_max_bs": 8}
    )
    assert (after(words, "--page-size"), after(words, "--swa-full-tokens-ratio"), after(words, "--cuda-graph-max-bs")) == (
        "64",
        "0.5",
        "8",
    )
    words, _ = lines("tgi", speculation={"method": "ngram", "tokens": 2}, engine_options={"max_batch_total_tokens": 4096})
    assert (after(words, "--speculate"), after(words, "--max-batch-total-tokens")) == ("2", "4096")


def test_a_cache_in_16_bit_is_said_where_the_checkpoint_may_declare_another() -> None:
    assert after(lines("vllm", kv_cache="bf16")[0], "--kv-cache-dtype") == "bfloat16"
    assert after(lines("sglang", kv_cache="bf16")[0], "--kv-cache-dtype") == "bf16"


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tgi"])
@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), "float16"), ((8, 0), "bfloat16"), (None, "bfloat16")])
def test_a_card_without_bf16_is_not_told_to_use_it(engine, capability, dtype) -> None:
    scenario = parse_scenario({"model": "org/model", "task": "inference", "weights": "bf16", "inference": {"engine": engine}})
    card = Gpu("any card", "nvidia", "", "", 16 * 10**9, capability)
    command = commands_of(scenario, gpu=card)[-1]
    assert after(shlex.split(command.text.replace("\\\n", " ")), "--dtype") == dtype
