"""Every term says where it comes from."""

from __future__ import annotations

import pytest

from planner.explain import SOURCE
from planner.footprint import COMPONENTS, OUTSIDE_ALLOCATED
from planner.scenario import parse_scenario
from resources.plan import make_plan

LLAMA = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 256}  # fmt: skip
ASKED = {
    "generation": {"task": "inference"},
    "vLLM": {"task": "inference", "inference": {"engine": "vllm"}},
    "full": {"task": "training"},
    "mixed precision": {"task": "training", "training": {"precision": "amp-bf16"}},
    "QLoRA": {"task": "training", "training": {"method": "qlora"}},
    "DPO": {"task": "training", "training": {"objective": "dpo"}},
    "FSDP": {"task": "training", "hardware": {"gpu": "H100 SXM5 80GB", "gpus": 2}, "parallel": {"sharding": "fsdp"}},
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_every_term_names_its_source(asked: dict[str, object]) -> None:
    terms = make_plan(parse_scenario({"version": 1, "model": {"config": LLAMA}, **asked})).footprint.terms
    assert terms
    assert [term for term in terms if not term.because] == []


def test_every_component_that_torch_allocates_has_a_source() -> None:
    assert set(COMPONENTS) - set(OUTSIDE_ALLOCATED) - {"cuda_graphs"} == set(SOURCE)
