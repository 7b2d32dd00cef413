"""Decoders whose blocks hold what no other family's do: the closed form against the trace on CUDA."""

from __future__ import annotations

import pytest

from planner.scenario import parse_scenario
from resources.plan import make_plan

SMALL = {
    "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
    "vocab_size": 1200, "max_position_embeddings": 1024, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
    "pad_token_id": 0,
}  # fmt: skip
MODELS = {
    "bitnet, norms inside the mixers": SMALL | {"model_type": "bitnet"},
}
WORK = {
    "generation": {"task": "inference", "inference": {"batch": 2, "prompt_tokens": 700, "new_tokens": 4}},
    "training": {"task": "training", "training": {"batch": 2, "sequence": 300}},
}
SMALL_TENSORS_BYTES = 256 * 1024


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("model", MODELS)
def test_a_family_equals_its_trace(trace, model: str, work: str) -> None:
    """Allocated of every phase: within 0.5 % and the bytes of the smallest tensors."""
    config = MODELS[model]
    scenario = parse_scenario({"version": 1, "model": {"config": config}, "hardware": {"gpu": "H200 SXM 141GB"}} | WORK[work])
    footprint = make_plan(scenario, network=False, device="cuda").footprint
    predicted = {phase.name: phase.allocated for phase in footprint.gpus[0].phases}
    traced = trace(footprint.scenario, config)
    assert predicted.keys() == traced.keys(), footprint.notes
    for name, allocated in predicted.items():
        assert abs(allocated - traced[name]["allocated"]) <= 0.005 * traced[name]["allocated"] + SMALL_TENSORS_BYTES, name
