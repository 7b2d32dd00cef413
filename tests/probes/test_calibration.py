"""Fits on recordings as a card of known figures would have left them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.calibration import PERMILLE, Calibration
from planner.footprint import Phase
from planner.scenario import parse_scenario
from planner.units import MIB
from probes.calibration import Evidence, Fit, Observation, fit, gather, predicted_device_bytes
from probes.recording import Recorded, Recording, read_recording
from resources.gpus import gpu
from resources.plan import make_plan

CARD = "H200 SXM 141GB"
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 1024, "intermediate_size": 2816,
    "num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 32000,
    "max_position_embeddings": 8192, "tie_word_embeddings": False,
}  # fmt: skip
WORK: list[tuple[str, dict[str, Any]]] = [
    ("inference", {"batch": 4, "prompt_tokens": 512, "new_tokens": 8}),
    ("inference", {"batch": 16, "prompt_tokens": 1024, "new_tokens": 8}),
    ("inference", {"batch": 8, "prompt_tokens": 2048, "new_tokens": 8}),
    ("training", {"batch": 2, "sequence": 512}),
    ("training", {"batch": 4, "sequence": 512}),
    ("training", {"batch": 2, "sequence": 1024}),
]
HELLO = {
    "event": "hello", "t": 0.1, "versions": {"torch": "2.13.0"},
    "device": {"type": "cuda", "name": "NVIDIA H200", "index": 0, "total_bytes": 150_110_011_392},
}  # fmt: skip


def record(path: Path, task: str, work: dict[str, Any], *, context: int, slack: float, layers: int | None = None) -> None:
    """A run on an H200 whose context and whose slack, against what is modelled, are known."""
    scenario = {"version": 1, "model": {"config": CONFIG}, "weights": "bf16", "task": task, task: work}
    shown = scenario if layers is None else {**scenario, "model": {"config": CONFIG | {"num_hidden_layers": layers}}}
    asked = parse_scenario({**shown, "hardware": {"gpu": CARD}})
    phases = make_plan(asked, network=False, calibrated=False).footprint.gpus[0].phases
    header = {"scenario": scenario, "config": CONFIG, "order": {"mode": "measure", "layers": layers}}
    with Recording(header, path) as recording:
        recording.append({"event": "environment", "t": 0.0, "driver": "580.65"})
        recording.append(HELLO)
        for index, phase in enumerate(phases):
            reserved = phase.allocated + int(slack * (phase.reserved - phase.allocated))
            told = {"event": "phase", "name": phase.name, "step": 0, "micro": 0}
            recording.append({**told, "state": "begin", "t": index + 1.0})
            for t in (1.2, 1.4):
                recording.append({"event": "memory", "t": index + t, "reserved": reserved, "phase": phase.name})
                sample = {"index": 0, "mig_index": None, "used": 1, "free": 1, "delta": reserved + context}
                recording.append({"event": "sample", "t": index + t + 0.05, "rss": 1, "gpus": [sample]})
            recording.append({"event": "memory", "t": index + 1.6, "reserved": reserved, "phase": phase.name})
            meters = {"allocated": phase.allocated, "reserved": reserved, "device": reserved}
            recording.append({**told, "state": "end", "t": index + 1.9, **meters})
        recording.append({"event": "result", "t": 9.0, "outcome": "completed"})
        recording.append({"event": "outcome", "t": 9.1, "kind": "completed"})


def battery(folder: Path, **figures: Any) -> list[tuple[str, Recorded]]:
    noise = random.Random(5)
    for number, (task, work) in enumerate(WORK):
        context = figures["context"] + noise.randrange(-2 * MIB, 2 * MIB)
        record(folder / f"{number}.jsonl", task, work, context=context, slack=figures["slack"])
    return [(path.name, read_recording(path)) for path in sorted(folder.glob("*.jsonl"))]


def figures_of(fitted: Fit) -> dict[str, tuple[bool, float]]:
    return {figure.name: (figure.accepted, figure.value) for figure in fitted.figures}


def test_known_figures_are_found_and_kept(tmp_path: Path) -> None:
    evidence = gather(battery(tmp_path, context=712 * MIB, slack=1.6))
    assert list(evidence) == [CARD]
    fitted = fit(evidence[CARD])
    found = figures_of(fitted)
    assert found["context"] == (True, pytest.approx(712 * MIB, abs=2 * MIB))
    assert found["training slack"] == (True, pytest.approx(1.6, abs=0.01))
    assert found["inference slack"] == (True, pytest.approx(1.6, abs=0.01))
    assert fitted.error_after is not None
    assert fitted.error_before is not None
    assert fitted.error_after < 0.002 < fitted.error_before
    kept = fitted.calibration
    assert (kept.training_slack_permille, kept.runs) == (1600, 6)
    assert kept.context_band_bytes >= 0.02 * 712 * MIB
    assert "driver 580.65, torch 2.13.0" in kept.source


def test_what_the_catalog_says_already_is_declined(tmp_path: Path) -> None:
    """Noise around the defaults: a fit of it would be worse on every run that it has not seen."""
    noise = random.Random(1)
    card = gpu(CARD)
    runs = []
    for number in range(8):
        predicted = Phase("decode", 10**9, 10**9 + 100 * MIB, 10**9 + 600 * MIB)
        sign = 1 if number % 2 else -1
        outside = 500 * MIB + sign * (40 + noise.randrange(5)) * MIB
        reserved = 10**9 + 100 * MIB
        runs.append(Observation(f"{number}", "inference", Phase("decode", 10**9, reserved, reserved + outside), predicted, outside))
    fitted = fit(Evidence(card, runs))
    assert not fitted.is_better
    assert fitted.calibration.context_bytes is None
    assert "declined" in next(figure.why for figure in fitted.figures if figure.name == "context")


def test_two_runs_are_too_few(tmp_path: Path) -> None:
    evidence = gather(battery(tmp_path, context=712 * MIB, slack=1.6)[:2])
    fitted = fit(evidence[CARD])
    assert not fitted.is_better
    assert all("needs 3 runs" in figure.why or "there are 0" in figure.why for figure in fitted.figures)


observations = st.lists(
    st.builds(
        lambda allocated, slack, modelled, outside, task: Observation(
            "r", task,
            Phase("p", allocated, allocated + slack, allocated + slack + outside),
            Phase("p", allocated, allocated + modelled, allocated + modelled + 500 * MIB),
            outside,
        ),
        st.integers(10**8, 10**11), st.integers(0, 10**9), st.integers(0, 10**9), st.integers(1, 2 * 10**9),
        st.sampled_from(["inference", "training"]),
    ),
    min_size=1, max_size=8,
)  # fmt: skip


@settings(max_examples=60)
@given(observations)
def test_calibration_is_never_worse_on_held_out_runs(runs: list[Observation]) -> None:
    """Whatever the runs say, the held-out error of the device figure with what was kept is not above that without."""
    fitted = fit(Evidence(gpu(CARD), runs))
    if fitted.error_before is not None:
        assert fitted.error_after is not None
        assert fitted.error_after <= fitted.error_before
    if not fitted.is_better:
        assert fitted.calibration.context_bytes is None
        assert fitted.calibration.slack_permille("training") == PERMILLE


def test_the_held_out_figure_is_what_a_plan_would_say(tmp_path: Path) -> None:
    """What is compared in the fit equals the prediction that a calibrated plan makes."""
    from resources import calibration as store

    evidence = gather(battery(tmp_path, context=712 * MIB, slack=1.6))[CARD]
    measured = Calibration(context_bytes=712 * MIB, inference_slack_permille=1600, training_slack_permille=1600)
    run = next(run for run in evidence.observations if run.task == "inference")
    said = predicted_device_bytes(run, evidence.card, measured)
    assert said == pytest.approx(run.measured.device, abs=3 * MIB)
    assert store.with_calibration(evidence.card).name == CARD


def test_runs_with_fewer_layers_are_predicted_as_such(tmp_path: Path) -> None:
    record(tmp_path / "r.jsonl", "inference", WORK[0][1], context=600 * MIB, slack=1.0, layers=2)
    (run,) = gather([("r", read_recording(tmp_path / "r.jsonl"))])[CARD].observations
    assert run.predicted.allocated == run.measured.allocated


def test_the_cards_own_figures_become_shares(tmp_path: Path) -> None:
    card = gpu(CARD)
    told = {
        "cublas_workspace_bytes": 40 * MIB, "bandwidth_bytes_per_s": 0.9 * (card.bandwidth_bytes_per_s or 0),
        "flops_per_s": {"bf16": 0.7 * (card.flops_for("bf16") or 0), "fp32": 1.0, "strange": 5.0},
    }  # fmt: skip
    with Recording({"order": {"mode": "calibrate"}}, tmp_path / "c.jsonl") as recording:
        recording.append(HELLO)
        recording.append({"event": "result", "t": 1.0, "outcome": "completed", "calibration": told})
        recording.append({"event": "outcome", "t": 1.1, "kind": "completed"})
    recordings = [*battery(tmp_path / "runs", context=712 * MIB, slack=1.0), ("c", read_recording(tmp_path / "c.jsonl"))]
    fitted = fit(gather(recordings)[CARD])
    assert fitted.calibration.bandwidth_fraction == pytest.approx(0.9)
    assert dict(fitted.calibration.flops_fractions) == {"bf16": pytest.approx(0.7)}
    found = figures_of(fitted)
    assert found["workspace"] == (False, 40 * MIB)  # these runs hold the catalog's 32 MiB


def test_what_is_no_run_on_a_card_is_passed_over(tmp_path: Path) -> None:
    with Recording({"order": {"mode": "monitor"}}, tmp_path / "m.jsonl"):
        pass
    with Recording({"scenario": {"task": "inference"}, "order": {"mode": "measure"}}, tmp_path / "broken.jsonl") as recording:
        recording.append(HELLO)
        recording.append({"event": "outcome", "t": 1.1, "kind": "completed"})
    found = gather([(path.name, read_recording(path)) for path in tmp_path.glob("*.jsonl")])
    assert [evidence.observations for evidence in found.values()] == [[]]
