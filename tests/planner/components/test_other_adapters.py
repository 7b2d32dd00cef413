"""Adapters that are no low-rank product: how many parameters they train, and what is not derived of them."""

from __future__ import annotations

from typing import Any

import pytest

from planner.scenario import parse_scenario
from resources.plan import make_plan


def footprint(**training: Any) -> Any:
    ask = {"batch": 2, "sequence": 512, "lora": {"rank": 32, "targets": ["q_proj", "v_proj"]}} | training
    document = {"model": "meta-llama/Llama-3.1-8B", "task": "training", "weights": "bf16", "training": ask}
    return make_plan(parse_scenario(document), network=False, calibrated=False).footprint


def test_vera_trains_two_vectors_beside_each_linear() -> None:
    """Layers · (out_features + rank) of each of q_proj (4096) and v_proj (1024)."""
    assert footprint(method="vera").trainable_parameters == 32 * (4096 + 32 + 1024 + 32)


def test_loha_trains_two_pairs_of_factors() -> None:
    """Layers · 2 · rank · (out_features + in_features): twice LoRA's."""
    lora, loha = (footprint(method=method).trainable_parameters for method in ("lora", "loha"))
    assert loha == 2 * lora


def test_lokr_trains_the_factors_of_a_kronecker_product() -> None:
    """4096 = 64 · 64 and 1024 = 32 · 32: one matrix of the outer factors, and two of rank 8 of the inner ones."""
    found = footprint(method="lokr", lora={"rank": 8, "targets": ["q_proj", "v_proj"]})
    assert found.trainable_parameters == 32 * (64 * 64 + 8 * (64 + 64) + 32 * 64 + 8 * (32 + 64))


def test_loha_keeps_a_whole_matrix_of_each_linear() -> None:
    """4 B of every weight that is adapted stay from the forward to the backward, but in the first layer, whose input needs none."""
    kept = [footprint(method=method).gpus[0].phases[1].components["activations"] for method in ("lora", "loha")]
    assert kept[1] - kept[0] == pytest.approx(31 * 4 * (4096 + 1024) * 4096, rel=0.01)


@pytest.mark.parametrize(
    "training",
    [
        {"method": "vera", "precision": "amp-bf16"},
        {"method": "loha", "lora": {"rank": 8, "targets": ["q_proj"], "dropout": 0.1}},
        {"method": "loha", "objective": "dpo"},
    ],
    ids=str,
)
def test_what_is_not_derived_is_unknown(training: dict[str, Any]) -> None:
    found = footprint(**training)
    assert found.verdict == "unknown"
    assert any("has no closed form" in note for note in found.notes)
