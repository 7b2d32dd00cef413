"""What a scenario leaves out, and which weights a training starts from."""

from __future__ import annotations

import pytest

from planner.architecture import read_config
from planner.defaults import settle
from planner.faults import Faults
from planner.scenario import Scenario, parse_scenario

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "torch_dtype": "bfloat16",
}  # fmt: skip


def settled_of(method: str, precision: str, weights: str) -> tuple[Scenario, tuple[str, ...]]:
    training = {"method": method, "precision": precision}
    document = {"model": {"config": CONFIG}, "task": "training", "weights": weights, "training": training}
    return settle(parse_scenario(document), read_config(CONFIG), "bf16")


def weights_of(method: str, precision: str, weights: str) -> str:
    return settled_of(method, precision, weights)[0].weights


@pytest.mark.parametrize(
    ("method", "precision", "weights", "settled"),
    [
        ("full", "bf16", "native", "bf16"),
        ("full", "amp-bf16", "native", "fp32"),
        ("full", "amp-bf16", "bf16", "fp32"),
        ("lora", "amp-bf16", "native", "bf16"),
        ("lora", "amp-fp16", "native", "fp16"),
        ("lora", "amp-bf16", "fp32", "fp32"),
        ("dora", "bf16", "native", "bf16"),
        ("qlora", "bf16", "native", "nf4-dq"),
    ],
)
def test_masters_are_fp32_and_a_frozen_base_has_none(method: str, precision: str, weights: str, settled: str) -> None:
    assert weights_of(method, precision, weights) == settled


def test_quantised_weights_are_trained_through_adapters_only() -> None:
    with pytest.raises(Faults, match="or method qlora"):
        weights_of("full", "bf16", "nf4")


@pytest.mark.parametrize(("weights", "told"), [("bf16", True), ("nf4", False), ("native", False)])
def test_qlora_over_weights_that_are_not_quantised_is_told(weights: str, told: bool) -> None:
    _, notes = settled_of("qlora", "bf16", weights)
    assert any("is not quantised" in note for note in notes) == told
