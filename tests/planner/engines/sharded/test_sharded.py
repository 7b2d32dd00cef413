"""The rules every sharding keeps: shards add up, one GPU holds what it holds alone, more ranks never hold more."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.architecture import read_config
from planner.architecture.counts import iter_weights, parameter_count
from planner.components.tape import rounded
from planner.faults import Faults
from planner.footprint import OUTSIDE_ALLOCATED, Footprint
from planner.predict import predict
from planner.scenario import parse_scenario
from resources.gpus import gpu

A100 = gpu("A100 SXM4 80GB")
CONFIG: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 96, "intermediate_size": 224,
    "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 1003,
    "max_position_embeddings": 4096, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
MODEL = read_config(CONFIG)
NAMES = ("none", "zero1", "zero2", "zero3", "fsdp")
RANKS = st.integers(1, 9)


def footprint(gpus: int = 1, sharding: str = "none", *, parallel: dict[str, Any] | None = None, **more: Any) -> Footprint:
    training = {"batch": 2, "sequence": 64} | more.pop("training", {})
    document = {
        "version": 1, "model": {"config": CONFIG}, "task": "training", "training": training,
        "hardware": {"gpu": A100.name, "gpus": gpus}, "parallel": {"sharding": sharding} | (parallel or {}), **more,
    }  # fmt: skip
    return predict(parse_scenario(document), MODEL, A100)


def phase(found: Footprint, name: str, index: int = 0):
    return next(each for each in found.gpus[index].phases if each.name == name)


def held(found: Footprint, component: str, name: str = "load", index: int = 0) -> int:
    return phase(found, name, index).components.get(component, 0)


@settings(max_examples=20)
@given(RANKS)
def test_fully_sharded_weights_add_up(ranks: int) -> None:
    """All ranks' shards are the parameters and, of each, the rows missing to a multiple of the ranks."""
    padded = sum(times * ranks * -(-weight.shape[0] // ranks) * prod(weight.shape[1:]) for _, weight, times in iter_weights(MODEL))
    assert held(footprint(ranks, "fsdp"), "weights") * ranks == padded * 2


@settings(max_examples=20)
@given(RANKS, st.sampled_from(("zero1", "zero2", "zero3")))
def test_partitions_add_up(ranks: int, sharding: str) -> None:
    """All ranks' fp32 partitions are the parameters in fp32, aligned: two elements a rank, or one for each parameter."""
    whole = parameter_count(MODEL) * 4
    tensors = sum(times for _, _, times in iter_weights(MODEL))
    slack = ranks * (tensors * 4 if sharding == "zero3" else 8) + 512 * ranks
    assert 0 <= held(footprint(ranks, sharding), "master_weights") * ranks - whole <= slack


@settings(max_examples=30)
@given(st.integers(2, 9), st.sampled_from(NAMES))
def test_a_rank_more_holds_no_more(ranks: int, sharding: str) -> None:
    """What stays on a card falls with the ranks."""
    few, more = footprint(ranks, sharding), footprint(ranks + 1, sharding)
    for name in ("load", "optimizer"):
        assert phase(more, name).allocated <= phase(few, name).allocated + 512 * 64


def test_one_gpu_with_ddp_is_one_gpu_alone() -> None:
    """A replica without others has no buckets."""
    document = {"bucket_cap_mb": 1}
    alone, wrapped = footprint(), footprint(training={"engine_options": document})
    assert [each.allocated for each in alone.gpus[0].phases] == [each.allocated for each in wrapped.gpus[0].phases]


def test_one_gpu_fully_sharded_holds_copies_of_its_parameters() -> None:
    """``fully_shard`` over one rank: the same weights, gradients and states; gathered copies and reduction buffers on top."""
    alone, sharded = footprint(), footprint(sharding="fsdp")
    assert held(alone, "weights") == held(sharded, "weights")
    for component in ("optimizer_state",):
        assert held(alone, component, "optimizer") == held(sharded, component, "optimizer")
    assert phase(sharded, "optimizer").allocated <= phase(alone, "optimizer").allocated
    copies = held(sharded, "weights", "forward") - held(sharded, "weights")
    assert phase(sharded, "forward").allocated == phase(alone, "forward").allocated + copies


def test_one_gpu_under_zero_adds_its_masters() -> None:
    """Stages 1 and 2 over one rank: 16-bit weights as alone, and fp32 masters."""
    alone = footprint()
    for sharding in ("zero1", "zero2"):
        found = footprint(sharding=sharding)
        masters = rounded(parameter_count(MODEL) * 4)
        assert held(found, "master_weights") == masters
        assert abs(phase(found, "load").allocated - phase(alone, "load").allocated - masters) <= 512 * 64


@pytest.mark.parametrize("sharding", NAMES)
def test_components_add_up(sharding: str) -> None:
    """The components of every phase of every rank are its device figure, without context and slack what is allocated."""
    found = footprint(4, sharding)
    for card in found.gpus:
        for each in card.phases:
            assert sum(each.components.values()) == each.device
            assert sum(size for name, size in each.components.items() if name not in OUTSIDE_ALLOCATED) == each.allocated


@pytest.mark.parametrize("sharding", NAMES)
def test_terms_add_up(sharding: str) -> None:
    """Every byte of every rank opens to a term."""
    found = footprint(4, sharding)
    for card in found.gpus:
        for each in card.phases:
            assert sum(term.bytes for term in found.terms if term.tells_of(each.name, card.index)) == each.device


@settings(max_examples=20)
@given(st.sampled_from(NAMES), st.integers(1, 6), st.integers(1, 300))
def test_more_tokens_hold_no_less(sharding: str, batch: int, sequence: int) -> None:
    """Monotone in batch and sequence."""

    def peak(batch: int, sequence: int) -> int:
        found = footprint(4, sharding, training={"batch": batch, "sequence": sequence})
        return max(each.allocated for card in found.gpus for each in card.phases)

    assert peak(batch, sequence) <= peak(batch + 1, sequence)
    assert peak(batch, sequence) <= peak(batch, sequence + 1)


def test_buckets_are_as_large_as_the_gradients() -> None:
    """DDP copies gradients into buckets, unless they lie in them."""
    copied, viewed = footprint(2), footprint(2, training={"engine_options": {"gradient_as_bucket_view": True}})
    size = parameter_count(MODEL) * 2
    assert size <= held(copied, "communication", "optimizer") <= size + 512 * 64
    assert held(viewed, "communication", "optimizer") == 0
    assert phase(viewed, "optimizer").allocated < phase(copied, "optimizer").allocated


def test_offloading_moves_states_to_the_host() -> None:
    """Optimizer states leave the GPU and stand in the host's memory, of all ranks."""
    found = footprint(4, "zero2", offload={"optimizer": 1.0})
    assert held(found, "optimizer_state", "optimizer") <= 512
    assert held(found, "master_weights", "optimizer") == 0
    assert found.host.components["optimizer_state"] >= parameter_count(MODEL) * 8


@pytest.mark.parametrize(
    ("gpus", "parallel", "field"),
    [
        (2, {"data": 4}, "hardware.gpus"),
        (4, {"tensor": 4}, "parallel.tensor"),
        (2, {"pipeline": 2}, "parallel.pipeline"),
        (2, {"expert": 2}, "parallel.expert"),
    ],
)
def test_nonsense_is_refused(gpus: int, parallel: dict[str, int], field: str) -> None:
    """More ranks than GPUs, ways that don't divide the heads, dimensions a framework does not have."""
    with pytest.raises(Faults) as raised:
        footprint(gpus, parallel=parallel)
    assert field in {fault.path for fault in raised.value.faults}


@pytest.mark.parametrize("work", [{}, {"method": "lora"}, {"precision": "amp-bf16"}, {"engine": "fsdp"}])
def test_what_is_dropped_was_held(work: dict[str, Any]) -> None:
    """With several micro-batches gradients come, are added to and go: no term is ever negative."""
    found = footprint(4, "fsdp", training={"gradient_accumulation": 2} | work)
    assert min(term.bytes for term in found.terms) >= 0
    assert held(found, "gradients", "optimizer") > 0


def test_gradient_accumulation_changes_nothing_but_its_buffers() -> None:
    """Whole gradients wait in 16 bit on every rank under accelerate, shards of them in torchtitan's loop."""
    for engine, waiting in (("transformers", 2 * parameter_count(MODEL)), ("fsdp", parameter_count(MODEL) // 2)):
        one = footprint(4, "fsdp", training={"engine": engine})
        two = footprint(4, "fsdp", training={"engine": engine, "gradient_accumulation": 2})
        assert phase(two, "load").allocated == phase(one, "load").allocated
        assert phase(two, "optimizer").allocated == phase(one, "optimizer").allocated
        more = phase(two, "forward").allocated - phase(one, "forward").allocated
        assert 0 <= more - waiting <= 512 * 64
