"""Steps of DPO, GRPO and PPO in closed form against the worker's, phase by phase: references, generations, scores by tiles."""

from __future__ import annotations

import pytest

from planner.scenario import parse_scenario
from resources.plan import make_plan

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*use_return_dict:FutureWarning"),
]
SMALL = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 1200, "max_position_embeddings": 4096, "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}  # fmt: skip
TIED = SMALL | {"model_type": "qwen2", "tie_word_embeddings": True}
EVERY = {"rank": 16, "targets": ["all-linear"], "dropout": 0.1}
WORK: dict[str, tuple[dict[str, object], dict[str, object], str]] = {
    "pairs beside a reference": (SMALL, {"objective": "dpo"}, "native"),
    "pairs, accumulated, a tied head": (TIED, {"objective": "dpo", "gradient_accumulation": 2}, "native"),
    "pairs against the base of adapters": (SMALL, {"objective": "dpo", "method": "lora", "lora": EVERY}, "native"),
    "pairs against a 4-bit base": (SMALL, {"objective": "dpo", "method": "qlora", "lora": EVERY}, "nf4-dq"),
    "pairs under autocast, checkpointed": (
        TIED,
        {"objective": "dpo", "method": "lora", "lora": EVERY, "precision": "amp-bf16", "checkpointing": "full"},
        "native",
    ),
    "pairs in fp32, the head alone": (SMALL, {"objective": "dpo", "precision": "fp32", "method": "freeze"}, "native"),
    "precomputed, checkpointed, more than a tile": (
        SMALL,
        {"objective": "dpo", "reference": "precomputed", "checkpointing": "full", "sequence": 1500, "prompt_tokens": 100},
        "native",
    ),
    "a group": (SMALL, {"objective": "grpo", "sequence": 60}, "native"),
    "groups of two micro-batches, a reference": (
        TIED, {"objective": "grpo", "reference": "model", "gradient_accumulation": 2, "sequence": 40}, "native",
    ),
    "adapters, generated for four steps": (
        SMALL,
        {"objective": "grpo", "reference": "adapter", "method": "lora", "lora": EVERY | {"dropout": 0.0}, "rollout": {"steps": 4},
         "sequence": 24, "checkpointing": "full"},
        "native",
    ),
    "a policy and a value model, two micro-batches": (
        TIED, {"objective": "ppo", "gradient_accumulation": 2, "sequence": 40, "prompt_tokens": 30}, "native",
    ),
    "a policy's adapters, two micro-batches, generated one by one": (
        SMALL,
        {"objective": "ppo", "method": "lora", "lora": EVERY, "gradient_accumulation": 2, "checkpointing": "full", "sequence": 40,
         "prompt_tokens": 32, "engine_options": {"local_rollout_forward_batch_size": 1}},
        "native",
    ),
}  # fmt: skip
BYTES_A_TOKEN = 32
"""Ids, masks and single numbers of each position, which come and go in the trainer's metrics."""
SMALL_TENSORS_BYTES = 48 * 1024


@pytest.mark.parametrize("work", WORK)
def test_an_objective_equals_its_trace(trace, work: str) -> None:
    config, training, weights = WORK[work]
    document = {"version": 1, "model": {"config": config}, "task": "training", "weights": weights}
    scenario = parse_scenario(document | {"training": {"batch": 2, "sequence": 300} | training})
    footprint = make_plan(scenario, network=False).footprint
    traced = trace(footprint.scenario, config)
    assert [phase.name for phase in footprint.gpus[0].phases] == list(traced), footprint.notes
    tokens = 4 * (scenario.training.sequence or 0) * scenario.training.gradient_accumulation
    for phase in footprint.gpus[0].phases:
        apart = abs(phase.allocated - traced[phase.name]["allocated"])
        assert apart <= SMALL_TENSORS_BYTES + BYTES_A_TOKEN * tokens, phase.name
        for component in ("other_models", "adapters", "gradients", "optimizer_state", "kv_cache"):
            if phase.name in ("load", "generation", "optimizer"):
                told = traced[phase.name]["components"].get(component, 0)
                assert phase.components.get(component, 0) == pytest.approx(told, abs=512 * 8), (phase.name, component)


def test_layers_of_two_models_are_folded(trace) -> None:
    """A rehearsal that traces few layers of each kind says what one that traces all does, the reference's among them."""
    config = SMALL | {"num_hidden_layers": 6}
    document = {"objective": "dpo", "batch": 1, "sequence": 64, "checkpointing": "full"}
    scenario = {"task": "training", "weights": "native", "training": document}
    few, all_ = (trace(scenario, config, traced_layers=layers) for layers in ("auto", "all"))
    assert {name: phase["allocated"] for name, phase in few.items()} == {name: phase["allocated"] for name, phase in all_.items()}
