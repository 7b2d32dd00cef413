"""Every bundled model is answered by every engine: with figures, with a fault or with a reason, and never with a crash."""

from __future__ import annotations

import json

import pytest

from planner.faults import Faults
from planner.scenario import parse_scenario
from resources.catalog import model_ids
from resources.plan import make_plan

INFERENCE = {"batch": 2, "prompt_tokens": 512, "new_tokens": 16}
WORK = {
    **{
        engine: {"task": "inference", "inference": {"engine": engine, **INFERENCE}}
        for engine in ("transformers", "vllm", "sglang", "tensorrt-llm", "tgi", "llama.cpp")
    },
    "transformers on 4": {"task": "inference", "inference": {"engine": "transformers", **INFERENCE}, "hardware": {"gpus": 4}},
    "training": {"task": "training"},
    "lora": {"task": "training", "training": {"method": "lora", "lora": {"targets": ["all-linear"]}, "checkpointing": "full"}},
    "frozen amp": {"task": "training", "training": {"method": "freeze", "precision": "amp-bf16"}},
    "fsdp": {
        "task": "training",
        "training": {"gradient_accumulation": 4},
        "hardware": {"gpus": 8},
        "parallel": {"data": 8, "sharding": "fsdp"},
    },
}

TOLD_WHOLE = 14
"""Of so many one is told with all its limits and terms, which take longer: each time another."""


@pytest.mark.parametrize("work", WORK)
def test_every_model_is_answered(work: str) -> None:
    """Components add up to what the card holds, and what is unknown says why."""
    turn = list(WORK).index(work)
    for number, model in enumerate(model_ids()):
        try:
            found = make_plan(parse_scenario({"version": 1, "model": model, **WORK[work]}), network=False).footprint
        except Faults as faults:
            assert all(fault.path and fault.message for fault in faults.faults), model
            continue
        if number % TOLD_WHOLE == turn:
            json.dumps(found.to_json())
        if found.verdict == "unknown":
            assert any(note.startswith("unknown: ") for note in found.notes), model
        for gpu in found.gpus:
            for phase in gpu.phases:
                assert min(phase.components.values()) >= 0, model
                assert sum(phase.components.values()) == phase.device, (model, phase.name)
