"""What older releases of transformers copied to compute their loss."""

from __future__ import annotations

import pytest

from planner.engines.releases import release_of
from planner.faults import Faults
from planner.scenario import parse_scenario
from resources.plan import make_plan


def forward_bytes(version: str | None) -> int:
    options = {"version": version} if version else {}
    scenario = {
        "version": 1, "model": "HuggingFaceTB/SmolLM2-135M", "task": "training", "weights": "bf16",
        "training": {"batch": 2, "sequence": 512, "checkpointing": "full", "engine_options": options},
        "hardware": {"gpu": "A100 SXM4 80GB"},
    }  # fmt: skip
    phases = make_plan(parse_scenario(scenario), network=False, calibrated=False).footprint.gpus[0].phases
    return next(phase.components["logits"] for phase in phases if phase.name == "forward")


def test_a_release_takes_the_newest_entry_that_is_not_newer():
    copies = [release_of(version).copies for version in ("4.45.2", "4.46", "v4.49.1", "4.50.0", "5.23.0", None)]
    assert copies == ["widened_logits", "logits", "logits", "labels", "labels", "labels"]


def test_what_is_no_release_is_refused_by_its_field():
    with pytest.raises(Faults, match="engine_options"):
        release_of("newest")


def test_shifted_logits_are_one_fp32_copy_more():
    every, predicted, vocabulary = 2 * 512, 2 * 511, 49152
    own, upcast = every * vocabulary * 2, every * vocabulary * 4
    shifted = log_probabilities = predicted * vocabulary * 4
    assert forward_bytes(None) == own + upcast + every * vocabulary * 4
    assert forward_bytes("4.48.1") == own + upcast + shifted + log_probabilities
    assert forward_bytes("4.45.2") == upcast + shifted + log_probabilities
