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


GEMMA = MISTRAL | {"model_type": "gemma2", "head_dim": 32, "attn_logit_softcapping": 50.0}


@pytest.mark.parametrize("more", [{}, {"checkpointing": "full"}])
def test_capped_scores_are_never_made(trace, more) -> None:
    assert_equal(trace, GEMMA, WORK | more)


@pytest.mark.parametrize(
    ("config", "more"),
    [(MISTRAL, {"precision": "fp32"}), (MISTRAL | {"model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2}, {})],
)
def test_what_flash_attn_cannot_do_is_unknown_with_the_field(config, more) -> None:
    document = {"version": 1, "model": {"config": config}, "task": "training", "hardware": {"gpu": "H200 SXM 141GB"}}
    footprint = make_plan(parse_scenario(document | {"training": WORK | more}), network=False).footprint
    assert footprint.verdict == "unknown"
    assert any("training.attention" in note for note in footprint.notes)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("more", [{}, {"checkpointing": "full"}, {"method": "lora", "lora": {"rank": 8, "targets": ["q_proj"]}}])
def test_windowed_layers_need_no_mask(trace, more) -> None:
    assert_equal(trace, MISTRAL, WORK | more)


def assert_equal(trace, config, training) -> None:
    document = {"version": 1, "model": {"config": config}, "task": "training", "hardware": {"gpu": "H200 SXM 141GB"}}
    footprint = make_plan(parse_scenario(document | {"training": training}), network=False).footprint
    traced = trace(footprint.scenario, config)
    for phase in footprint.gpus[0].phases:
        assert phase.allocated == pytest.approx(traced[phase.name]["allocated"], rel=0.002), phase.name
