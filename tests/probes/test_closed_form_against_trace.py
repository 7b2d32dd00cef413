"""The closed form against the real model's allocations: phases of small models, traced on fake tensors."""

from __future__ import annotations

import json
import os

import pytest

from planner.scenario import parse_scenario, to_json
from resources.plan import make_plan

SMALL = {
    "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2,
    "vocab_size": 1200, "max_position_embeddings": 4096, "torch_dtype": "bfloat16",
}  # fmt: skip
MODELS = {
    "llama": SMALL | {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False},
    "llama tied, multi-head": SMALL
    | {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True, "num_key_value_heads": 8},
    "qwen2": SMALL | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True},
    "qwen3": SMALL | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 32, "tie_word_embeddings": False},
    "mistral, windowed": SMALL | {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 200},
}
WORK = {
    "short": {"task": "inference", "inference": {"batch": 3, "prompt_tokens": 64, "new_tokens": 9}},
    "long": {"task": "inference", "inference": {"batch": 2, "prompt_tokens": 700, "new_tokens": 40}},
    "full": {"task": "training", "training": {"batch": 2, "sequence": 300}},
    "checkpointed": {"task": "training", "training": {"batch": 2, "sequence": 500, "checkpointing": "full"}},
    "foreach": {"task": "training", "training": {"batch": 1, "sequence": 40, "optimizer": "adamw_foreach"}},
    "loop": {"task": "training", "training": {"batch": 1, "sequence": 16, "optimizer": "adamw"}},
    "accumulated": {"task": "training", "training": {"batch": 1, "sequence": 128, "gradient_accumulation": 2}},
    "fp32": {"task": "training", "training": {"batch": 1, "sequence": 200, "precision": "fp32"}},
}
SMALL_TENSORS_BYTES = 96 * 1024
"""Positions, masks of one row, scalars: tensors of a few KiB that the closed form leaves out."""


@pytest.fixture(scope="module")
def trace():
    """Runs an order of the worker in this process, on fake tensors, as the CPU would allocate."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    pytest.importorskip("transformers", reason="tracing needs transformers")
    from probes.worker.order import parse_order
    from probes.worker.run import run

    class Heard:
        def __init__(self) -> None:
            self.result: dict[str, object] = {}

        def send(self, event: str, **fields: object) -> None:
            if event == "result":
                self.result = fields

        close = send

    def traced(scenario: dict[str, object], config: dict[str, object]) -> dict[str, int]:
        heard = Heard()
        order = {
            "version": 1, "mode": "rehearse", "scenario": scenario, "config": config, "device": "cpu", "layers": None,
            "budget_bytes": None, "personality": "cpu",
        }  # fmt: skip
        run(parse_order(json.loads(json.dumps(order))), heard)
        return {phase["name"]: phase["allocated"] for phase in heard.result["phases"]}

    return traced


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("model", MODELS)
def test_allocated_of_every_phase_equals_the_trace(trace, model: str, work: str) -> None:
    """Within 0.5 % and the bytes of the smallest tensors, in every phase of the steady step."""
    scenario = parse_scenario({"version": 1, "model": {"config": MODELS[model]}} | WORK[work])
    footprint = make_plan(scenario, network=False, device="cpu").footprint
    traced = trace(footprint.scenario, MODELS[model])
    predicted = {phase.name: phase.allocated for phase in footprint.gpus[0].phases}
    assert predicted.keys() == traced.keys()
    for name, allocated in predicted.items():
        assert abs(allocated - traced[name]) <= 0.005 * traced[name] + SMALL_TENSORS_BYTES, name
    assert to_json(parse_scenario(footprint.scenario)) == footprint.scenario
