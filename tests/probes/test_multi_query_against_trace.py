"""Closed forms of GPT-2's kin with a fused projection and dropouts against the real model's allocations."""

from __future__ import annotations

import pytest

from planner.scenario import parse_scenario
from resources.plan import make_plan

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning", "ignore:.*fan_in_fan_out:UserWarning")
"""PEFT 0.21 reads an attribute that transformers 5 renames, and sets GPT-2's transposed linears right itself."""
GPT = {"n_embd": 256, "n_layer": 2, "n_head": 8, "n_positions": 1024, "vocab_size": 1200, "torch_dtype": "bfloat16"}
MODELS = {
    "one key head": GPT | {"model_type": "gpt_bigcode"},
    "a key head each": GPT | {"model_type": "gpt_bigcode", "multi_query": False},
    "gpt2": GPT | {"model_type": "gpt2"},
}
LORA = {"rank": 8, "targets": ["c_attn"], "dropout": 0.1}
LONG = {"batch": 2, "prompt_tokens": 700, "new_tokens": 4}
WORK = {
    "generation": {"task": "inference", "inference": LONG},
    "eager generation": {"task": "inference", "inference": LONG | {"attention": "eager"}},
    "static cache": {"task": "inference", "inference": LONG | {"engine_options": {"cache_implementation": "static"}}},
    "training": {"task": "training", "training": {}},
    "checkpointed": {"task": "training", "training": {"checkpointing": "full"}},
    "eager": {"task": "training", "training": {"attention": "eager"}},
    "eager, one sequence": {"task": "training", "training": {"attention": "eager", "batch": 1}},
    "eager, checkpointed": {"task": "training", "training": {"attention": "eager", "checkpointing": "full"}},
    "lora": {"task": "training", "training": {"method": "lora", "lora": LORA}},
    "qlora": {"task": "training", "weights": "nf4-dq", "training": {"method": "qlora", "lora": LORA, "checkpointing": "full"}},
}
CASES = [
    *(("one key head", work) for work in WORK),
    *(("a key head each", work) for work in ("generation", "training", "eager")),
    *(("gpt2", work) for work in ("eager", "eager, one sequence")),
]
SMALL_TENSORS_BYTES = 64 * 1024
"""Positions, means and scalars of a few KiB."""


def plan(config: dict[str, object], work: dict[str, object]):
    document = {"version": 1, "model": {"config": config}, "hardware": {"gpu": "H200 SXM 141GB"}} | work
    if "training" in document:
        document["training"] = {"batch": 2, "sequence": 300} | document["training"]
    return make_plan(parse_scenario(document), network=False).footprint


@pytest.mark.parametrize(("model", "work"), CASES)
def test_every_phase_equals_the_trace(trace, model: str, work: str) -> None:
    footprint = plan(MODELS[model], WORK[work])
    assert footprint.gpus, footprint.notes
    traced = trace(footprint.scenario, MODELS[model])
    for phase in footprint.gpus[0].phases:
        truth = traced[phase.name]["allocated"]
        assert abs(phase.allocated - truth) <= 0.0035 * truth * (phase.name != "load") + SMALL_TENSORS_BYTES, phase.name


def test_a_dropout_that_no_fused_kernel_computes_is_unknown() -> None:
    """In fp32 one key head leaves torch's own fallback alone."""
    footprint = plan(MODELS["one key head"], {"task": "training", "training": {"precision": "fp32"}})
    assert footprint.verdict == "unknown"
    assert any("dropout inside attention" in note for note in footprint.notes)
