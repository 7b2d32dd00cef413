"""Closed forms of quantised weights against the real models' allocations, traced on fake tensors."""

from __future__ import annotations

import json
import os

import pytest

from planner.scenario import parse_scenario
from resources.plan import make_plan

SMALL = {
    "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2,
    "vocab_size": 1200, "max_position_embeddings": 4096, "torch_dtype": "bfloat16",
}  # fmt: skip
MODELS = {
    "llama": SMALL | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "biases, tied": SMALL | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True},
}
FORMATS = ("nf4", "nf4-dq", "int8", "fp8", "fp8-block", "gptq-int4-g128", "awq-int4-g64")
SMALL_TENSORS_BYTES = 16 * 1024


@pytest.fixture(scope="module")
def trace():
    """Runs an order of the worker in this process, on fake tensors."""
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


@pytest.mark.parametrize("prompt_tokens", [300, 3])
@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("model", MODELS)
def test_allocated_of_every_phase_equals_the_trace(trace, model: str, weights: str, prompt_tokens: int) -> None:
    """Many rows and few: the 4-bit kernel needs no whole weight for up to four rows."""
    work = {"batch": 1, "prompt_tokens": prompt_tokens, "new_tokens": 4}
    document = {"version": 1, "model": {"config": MODELS[model]}, "task": "inference", "weights": weights, "inference": work}
    footprint = make_plan(parse_scenario(document), network=False, device="cpu").footprint
    traced = trace(dict(footprint.scenario), MODELS[model])
    predicted = {phase.name: phase.allocated for phase in footprint.gpus[0].phases}
    assert predicted.keys() == traced.keys()
    for name, allocated in predicted.items():
        assert abs(allocated - traced[name]) <= SMALL_TENSORS_BYTES, name


def test_a_format_whose_products_are_not_derived_is_unknown() -> None:
    document = {"version": 1, "model": {"config": MODELS["llama"]}, "task": "inference", "weights": "hqq-int4-g64"}
    footprint = make_plan(parse_scenario(document), network=False).footprint
    assert footprint.verdict == "unknown"
    assert footprint.weight_bytes
    assert any("products with hqq-int4-g64 weights" in note for note in footprint.notes)
