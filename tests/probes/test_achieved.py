"""Shares of a card's peak, fitted on the times that runs took."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.calibration import Calibration
from planner.predict import settled_of
from planner.scenario import parse_scenario
from planner.speed import BANDWIDTH_FRACTION, TRAINING_FLOPS_FRACTION, speed
from probes.achieved import Timing, speed_figures, with_speeds
from probes.calibration import fit, gather
from probes.recording import Recording, read_recording
from resources.gpus import gpu
from resources.plan import find_model
from tests.probes.test_calibration import CARD, HELLO

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 8, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000,
    "max_position_embeddings": 8192, "tie_word_embeddings": False,
}  # fmt: skip


def timed(path: Path, task: str, work: dict[str, Any], calibration: Calibration) -> None:
    """A run on an H200 that took as long as this calibration says."""
    scenario = {"version": 1, "model": {"config": CONFIG}, "weights": "bf16", "task": task, task: work, "hardware": {"gpu": CARD}}
    asked = parse_scenario(scenario)
    model = find_model(asked.model, network=False)
    settled, fmt = settled_of(asked, model.architecture, model.native)
    told = speed(settled, model.architecture, fmt, replace(gpu(CARD), calibration=calibration))
    step_s = told["step_s"] if task == "training" else told["time_per_token_s"]
    assert isinstance(step_s, float)
    lasting = (
        {"load": 1.0, "forward": 0.3 * step_s, "backward": 0.6 * step_s, "optimizer": 0.1 * step_s}
        if task == "training"
        else {"load": 1.0, "prefill": 3.0, "decode": step_s * work["new_tokens"]}
    )
    t = 1.0
    with Recording({"scenario": scenario, "config": CONFIG, "order": {"mode": "measure", "layers": None}}, path) as recording:
        recording.append(HELLO)
        for name, seconds in lasting.items():
            event = {"event": "phase", "name": name, "step": 2 if task == "training" and name != "load" else 0}
            recording.append({**event, "state": "begin", "t": t})
            t += seconds
            recording.append({**event, "state": "end", "t": t, "allocated": 1, "reserved": 1, "device": 1})
        recording.append({"event": "outcome", "t": t, "kind": "completed"})


def test_what_runs_achieved_is_found_and_predicted(tmp_path: Path) -> None:
    """Runs at 0.6 of the bandwidth and 0.4 of the arithmetic, give or take; the card's own copy at 0.9 is told too."""
    noise = random.Random(7)
    work = [("inference", {"batch": batch, "prompt_tokens": 64, "new_tokens": 16}) for batch in (1, 2, 3, 4)]
    work += [("training", {"batch": batch, "sequence": 2048}) for batch in (2, 4, 6, 8)]
    for number, (task, workload) in enumerate(work):
        near = noise.uniform(0.97, 1.03)
        timed(
            tmp_path / f"{number}.jsonl", task, workload,
            Calibration(bandwidth_fraction=0.6 * near, flops_fractions=(("bf16", 0.4 * near),)),
        )  # fmt: skip
    with Recording({"order": {"mode": "calibrate"}}, tmp_path / "own.jsonl") as recording:
        recording.append(HELLO)
        own = {"bandwidth_bytes_per_s": 0.9 * (gpu(CARD).bandwidth_bytes_per_s or 0), "graph_bytes": 300_000}
        recording.append({"event": "result", "t": 1.0, "outcome": "completed", "calibration": own})
        recording.append({"event": "outcome", "t": 1.1, "kind": "completed"})
    fitted = fit(gather((path.name, read_recording(path)) for path in sorted(tmp_path.glob("*.jsonl")))[CARD])
    figures = {figure.name: figure for figure in fitted.figures}
    assert fitted.calibration.bandwidth_fraction == pytest.approx(0.6, rel=0.04)
    assert dict(fitted.calibration.flops_fractions)["bf16"] == pytest.approx(0.4, rel=0.05)
    assert "share that its runs achieved" in figures["bandwidth"].why
    assert fitted.calibration.graph_bytes == 300_000
    for name in ("bandwidth", "bf16 FLOP/s"):
        before, after = figures[name].error_before, figures[name].error_after
        assert before is not None
        assert after is not None
        assert after < before


def timing(figure: str, share: float, fraction: float) -> Timing:
    """A pass that is bound by one resource alone."""

    def predict(calibration: Calibration | None) -> float:
        told = None
        if calibration is not None:
            told = calibration.bandwidth_fraction if figure == "bandwidth" else dict(calibration.flops_fractions).get("bf16")
        return share / (told or fraction)

    return Timing(figure, share, 1.0, predict)


@settings(max_examples=60)
@given(
    st.lists(st.floats(0.06, 1.0), max_size=8),
    st.lists(st.floats(0.06, 1.0), max_size=8),
    st.lists(st.floats(0.0, 2.0), max_size=2),
)
def test_times_are_never_predicted_worse_than_without(reads: list[float], products: list[float], own: list[float]) -> None:
    """Of figures that are kept the held-out error is below that without them."""
    card = gpu(CARD)
    timings = [timing("bandwidth", share, BANDWIDTH_FRACTION) for share in reads]
    timings += [timing("bf16 FLOP/s", share, TRAINING_FLOPS_FRACTION) for share in products]
    copied = [share * (card.bandwidth_bytes_per_s or 0) for share in own]
    figures = speed_figures(card, timings, copied, {"bf16": [share * (card.flops_for("bf16") or 0) for share in own]})
    for figure in figures:
        if figure.accepted and figure.error_before is not None and figure.error_after is not None:
            assert figure.error_after < figure.error_before
    kept = with_speeds(Calibration(), figures)
    if len(reads) < 3 and not own:
        assert kept.bandwidth_fraction is None
    assert kept.bandwidth_fraction is None or 0.05 < kept.bandwidth_fraction <= 1.05


def test_runs_that_the_processor_held_up_say_nothing_of_the_card(tmp_path: Path) -> None:
    """A hundredth of the bandwidth: kernels were waited for."""
    for number in range(4):
        slow = Calibration(bandwidth_fraction=0.01)
        timed(tmp_path / f"{number}.jsonl", "inference", {"batch": 1 + number, "prompt_tokens": 64, "new_tokens": 16}, slow)
    fitted = fit(gather((path.name, read_recording(path)) for path in sorted(tmp_path.glob("*.jsonl")))[CARD])
    assert fitted.calibration.bandwidth_fraction is None
