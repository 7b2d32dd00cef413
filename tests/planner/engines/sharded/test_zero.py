"""ZeRO by the bytes that DeepSpeed's code makes, for a model small enough to count."""

from __future__ import annotations

from typing import Any

import pytest

from planner.architecture.counts import iter_weights, parameter_count
from planner.components.tape import rounded
from planner.footprint import Footprint, Phase
from planner.predict import predict
from planner.scenario import parse_scenario
from tests.planner.engines.sharded.test_sharded import A100, CONFIG, MODEL

PARAMETERS = parameter_count(MODEL)
BUCKET = 100_000


def footprint(stage: int, gpus: int = 4, *, offload: dict[str, Any] | None = None, micro: int = 1, **options: Any) -> Footprint:
    options = {"reduce_bucket_size": BUCKET} | options
    work = {"engine": "deepspeed", "batch": 1, "sequence": 8, "gradient_accumulation": micro, "engine_options": options}
    document = {
        "version": 1, "model": {"config": CONFIG}, "task": "training", "training": work,
        "hardware": {"gpu": A100.name, "gpus": gpus}, "parallel": {"sharding": f"zero{stage}"}, "offload": offload or {},
    }  # fmt: skip
    return predict(parse_scenario(document), MODEL, A100)


def phase(found: Footprint, name: str, index: int = -1) -> Phase:
    return next(each for each in found.gpus[index].phases if each.name == name)


def terms(found: Footprint, name: str, words: str) -> int:
    return sum(term.bytes for term in found.terms if term.phase == name and words in term.formula)


def partition(gpus: int) -> int:
    return -(-PARAMETERS // (2 * gpus)) * 2


@pytest.mark.parametrize("stage", [1, 2])
def test_the_step_casts_a_partition(stage: int) -> None:
    """Gradients of the partition, the same laid together, the same in fp32; then the narrow ones go: 8 bytes an element."""
    part = partition(1)
    found = phase(footprint(stage, 1), "optimizer").components["gradients"]
    assert found == rounded(2 * part) + rounded(2 * part) + rounded(4 * part)


@pytest.mark.parametrize(("overlap", "buckets"), [(True, 2), (False, 1)])
def test_buckets_live_as_long_as_the_backward(overlap: bool, buckets: int) -> None:
    """Two where one is filled while the other is reduced."""
    found = footprint(2, overlap_comm=overlap)
    assert phase(found, "backward").components["communication"] == buckets * rounded(2 * BUCKET)
    for name in ("forward", "optimizer"):
        assert "communication" not in phase(found, name).components


def test_stage_one_without_overlap_holds_all_gradients() -> None:
    """They are reduced when the backward is done; stage 2 copies each into the bucket as it comes."""
    whole, parted = footprint(1, overlap_comm=False), footprint(2, overlap_comm=False)
    assert phase(whole, "backward").components["gradients"] >= 2 * PARAMETERS
    assert phase(parted, "backward").components["gradients"] < 2 * PARAMETERS


def test_norms_are_taken_in_double_precision() -> None:
    """``get_grad_norm_direct`` makes a fp64 copy of each gradient: of many ranks it is what the step's moment is made of."""
    largest = 1003 * 96
    found = phase(footprint(2, 8), "optimizer")
    assert found.components["gradients"] == rounded(2 * partition(8))
    assert found.components["workspace"] >= rounded(8 * min(largest, partition(8)))


def test_the_last_rank_meets_its_gradients_first() -> None:
    """The backward begins at the head, which the last partition owns: its gradients wait longest."""
    found = footprint(2)
    assert [card.index for card in found.gpus] == [0, 3]
    assert phase(found, "backward", -1).allocated >= phase(found, "backward", 0).allocated


def test_micro_batches_keep_a_partition() -> None:
    one, two = footprint(2), footprint(2, micro=2)
    more = phase(two, "forward").allocated - phase(one, "forward").allocated
    assert more == rounded(2 * partition(4))


def test_stage_three_keeps_parts_of_each_parameter() -> None:
    """Parameters, gradients and masters by part; small parameters whole beside; a bucket from the start."""
    found = phase(footprint(3, stage3_param_persistence_threshold=200), "load").components
    own = sum(times * -(-count(weight) // 4) for _, weight, times in iter_weights(MODEL))
    small = sum(times * count(weight) for _, weight, times in iter_weights(MODEL) if count(weight) < 200)
    assert found["weights"] == rounded(2 * own) + rounded(2 * small)
    assert found["gradients"] == rounded(2 * own)
    assert found["master_weights"] == rounded(4 * own)
    assert found["communication"] == rounded(2 * BUCKET)


def test_live_parameters_are_bounded() -> None:
    """Prefetching stops at ``stage3_max_live_parameters``."""
    options = {"stage3_param_persistence_threshold": 0}
    least, most = (footprint(3, stage3_max_live_parameters=live, **options) for live in (50_000, 10**9))
    grown = phase(most, "forward").components["weights"] - phase(least, "forward").components["weights"]
    assert grown == rounded(2 * PARAMETERS) - rounded(2 * 50_000)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloaded_states_are_the_hosts(stage: int) -> None:
    """Masters, their gradients and Adam's two moments, fp32, of all ranks."""
    found = footprint(stage, offload={"optimizer": 1.0})
    part = partition(4) if stage < 3 else sum(times * -(-count(weight) // 4) for _, weight, times in iter_weights(MODEL))
    assert found.host.components["master_weights"] == 4 * 4 * part
    assert found.host.components["optimizer_state"] == 2 * 4 * 4 * part
    assert phase(found, "optimizer").components.get("master_weights", 0) == 0


def test_adapters_alone_are_partitioned() -> None:
    document = {
        "version": 1, "model": {"config": CONFIG}, "task": "training", "hardware": {"gpu": A100.name, "gpus": 4},
        "training": {"engine": "deepspeed", "method": "lora", "lora": {"rank": 8}, "batch": 2, "sequence": 64},
        "parallel": {"sharding": "zero2"},
    }  # fmt: skip
    found = predict(parse_scenario(document), MODEL, A100)
    trained = 3 * 8 * ((96 + 96) + (96 + 32))
    assert found.trainable_parameters == trained
    assert phase(found, "load").components["master_weights"] == rounded(4 * -(-trained // 8) * 2)
    assert phase(found, "load").components["weights"] >= 2 * PARAMETERS


def count(weight: Any) -> int:
    total = weight.count
    for extent in weight.shape:
        total *= extent
    return total
