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
    speed,
    step_shares,
    tokens_per_s,
)
from resources.plan import find_gpu, find_model, make_plan

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
    ways = parallel or {}
    document["hardware"] = {"gpus": ways.get("tensor", 1) * ways.get("pipeline", 1) * ways.get("data", 1)}
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
    """Two all-reduces a layer, each of what it sends and of the least that NCCL's ring takes: 3.6 µs and two steps of 0.47."""
    one = ask(engine="vllm", prompt_tokens=1000, new_tokens=2)
    two = ask(engine="vllm", prompt_tokens=1000, new_tokens=2, parallel={"tensor": 2})
    reduced = 2 * LAYERS * HIDDEN * 2 * 2 * (2 - 1) / 2 / (A100.link_bytes_per_s * LINK_FRACTION)
    waited = 2 * LAYERS * (3.6e-6 + 2 * 0.47e-6)
    assert two["time_per_token_s"] == pytest.approx(one["time_per_token_s"] / 2 + reduced + waited)


def test_many_ranks_wait_for_each_other_most_where_each_reads_little() -> None:
    """One sequence of a mixture of experts over eight GPUs: latencies take more than the experts' own time."""
    model = "Qwen/Qwen3-30B-A3B"
    one, eight = (
        ask(model=model, engine="vllm", prompt_tokens=100, new_tokens=2, parallel={"tensor": ways}) for ways in (1, 8)
    )  # fmt: skip
    assert one["time_per_token_s"] / 8 + 48 * 2 * 10e-6 < eight["time_per_token_s"] < one["time_per_token_s"]


SENT = HIDDEN * 2 / (A100.link_bytes_per_s * LINK_FRACTION)


def test_stages_take_turns_for_one_sequence_and_work_at_once_for_many() -> None:
    """Rule: a token passes every stage; of several sequences each stage has one, so that none waits."""
    work = {"engine": "vllm", "prompt_tokens": 1000, "new_tokens": 2}
    alone, staged = ask(**work), ask(**work, parallel={"pipeline": 4})
    assert staged["time_per_token_s"] == pytest.approx(alone["time_per_token_s"] + 3 * SENT)
    four = ask(**work, batch=4, parallel={"pipeline": 4})
    assert four["tokens_per_s"] == pytest.approx(4 * staged["tokens_per_s"])
    assert four["prefill_s"] == pytest.approx(staged["prefill_s"] * (1 + 3 / 4))


def test_the_longest_stage_sets_the_pace() -> None:
    """Rule: 32 layers over 5 stages are 7 at most: five groups take five times as long as those seven."""
    work = {"engine": "vllm", "prompt_tokens": 1000, "new_tokens": 2}
    one, five = (ask(**work, batch=batch, parallel={"pipeline": 5}) for batch in (1, 5))
    assert five["time_per_token_s"] == pytest.approx(one["time_per_token_s"] * 5 * 7 / 32)


def test_replicas_share_the_sequences() -> None:
    """Rule: each data-parallel rank does its share of the sequences, as fast as alone."""
    work = {"engine": "vllm", "prompt_tokens": 1000, "new_tokens": 2}
    half, both = ask(**work, batch=8), ask(**work, batch=16, parallel={"data": 2})
    assert both["time_per_token_s"] == pytest.approx(half["time_per_token_s"])
    assert both["tokens_per_s"] == pytest.approx(2 * half["tokens_per_s"])
    assert both["prefill_s"] == pytest.approx(half["prefill_s"])


def test_experts_over_ranks_are_read_once_for_all() -> None:
    """Rule: a rank reads its share of the experts that the tokens of all ranks wake, and sends tokens there and back."""
    work = {"engine": "vllm", "model": "Qwen/Qwen3-30B-A3B", "prompt_tokens": 100, "new_tokens": 2, "batch": 64}
    copied = ask(**work, parallel={"data": 4})
    spread = ask(**work, parallel={"data": 4, "expert": 4})
    expert_bytes = 48 * 128 * 3 * 2048 * 768 * 2
    less = expert_bytes / 128 * (distinct_experts(128, 8, 16) - distinct_experts(128, 8, 64) / 4)
    sent = 48 * 2 * 4 * 16 * 2048 * 2 * (3 / 4) / (A100.link_bytes_per_s * LINK_FRACTION)
    saved = less / (A100.bandwidth_bytes_per_s * BANDWIDTH_FRACTION) - sent
    assert copied["time_per_token_s"] - spread["time_per_token_s"] == pytest.approx(saved)


@given(st.integers(1, 40), st.sampled_from([1, 2, 4, 8]), st.integers(1, 4))
def test_more_stages_or_replicas_never_lose_throughput_of_many(batch, pipeline, data) -> None:
    """Rule: stages that divide the layers, and replicas, decode no fewer tokens a second than one GPU but for the links."""
    work = {"engine": "vllm", "prompt_tokens": 200, "new_tokens": 2}
    alone = ask(**work, batch=batch)
    found = ask(**work, batch=batch, parallel={"pipeline": pipeline, "data": data})
    links = pipeline * batch * SENT
    assert found["time_per_token_s"] <= alone["time_per_token_s"] + pipeline * links


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


@pytest.mark.parametrize("parallel", [{}, {"tensor": 2}, {"pipeline": 5}, {"data": 4, "expert": 4}])
@pytest.mark.parametrize("offload", [{}, {"weights": 0.25}])
def test_a_step_opens_to_the_parts_it_is_the_sum_of(parallel, offload) -> None:
    """Rule: the shares of a step sum up to it, and the binding that has most of them binds it."""
    document = {"version": 1, "model": "Qwen/Qwen3-30B-A3B", "task": "inference", "parallel": parallel, "offload": offload,
                "inference": {"engine": "vllm", "batch": 16, "prompt_tokens": 500, "new_tokens": 100}}  # fmt: skip
    found, scenario = find_model("Qwen/Qwen3-30B-A3B", network=False), parse_scenario(document)
    shares = step_shares(scenario, found.architecture, BF16, A100)
    whole = speed(scenario, found.architecture, BF16, A100)
    assert sum(share.seconds for share in shares) == pytest.approx(whole["time_per_token_s"])
    by = {share.bound_by: sum(one.seconds for one in shares if one.bound_by == share.bound_by) for share in shares}
    assert max(by, key=by.get) == whole["bound_by"]
    assert {"experts", "projections", "cache"} <= {share.name for share in shares}


def test_a_training_that_is_not_modelled_has_no_speed() -> None:
    """No linear has the name its adapters ask for: that is told by the footprint's notes, and nothing fails for it."""
    lora = {"targets": ["no_such_module"]}
    assert ask("training", "deepseek-ai/DeepSeek-V3.2", method="lora", lora=lora) == {}


@pytest.mark.parametrize("engine", ["transformers", "vllm", "llama.cpp"])
def test_samples_decode_beside_each_other(engine) -> None:
    """Four samples of a request are four sequences; their prompt is passed once by a server, for each by ``generate``."""
    one, four, batch = (_told(engine, **work) for work in ({}, {"samples": 4}, {"batch": 4}))
    assert four["time_per_token_s"] == pytest.approx(batch["time_per_token_s"])
    assert four["tokens_per_s"] == pytest.approx(batch["tokens_per_s"])
    if engine == "vllm":
        assert four["prefill_s"] == one["prefill_s"]
    else:
        assert four["prefill_s"] == pytest.approx(batch["prefill_s"])


@pytest.mark.parametrize("engine", ["transformers", "vllm", "llama.cpp"])
def test_the_last_turn_of_a_conversation_reads_what_is_kept_of_the_others(engine) -> None:
    plain, kept, summary = (
        _told(engine, **work)
        for work in ({}, {"conversation": {"turns": 8}}, {"conversation": {"turns": 8, "history": "summarise", "kept_tokens": 500}})
    )
    assert plain["time_per_token_s"] < summary["time_per_token_s"] < kept["time_per_token_s"]
    assert plain["prefill_s"] < summary["prefill_s"]


def _told(engine: str, **work: object) -> dict[str, float]:
    ask = {"engine": engine, "prompt_tokens": 1000, "new_tokens": 200, "max_model_len": 16384, **work}
    document = {"model": "meta-llama/Llama-3.1-8B", "weights": "fp16", "task": "inference", "inference": ask}
    plan = make_plan(parse_scenario({**document, "hardware": {"gpu": "H100 SXM5 80GB"}}), network=False, calibrated=False)
    return dict(plan.footprint.speed)  # type: ignore[arg-type]
