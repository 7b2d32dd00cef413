"""Layer norms under autocast over 4-bit weights in closed form against the worker's: the residual stream becomes fp32."""

from __future__ import annotations

import pytest

from planner.footprint import Footprint
from planner.scenario import parse_scenario
from resources.plan import make_plan

BIGCODE = {"model_type": "gpt_bigcode", "n_embd": 256, "n_layer": 2, "n_head": 8, "n_positions": 1024, "vocab_size": 400}
STARCODER2 = {
    "model_type": "starcoder2", "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 400, "torch_dtype": "bfloat16",
}  # fmt: skip


def footprint(config: dict[str, object], target: str, weights: str = "nf4-dq", **more: object) -> Footprint:
    work = {
        "batch": 2, "sequence": 700, "method": "qlora", "precision": "amp-bf16",
        "lora": {"rank": 16, "dropout": 0.1, "targets": [target]}, **more,
    }  # fmt: skip
    document = {"version": 1, "model": {"config": config}, "task": "training", "weights": weights, "training": work}
    return make_plan(parse_scenario(document | {"hardware": {"gpu": "H200 SXM 141GB"}}), network=False).footprint


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("config", "target", "checkpointing"),
    [(BIGCODE, "c_attn", "full"), (BIGCODE, "c_attn", "none"), (STARCODER2, "q_proj", "full")],
)
def test_what_layer_norms_widen_equals_the_trace(trace, config, target: str, checkpointing: str) -> None:
    config = config | {"torch_dtype": "bfloat16"}
    found = footprint(config, target, checkpointing=checkpointing)
    traced = trace(found.scenario, config)
    for phase in found.gpus[0].phases:
        assert phase.allocated == pytest.approx(traced[phase.name]["allocated"], rel=0.004), phase.name


@pytest.mark.parametrize(("weights", "options"), [("int8", {}), ("nf4", {"engine_options": {"prepare_for_kbit_training": True}})])
def test_other_weights_and_prepared_norms_are_unknown_with_a_reason(weights: str, options: dict[str, object]) -> None:
    found = footprint(STARCODER2, "q_proj", weights, **options)
    assert not found.gpus[0].phases
    assert any("layer norms" in note for note in found.notes)
