"""Mixtral's experts as releases before 5.0 computed them, held to published runs."""

from __future__ import annotations

from typing import Any

import pytest

from planner.scenario import parse_scenario
from resources.plan import make_plan

# fms-acceleration, scripts/benchmarks/refs/a100_80gb.csv: accelerated-peft-bnb on one A100, transformers 4.48.1.
MEASURED = {4: 36_731_843_072, 8: 48_770_183_680}


def document(weights: str = "nf4-dq", **training: Any) -> dict[str, Any]:
    ask = {
        "batch": 4, "sequence": 4096, "method": "qlora", "checkpointing": "full", "attention": "flash", "precision": "amp-bf16",
        "optimizer": "adamw_foreach", "engine_options": {"version": "4.48.1"},
        "lora": {"rank": 16, "alpha": 16, "dropout": 0.1, "targets": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    }  # fmt: skip
    return {
        "model": "mistralai/Mixtral-8x7B-v0.1", "task": "training", "weights": weights, "hardware": {"gpu": "A100 SXM4 80GB"},
        "training": ask | training,
    }  # fmt: skip


def footprint(asked: dict[str, Any]) -> Any:
    return make_plan(parse_scenario(asked), network=False, calibrated=False).footprint


@pytest.mark.parametrize("batch", MEASURED)
def test_published_runs_are_met(batch: int) -> None:
    found = footprint(document(batch=batch))
    assert max(phase.allocated for phase in found.gpus[0].phases) == pytest.approx(MEASURED[batch], rel=0.0005)


def test_experts_are_quantised_where_they_are_linears() -> None:
    """nf4 takes a quarter of the experts' 16 bit, which transformers 5 leaves as they are."""
    older, newer = (footprint(document(engine_options={"version": version})) for version in ("4.48.1", "5.1.0"))
    assert older.weight_bytes < newer.weight_bytes / 3


def test_experts_that_train_in_turn_are_unknown() -> None:
    found = footprint(document("bf16", method="full", precision="bf16"))
    assert not found.gpus or not found.gpus[0].phases
    assert any("version" in note and "experts" in note for note in found.notes)
