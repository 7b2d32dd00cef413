"""Linears in 8-bit floats in closed form against the worker's, which computes as torchao does."""

from __future__ import annotations

import pytest

from planner.scenario import parse_scenario
from resources.plan import make_plan

SMALL = {
    "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4,
    "vocab_size": 1200, "torch_dtype": "bfloat16",
}  # fmt: skip
LLAMA = SMALL | {"model_type": "llama"}
BIASED = SMALL | {"model_type": "qwen2", "tie_word_embeddings": True}
EXPERTS = SMALL | {"model_type": "qwen2_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 176} | {
    "shared_expert_intermediate_size": 352,
}  # fmt: skip
SMALL_TENSORS_BYTES = 128 * 1024


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("config", "training", "weights"),
    [
        (LLAMA, {"engine_options": {"fp8_recipe": "rowwise"}}, "native"),
        (LLAMA, {"batch": 3, "sequence": 333, "gradient_accumulation": 2, "checkpointing": "full"}, "fp32"),
        (BIASED, {"method": "freeze", "trainable": ["layers.1"]}, "native"),
        (EXPERTS, {"engine_options": {"fp8_recipe": "rowwise_with_gw_hp"}}, "native"),
    ],
)
def test_every_recipe_equals_the_trace(trace, config, training: dict[str, object], weights: str) -> None:
    """Allocated of every phase of the steady step: within 0.5 % and the bytes of the smallest tensors."""
    work = {"batch": 2, "sequence": 512, "precision": "fp8"} | training
    document = {"version": 1, "model": {"config": config}, "task": "training", "weights": weights, "training": work}
    found = make_plan(parse_scenario(document | {"hardware": {"gpu": "H200 SXM 141GB"}}), network=False, device="cuda").footprint
    traced = trace(found.scenario, config)
    predicted = {phase.name: phase.allocated for phase in found.gpus[0].phases}
    assert predicted.keys() == traced.keys(), found.notes
    for name, allocated in predicted.items():
        assert abs(allocated - traced[name]["allocated"]) <= 0.005 * traced[name]["allocated"] + SMALL_TENSORS_BYTES, name
