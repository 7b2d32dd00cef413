"""llama.cpp's speed: weights at the bandwidth of whoever holds them, prompts batch by batch."""

from __future__ import annotations

import pytest

from planner.engines.llama_cpp.speed import HOST_BYTES_PER_S
from planner.footprint import Footprint
from planner.scenario import parse_scenario
from planner.speed import BANDWIDTH_FRACTION
from resources.plan import find_gpu, make_plan

CARD = "GeForce RTX 4090"


def footprint(model: str = "meta-llama/Llama-3.1-8B", gpus: int = 1, gpu: str = CARD, **inference: object) -> Footprint:
    work = {"engine": "llama.cpp", "prompt_tokens": 2048, "new_tokens": 64, **inference}
    document = {"version": 1, "model": model, "weights": "gguf:Q4_K_M", "task": "inference", "inference": work}
    return make_plan(parse_scenario(document | {"hardware": {"gpu": gpu, "gpus": gpus}}), network=False).footprint


def options(**given: object) -> dict[str, object]:
    return {"engine_options": given}


def test_a_token_takes_as_long_as_reading_the_weights() -> None:
    found = footprint()
    weights = found.gpus[0].phases[0].components["weights"]
    reading = weights / (find_gpu(CARD).bandwidth_bytes_per_s * BANDWIDTH_FRACTION)
    assert found.speed["time_per_token_s"] == pytest.approx(reading, rel=0.1)
    assert found.speed["bound_by"] == "bandwidth"
    assert found.speed["prefill_bound_by"] == "compute"


def test_what_is_on_the_host_is_read_there() -> None:
    found = footprint(**options(n_gpu_layers=0))
    head = 128256 * 4096 * 0.56
    reading = (found.host.components["weights"] - head) / HOST_BYTES_PER_S
    assert found.speed["time_per_token_s"] == pytest.approx(reading, rel=0.1)
    assert found.speed["bound_by"] == "host"


def test_layers_move_the_time_a_token_takes_from_host_to_card() -> None:
    times = [footprint(**options(n_gpu_layers=layers)).speed["time_per_token_s"] for layers in (0, 8, 16, 24, 33)]
    assert times == sorted(times, reverse=True)


def test_experts_on_the_host_cost_what_is_awake_of_them() -> None:
    model = "Qwen/Qwen3-30B-A3B"
    here, away = footprint(model), footprint(model, **options(cpu_moe=True))
    assert 3 < away.speed["time_per_token_s"] / here.speed["time_per_token_s"] < 12
    dense = footprint(model, **options(n_gpu_layers=0))
    assert away.speed["time_per_token_s"] < dense.speed["time_per_token_s"]
    assert away.speed["bound_by"] == "host"
    assert away.speed["prefill_bound_by"] == "host"


def test_several_cards_take_turns_at_a_token_and_share_a_prompt() -> None:
    one, two = footprint(), footprint(gpus=2)
    assert two.speed["time_per_token_s"] == pytest.approx(one.speed["time_per_token_s"])
    assert 0.5 <= two.speed["prefill_s"] / one.speed["prefill_s"] < 0.9


def test_slots_share_the_reading_of_weights() -> None:
    rates = [footprint(batch=batch).speed["tokens_per_s"] for batch in (1, 4, 16)]
    assert rates[0] < rates[1] / 2 < rates[2] / 4


def test_what_llama_cpp_refuses_or_is_not_derived_has_no_speed() -> None:
    assert not footprint("EleutherAI/gpt-j-6b").speed
