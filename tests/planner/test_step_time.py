"""Step times against figures worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from planner.architecture.counts import parameter_count
from planner.predict import predict
from planner.scenario import parse_scenario
from resources.plan import find_gpu, find_model

A100 = find_gpu("A100 SXM4 80GB")
LLAMA = find_model("meta-llama/Llama-3.1-8B", network=False).architecture
BYTES = 2 * parameter_count(LLAMA)


def speed(gpus: int = 1, parallel: dict[str, Any] | None = None, offload: dict[str, Any] | None = None, **work: Any) -> Any:
    document = {
        "version": 1, "model": "meta-llama/Llama-3.1-8B", "task": "training", "training": {"batch": 1, "sequence": 2048} | work,
        "hardware": {"gpu": A100.name, "gpus": gpus}, "parallel": parallel, "offload": offload,
    }  # fmt: skip
    return predict(parse_scenario(document), LLAMA, A100).speed


@pytest.mark.parametrize(
    ("sharding", "sizes"),
    [("none", 2.0), ("zero1", 3.0), ("zero2", 3.0), ("zero3", 3.0), ("fsdp", 3.0)],
)
def test_a_ring_sends_what_it_must(sharding: str, sizes: float) -> None:
    """An all-reduce is two passes around the ring, a gather or a scatter one; full sharding gathers twice and scatters once.

    ZeRO 1 and 2 reduce in buckets over all ranks, then gather what was updated.
    """
    assert speed(4, {"sharding": sharding})["communication_bytes"] == pytest.approx(sizes * 3 / 4 * BYTES)


def test_parameters_that_stay_gathered_are_gathered_once() -> None:
    found = speed(4, {"sharding": "fsdp"}, engine_options={"reshard_after_forward": False})
    assert found["communication_bytes"] == pytest.approx(2 * 3 / 4 * BYTES)


def test_tensor_parallelism_sums_four_times_a_layer() -> None:
    """After attention and feed-forward, forward and backward, each an all-reduce of the residual stream."""
    assert speed(2, {"tensor": 2})["communication_bytes"] == pytest.approx(4 * 32 * 2 * 1 / 2 * 2 * 2048 * 4096)


@pytest.mark.parametrize(("micro", "chunks"), [(4, 1), (16, 1), (16, 2)])
def test_the_bubble_falls_with_micro_batches(micro: int, chunks: int) -> None:
    """(p − 1) / (m · v) of the work is waited for."""
    options = {"virtual_pipeline": chunks} if chunks > 1 else {}
    found = speed(4, {"pipeline": 4}, engine="megatron", gradient_accumulation=micro, engine_options=options)
    waited = 3 / (micro * chunks)
    assert found["bubble"] == pytest.approx(waited / (1 + waited))


def test_hours_are_tokens_over_their_rate() -> None:
    found = speed(engine_options={"total_tokens": 10**9})
    assert found["hours"] == pytest.approx(1e9 / found["tokens_per_s"] / 3600)
    assert speed()["hours"] is None


def test_recomputation_is_no_work_of_the_model() -> None:
    """The share of the peak that the model itself takes falls when its forward runs twice."""
    plain, again = speed(), speed(checkpointing="full")
    assert again["model_flops_fraction"] == pytest.approx(
        plain["model_flops_fraction"] * plain["step_s"] / again["step_s"], rel=1e-6
    )


def test_offloaded_states_cross_to_the_host() -> None:
    near, far = speed(4, {"sharding": "zero2"}), speed(4, {"sharding": "zero2"}, {"optimizer": 1.0})
    disk = speed(4, {"sharding": "zero2"}, {"optimizer": 1.0, "to": "nvme"})
    assert near["step_s"] < far["step_s"] < disk["step_s"]


def test_more_ranks_do_more_tokens() -> None:
    rates = [speed(gpus, {"sharding": "fsdp"})["tokens_per_s"] for gpus in (1, 2, 4, 8)]
    assert rates == sorted(rates)
