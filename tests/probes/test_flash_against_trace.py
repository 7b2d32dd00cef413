"""FlashAttention in closed form against the worker's, which plays it: no mask and no repeated keys, windowed or not."""

from __future__ import annotations

import pytest

from planner.scenario import parse_scenario
from resources.plan import make_plan

MISTRAL = {
    "model_type": "mistral", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 400, "torch_dtype": "bfloat16", "tie_word_embeddings": False, "sliding_window": 256,
}  # fmt: skip
WORK = {"batch": 2, "sequence": 700, "attention": "flash"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("more", [{}, {"checkpointing": "full"}, {"method": "lora", "lora": {"rank": 8, "targets": ["q_proj"]}}])
def test_windowed_layers_need_no_mask(trace, more) -> None:
    document = {"version": 1, "model": {"config": MISTRAL}, "task": "training", "hardware": {"gpu": "H200 SXM 141GB"}}
    footprint = make_plan(parse_scenario(document | {"training": WORK | more}), network=False).footprint
    traced = trace(footprint.scenario, MISTRAL)
    for phase in footprint.gpus[0].phases:
        assert phase.allocated == pytest.approx(traced[phase.name]["allocated"], rel=0.002), phase.name
