"""Objectives with several models: what each adds to a training step, what is refused, and the inverse questions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.faults import Faults
from planner.scenario import parse_scenario, to_json
from planner.solve import Asked, largest_batch, longest_context
from resources.plan import make_plan

CONFIG = {
    "model_type": "llama", "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4, "num_attention_heads": 16,
    "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
}  # fmt: skip


def scenario_of(training: dict[str, object], **more: object):
    document = {"version": 1, "model": {"config": CONFIG}, "task": "training", "hardware": {"gpu": "A100 SXM 40GB"}}
    return parse_scenario(document | {"training": {"batch": 2, "sequence": 1024} | training} | more)


def plan_of(training: dict[str, object], **more: object):
    return make_plan(scenario_of(training, **more), network=False)


def allocated(training: dict[str, object]) -> dict[str, int]:
    return {phase.name: phase.allocated for phase in plan_of(training).footprint.gpus[0].phases}


def test_a_reference_of_its_own_weighs_what_the_model_does() -> None:
    """DPO holds a second model; with precomputed scores nothing but the first, and no phase in which it is asked."""
    two, one = plan_of({"objective": "dpo"}).footprint, plan_of({"objective": "dpo", "reference": "precomputed"}).footprint
    for phase in two.gpus[0].phases:
        parts = phase.components
        assert parts["other_models"] >= parts["weights"]
        assert parts["other_models"] - parts["weights"] < 0.001 * parts["weights"]
    assert [phase.name for phase in one.gpus[0].phases] == ["load", "forward", "backward", "optimizer"]
    assert not any(phase.components.get("other_models") for phase in one.gpus[0].phases)


def test_adapters_compare_with_their_own_base() -> None:
    footprint = plan_of({"objective": "dpo", "method": "lora"}).footprint
    assert footprint.scenario["training"]["reference"] == "adapter"
    assert not any(phase.components.get("other_models") for phase in footprint.gpus[0].phases)
    assert "reference" in [phase.name for phase in footprint.gpus[0].phases]


def test_every_phase_opens_to_terms() -> None:
    """The terms of each phase add up to what the device shows."""
    for training in (
        {"objective": "dpo"},
        {"objective": "grpo", "reference": "model"},
        {"objective": "grpo", "rollout": {"engine": "vllm"}},
        {"objective": "ppo"},
    ):
        footprint = plan_of(training).footprint
        for phase in footprint.gpus[0].phases:
            assert sum(term.bytes for term in footprint.terms if term.tells_of(phase.name, 0)) == phase.device, phase.name


def test_ppo_holds_four_models_of_which_two_train() -> None:
    """Reference, value and reward model beside the policy; adapters need no reference, and the value model trains whole."""
    full, adapted = (plan_of({"objective": "ppo", "method": method}).footprint for method in ("full", "lora"))
    loaded, scorer = full.gpus[0].phases[0].components, full.trainable_parameters - full.parameters
    head = CONFIG["vocab_size"] * CONFIG["hidden_size"]
    assert scorer == full.parameters - head + CONFIG["hidden_size"]
    assert loaded["other_models"] == pytest.approx(loaded["weights"] + 2 * 2 * scorer, rel=0.001)
    assert adapted.gpus[0].phases[0].components["other_models"] == pytest.approx(4 * scorer, rel=0.001)
    assert [phase.name for phase in full.gpus[0].phases] == [
        "load", "generation", "reference", "forward", "backward", "optimizer",
    ]  # fmt: skip


def test_scores_of_drawn_tokens_outlive_the_update() -> None:
    """Of every token of an update's completions all scores in fp32: kept throughout, three times while they are made."""
    rows, completion = 2 * 3, 1024 - 200
    footprint = plan_of({"objective": "ppo", "prompt_tokens": 200, "gradient_accumulation": 3}).footprint
    each = 4 * rows * completion * CONFIG["vocab_size"]
    peaks = {phase.name: phase.components["logits"] for phase in footprint.gpus[0].phases if "logits" in phase.components}
    assert peaks["generation"] == 3 * each
    assert all(size > each for name, size in peaks.items() if name != "generation")


def test_vllm_takes_its_share_of_the_card_and_gives_it_back_asleep() -> None:
    awake, asleep, elsewhere = (
        allocated({"objective": "grpo", "rollout": rollout})
        for rollout in ({"engine": "vllm"}, {"engine": "vllm", "sleep": True}, {"engine": "server"})
    )
    capacity = plan_of({"objective": "grpo"}).footprint.gpus[0].capacity_bytes
    for name in ("load", "forward", "backward", "optimizer"):
        assert asleep[name] == elsewhere[name]
        assert awake[name] - asleep[name] == pytest.approx(0.3 * capacity, rel=1e-6), name
    assert asleep["generation"] > 0.3 * capacity


@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(64, 2000), st.sampled_from(["dpo", "grpo", "ppo"]), st.sampled_from(["none", "full"]))
def test_more_rows_and_tokens_never_take_less(batch: int, sequence: int, objective: str, checkpointing: str) -> None:
    """Memory is monotone in batch and sequence, phase by phase."""
    work = {"objective": objective, "checkpointing": checkpointing, "prompt_tokens": 32}
    base = allocated(work | {"batch": batch, "sequence": sequence})
    for more in ({"batch": batch + 1, "sequence": sequence}, {"batch": batch, "sequence": sequence + 64}):
        for name, size in allocated(work | more).items():
            assert size >= base[name], name


@pytest.mark.parametrize("training", [{"objective": "dpo"}, {"objective": "grpo"}])
def test_largest_batch_and_longest_sequence_are_exact(training: dict[str, object]) -> None:
    """What is said to fit does, and its neighbour does not."""
    plan = plan_of({"sequence": 2048, **training})
    asked = Asked(scenario_of({"sequence": 2048, **training}), plan.architecture, plan.gpu)
    batch = largest_batch(asked)
    assert batch > 0
    for count, fits in ((batch, True), (batch + 1, False)):
        verdict = plan_of({"sequence": 2048, **training, "batch": count}).footprint.verdict
        assert (verdict in ("fits", "tight")) is fits
    assert longest_context(asked) > 0


@pytest.mark.parametrize(
    ("training", "path"),
    [
        ({"objective": "dpo", "reference": "none"}, "training.reference"),
        ({"objective": "grpo", "reference": "precomputed"}, "training.reference"),
        ({"objective": "dpo", "reference": "adapter"}, "training.reference"),
        ({"reference": "model"}, "training.reference"),
        ({"objective": "grpo", "reference": "model", "method": "lora"}, "training.reference"),
        ({"objective": "grpo", "prompt_tokens": 1024}, "training.prompt_tokens"),
        ({"objective": "grpo", "rollout": {"generations": 1}}, "training.rollout.generations"),
        ({"objective": "grpo", "rollout": {"engine": "sglang"}}, "training.rollout.engine"),
        ({"objective": "orpo"}, "training.objective"),
    ],
)
def test_what_a_trainer_refuses_is_refused_by_its_path(training: dict[str, object], path: str) -> None:
    with pytest.raises(Faults) as caught:
        scenario_of(training)
    assert [fault.path for fault in caught.value.faults] == [path]


@pytest.mark.parametrize(
    ("training", "word"),
    [
        ({"objective": "ppo", "engine_options": {"trl_version": "1.12"}}, "trl_version"),
        ({"objective": "ppo", "rollout": {"engine": "vllm"}}, "training.rollout.engine"),
        ({"objective": "ppo", "rollout": {"steps": 2}}, "training.rollout.steps"),
        ({"objective": "ppo", "precision": "fp32"}, "training.precision"),
        ({"objective": "ppo", "method": "dora"}, "training.method"),
        ({"objective": "dpo", "engine_options": {"trl_version": "0.24"}}, "trl_version"),
        ({"objective": "dpo", "loss": "fused"}, "training.loss"),
        ({"objective": "grpo", "rollout": {"engine": "vllm", "gpu_memory_utilization": 0.01}}, "gpu_memory_utilization"),
    ],
)
def test_what_nobody_derived_is_unknown_with_its_reason(training: dict[str, object], word: str) -> None:
    footprint = plan_of(training, hardware={"gpu": "A100 SXM 40GB", "capacity_bytes": 16 * 2**30}).footprint
    assert footprint.verdict == "unknown"
    assert any(note.startswith("unknown") and word in note for note in footprint.notes)


def test_a_scenario_survives_its_json() -> None:
    scenario = scenario_of(
        {"objective": "grpo", "reference": "model", "prompt_tokens": 100, "rollout": {"steps": 2, "sleep": True}}
    )
    assert parse_scenario(to_json(scenario)) == scenario


def test_a_reference_beside_replicas_has_no_buckets() -> None:
    """On each of several GPUs it takes what it takes on one: it is not wrapped (``evaluation_mode``)."""
    one, many = (
        plan_of({"objective": "dpo"}, hardware={"gpu": "A100 SXM 40GB", "gpus": gpus}).footprint.gpus[0].phases[0].components
        for gpus in (1, 4)
    )
    assert many["other_models"] == one["other_models"]
