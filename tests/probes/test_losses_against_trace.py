"""Losses that never hold all logits, in closed form against the worker's: the peaks of forward and backward."""

from __future__ import annotations

import pytest

from planner.scenario import parse_scenario
from resources.plan import make_plan

SMALL = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 5000, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
WORK = {
    "chunks of one sequence": {"batch": 1, "sequence": 257, "loss": "chunked", "engine_options": {"chunk_tokens": 64}},
    "a last chunk that is shorter": {"batch": 2, "sequence": 300, "loss": "chunked", "engine_options": {"chunk_tokens": 256}},
    "one chunk": {"batch": 3, "sequence": 64, "loss": "chunked"},
    "chunks in fp32": {
        "batch": 2,
        "sequence": 200,
        "loss": "chunked",
        "precision": "fp32",
        "engine_options": {"chunk_tokens": 128},
    },
    "chunks under frozen weights": {"batch": 2, "sequence": 300, "loss": "chunked", "method": "lora"},
    "fused": {"batch": 1, "sequence": 300, "loss": "fused"},
    "fused of two sequences": {"batch": 2, "sequence": 300, "loss": "fused"},
    "fused under frozen weights": {"batch": 2, "sequence": 300, "loss": "fused", "method": "lora"},
    "fused and checkpointed": {"batch": 2, "sequence": 600, "loss": "fused", "checkpointing": "full"},
}


def predicted(config: dict[str, object], training: dict[str, object]):
    document = {"version": 1, "model": {"config": config}, "task": "training", "hardware": {"gpu": "H200 SXM 141GB"}}
    return make_plan(parse_scenario(document | {"training": training}), network=False).footprint


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize("work", WORK)
def test_a_loss_equals_its_trace(trace, work: str, tied: bool) -> None:
    assert_equal(trace, WORK[work], tied)


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize("loss", ["chunked", "fused"])
def test_a_head_adds_to_earlier_gradients_as_its_trace(trace, loss: str, tied: bool) -> None:
    assert_equal(trace, {"batch": 2, "sequence": 300, "loss": loss, "gradient_accumulation": 2}, tied)


def assert_equal(trace, work: dict[str, object], tied: bool) -> None:
    config = SMALL | {"tie_word_embeddings": tied}
    footprint = predicted(config, work)
    traced = trace(footprint.scenario, config)
    for phase in footprint.gpus[0].phases:
        assert phase.allocated == pytest.approx(traced[phase.name]["allocated"], rel=0.002), phase.name


@pytest.mark.parametrize("kind", ["chunked", "fused"])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_loss_by_chunks_never_takes_more_logits(kind: str, batch: int) -> None:
    """Of a large vocabulary and many tokens the model's own loss makes the peak; the others hold a part of its logits."""
    config = SMALL | {"vocab_size": 100_000}
    whole, parts = (
        predicted(config, {"batch": batch, "sequence": 4096, "loss": loss, "checkpointing": "full"}) for loss in ("default", kind)
    )
    for own, other in zip(whole.gpus[0].phases[1:3], parts.gpus[0].phases[1:3], strict=True):
        assert 2 * other.components.get("logits", 0) < own.components["logits"]
        assert other.allocated < own.allocated
