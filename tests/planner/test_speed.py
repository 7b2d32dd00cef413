"""Speeds against figures worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import speed as module
from planner.formats import parse_format
from planner.gpu import Gpu
from planner.predict import predict
from planner.scenario import parse_scenario
from planner.speed import (
    BANDWIDTH_FRACTION,
    LINK_FRACTION,
    PREFILL_FLOPS_FRACTION,
    TRAINING_FLOPS_FRACTION,
    distinct_experts,
    parts_of,
    rates_of,
    tokens_per_s,
)
from resources.plan import find_gpu, find_model

LLAMA = "meta-llama/Llama-3.1-8B"
LAYERS, HIDDEN, WIDE, VOCABULARY = 32, 4096, 14336, 128256
PROJECTIONS = LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * 1024)
PRODUCTS = PROJECTIONS + LAYERS * 3 * HIDDEN * WIDE
HEAD = HIDDEN * VOCABULARY
BF16 = parse_format("bf16")
A100 = find_gpu("A100 SXM4 80GB")


def ask(task: str = "inference", model: str = LLAMA, gpu: Gpu = A100, weights: str = "native", parallel=None, offload=None, **work):
    document = {
        "version": 1,
        "model": model,
        "task": task,
        "weights": weights,
        task: work,
        "parallel": parallel,
        "offload": offload,
    }
    document["hardware"] = {"gpus": (parallel or {}).get("tensor", 1)}
    found = find_model(model, network=False)
    return predict(parse_scenario(document), found.architecture, gpu, found.native).speed


def test_decoding_reads_weights_and_cache() -> None:
    """One token of one sequence: every matrix and the cache once, at the achieved bandwidth."""
    read = 2 * (PRODUCTS + HEAD) + 2 * LAYERS * 1024 * 2 * (1000 + 5 + 1)
    found = ask(prompt_tokens=1000, new_tokens=10)
    assert found["time_per_token_s"] == pytest.approx(read / (A100.bandwidth_bytes_per_s * BANDWIDTH_FRACTION), rel=1e-3)
    assert found["tokens_per_s"] == pytest.approx(1 / found["time_per_token_s"])
    assert found["bound_by"] == "bandwidth"


def test_a_prefill_computes() -> None:
    """Two operations a weight and token, and scores and values of the causal half; logits of the last position alone."""
    tokens = 4096
    flops = 2 * PRODUCTS * tokens + LAYERS * 2 * 32 * 256 * tokens * (tokens + 1) // 2
    seconds = flops / (A100.flops_for("bf16") * PREFILL_FLOPS_FRACTION)
    found = ask(prompt_tokens=tokens, new_tokens=1)
    assert found["prefill_s"] == pytest.approx(seconds, rel=0.01)
    assert found["prefill_bound_by"] == "compute"


def test_a_batch_flips_decoding_where_the_ridge_is() -> None:
    """A weight in 16 bits is read in the time of (FLOP/s) / (bytes/s) products, one for each sequence."""
    ridge = A100.flops_for("bf16") * PREFILL_FLOPS_FRACTION / (A100.bandwidth_bytes_per_s * BANDWIDTH_FRACTION)
    assert ask()["compute_bound_from_batch"] == pytest.approx(ridge, abs=1.01)
    assert ask(weights="gptq-int4-g128")["compute_bound_from_batch"] < ridge / 2


def test_tensor_parallelism_divides_and_reduces() -> None:
    one = ask(engine="vllm", prompt_tokens=1000, new_tokens=2)
    two = ask(engine="vllm", prompt_tokens=1000, new_tokens=2, parallel={"tensor": 2})
    reduced = 2 * LAYERS * HIDDEN * 2 * 2 * (2 - 1) / 2 / (A100.link_bytes_per_s * LINK_FRACTION)
    assert two["time_per_token_s"] == pytest.approx(one["time_per_token_s"] / 2 + reduced)


def test_offloaded_weights_come_over_the_host_link() -> None:
    found = ask(offload={"weights": 0.5}, prompt_tokens=100)
    assert found["bound_by"] == "host"
    assert found["time_per_token_s"] > (PRODUCTS + HEAD) / A100.host_bytes_per_s


def test_training_takes_three_forwards_and_recomputation_a_fourth() -> None:
    plain = ask("training", batch=1, sequence=2048)
    again = ask("training", batch=1, sequence=2048, checkpointing="full")
    flops = 2 * (PRODUCTS + HEAD) * 2048 + LAYERS * 2 * 32 * 256 * 2048 * 2049 // 2
    forward = flops / (A100.flops_for("bf16") * TRAINING_FLOPS_FRACTION)
    assert again["step_s"] - plain["step_s"] == pytest.approx(forward, rel=0.01)
    assert plain["step_s"] == pytest.approx(3 * forward, rel=0.15)
    assert plain["tokens_per_s"] == pytest.approx(2048 / plain["step_s"])


@given(st.integers(1, 512), st.integers(1, 16), st.integers(1, 3000))
def test_experts_that_wake(experts, per_token, tokens) -> None:
    """At least those of one token, at most all; more tokens wake no fewer."""
    per_token = min(per_token, experts)
    found = distinct_experts(experts, per_token, tokens)
    assert per_token - 1e-6 <= found <= experts
    assert found <= distinct_experts(experts, per_token, tokens + 1) + 1e-9


def test_experts_are_read_as_they_wake() -> None:
    found = find_model("Qwen/Qwen3-30B-A3B", network=False).architecture
    one, many = ({part.name: part for part in parts_of(found, BF16, batch, 1, 0)} for batch in (1, 1000))
    expert_bytes = 48 * 128 * 3 * 2048 * 768 * 2
    assert one["experts"].bytes == pytest.approx(expert_bytes * 8 / 128)
    assert many["experts"].bytes == pytest.approx(expert_bytes)
    assert one["experts"].flops == pytest.approx(expert_bytes * 8 / 128)


def test_windows_bound_what_is_seen() -> None:
    assert module._seen(5, 0, None) == 15
    assert module._seen(5, 0, 3) == 1 + 2 + 3 + 3 + 3
    assert module._seen(4, 10, 12) == 11 + 12 + 12 + 12
    assert module._seen(1, 100, 3) == 3


def test_throughput_grows_with_concurrency() -> None:
    found = find_model(LLAMA, network=False)
    scenario = parse_scenario(
        {"version": 1, "model": LLAMA, "task": "inference", "inference": {"prompt_tokens": 500, "new_tokens": 100}}
    )
    rising = tokens_per_s(scenario, found.architecture, BF16, A100, [1, 2, 8, 64, 256])
    assert rising == sorted(rising)
    assert rising[1] < 2 * rising[0]


def test_what_a_card_does_not_say_stays_unsaid() -> None:
    blind = replace(A100, bandwidth_bytes_per_s=None)
    assert ask(gpu=blind) == {}
    assert rates_of(replace(A100, flops={}), "bf16", 1.0) is None
    assert ask(gpu=blind, weights="gguf:Q4_K_M", engine="llama.cpp") == {}
