"""Optimizers in closed form against the worker's steps: states to the byte, the step's peak."""

from __future__ import annotations

import pytest

from planner.components.optimizers import OPTIMIZERS
from planner.scenario import parse_scenario
from resources.plan import make_plan

SMALL = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 4000, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
COUNTED_ON_HOST = ("adamw", "muon")
"""Their step counters are CPU tensors, which a trace of CPU tensors counts; a device has none."""


def assert_equal(trace, config: dict[str, object], training: dict[str, object]) -> None:
    document = {"version": 1, "model": {"config": config}, "task": "training", "hardware": {"gpu": "H200 SXM 141GB"}}
    scenario = parse_scenario(document | {"training": {"batch": 1, "sequence": 16} | training})
    footprint = make_plan(scenario, network=False).footprint
    traced = trace(footprint.scenario, config)
    for phase in footprint.gpus[0].phases:
        if phase.name == "forward":
            states = traced[phase.name]["components"].get("optimizer_state", 0)
            counters = 512 * 30 if training["optimizer"] in COUNTED_ON_HOST else 0
            assert abs(phase.components.get("optimizer_state", 0) - states) <= counters
        assert phase.allocated == pytest.approx(traced[phase.name]["allocated"], rel=0.0005), phase.name


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "adamw_fused"])
def test_every_optimizer_equals_its_steps(trace, optimizer: str) -> None:
    assert_equal(trace, SMALL, {"optimizer": optimizer, "engine_options": {"projection_rank": 32}})


@pytest.mark.parametrize("optimizer", ["adafactor", "muon", "galore", "lion"])
def test_an_optimizer_of_fp32_parameters_equals_its_steps(trace, optimizer: str) -> None:
    assert_equal(trace, SMALL, {"optimizer": optimizer, "precision": "fp32"})


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
def test_a_loop_over_tied_parameters_equals_its_steps(trace, optimizer: str) -> None:
    assert_equal(trace, SMALL | {"model_type": "qwen2", "tie_word_embeddings": True, "vocab_size": 600}, {"optimizer": optimizer})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("optimizer", ["adafactor", "muon", "galore", "adamw"])
def test_an_optimizer_of_stacked_experts_equals_its_steps(trace, optimizer: str) -> None:
    """All experts of a layer are one parameter, gate and up in one: no matrix that is projected or made orthogonal."""
    experts = {
        "model_type": "qwen3_moe", "moe_intermediate_size": 512, "num_experts": 8, "num_experts_per_tok": 2, "vocab_size": 600,
    }  # fmt: skip
    assert_equal(trace, SMALL | experts, {"optimizer": optimizer, "engine_options": {"projection_rank": 32}})


def test_clipping_equals_its_trace(trace) -> None:
    assert_equal(trace, SMALL, {"optimizer": "sgd", "engine_options": {"max_grad_norm": 1.0}})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["full", "lora", "prompt"])
def test_a_moving_average_equals_its_trace(trace, method: str) -> None:
    assert_equal(trace, SMALL, {"optimizer": "adamw_8bit", "method": method, "engine_options": {"ema": True}})
