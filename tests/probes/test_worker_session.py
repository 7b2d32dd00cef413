"""The session over the real worker: a tiny model on the CPU."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from probes.measurement import Measurement
from probes.orders import measure_order
from probes.outcome import Outcome
from probes.recording import read_recording
from probes.session import Limits, ProbeSession
from tests.timing import PATIENCE_S, eventually

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")),
    reason="needs torch and transformers, which the extra `probe` installs",
)

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
    "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
# Embedding and head 256·64 each; per layer q and o 64·64, k and v 64·32, gate, up, down 64·128, two norms; last norm.
PARAMETERS = 2 * 256 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64
INFERENCE = {"batch": 2, "prompt_tokens": 24, "new_tokens": 3}
TRAINING = {"batch": 1, "sequence": 16, "precision": "fp32"}


def scenario(task: str, **changes: object) -> dict[str, Any]:
    workload = {"inference": INFERENCE, "training": TRAINING}[task] | changes
    return {"version": 1, "model": {"config": CONFIG}, "weights": "fp32", "task": task, task: workload}


def probe(folder: Path, asked: dict[str, Any], **order: Any) -> tuple[Measurement, Outcome, Path]:
    measurement, path = Measurement(asked), folder / "r.jsonl"
    order = measure_order(asked, CONFIG, **order)
    with ProbeSession(order, measurement.add, recording_path=path, limits=Limits(time_s=180)) as session:
        outcome = session.wait(200)
    assert outcome is not None
    return measurement, outcome, path


def test_inference(tmp_path: Path) -> None:
    measurement, outcome, path = probe(tmp_path, scenario("inference"))
    assert outcome.kind == "completed", outcome.text + outcome.stderr_tail
    answer = measurement.footprint()
    assert answer.parameters == PARAMETERS
    assert answer.weight_bytes == PARAMETERS * 4
    assert [phase.name for phase in answer.gpus[0].phases] == ["load", "prefill", "decode"]
    assert all(phase.allocated >= PARAMETERS * 4 for phase in answer.gpus[0].phases)
    environment = answer.extra["environment"]
    assert isinstance(environment, dict)
    assert environment["device"]["type"] == "cpu"
    replayed = Measurement.of_recording(read_recording(path))
    assert replayed.footprint().to_json() == answer.to_json()


def test_training_compares_the_second_step(run_here: Any) -> None:
    measurement = Measurement(scenario("training"))
    run_here(measure_order(scenario("training"), CONFIG), measurement.add)
    steps = {(step.name, step.step): step.meters["allocated"] for step in measurement.steps.values()}
    assert [(step.name, step.step) for step in measurement.phases] == [
        ("load", 0), ("forward", 2), ("backward", 2), ("optimizer", 2),
    ]  # fmt: skip
    # The second forward holds Adam's two moments (Kingma & Ba 2015), fp32 like the weights; the first does not.
    moments = steps["forward", 2] - steps["forward", 1]
    assert moments == pytest.approx(2 * PARAMETERS * 4, rel=0.02)


def test_a_budget_that_is_too_small_is_out_of_memory(tmp_path: Path) -> None:
    measurement, outcome, _ = probe(tmp_path, scenario("inference"), budget_bytes=4096)
    assert outcome.kind == "out_of_memory", outcome.text + outcome.stderr_tail
    assert outcome.exit_code == 1
    assert measurement.footprint().verdict == "does_not_fit"


def test_a_bad_order_is_told_in_the_workers_words(tmp_path: Path) -> None:
    _, outcome, path = probe(tmp_path, scenario("inference", batch=0))
    assert (outcome.kind, outcome.exit_code) == ("failed", 2)
    assert "inference.batch" in outcome.sentence
    assert read_recording(path).events[-1]["kind"] == "failed"


def test_kill_midway(tmp_path: Path) -> None:
    """Long decoding, killed as soon as it has begun: all that was said until then is there."""
    asked = scenario("inference", new_tokens=4000)
    measurement, path = Measurement(asked), tmp_path / "r.jsonl"
    with ProbeSession(measure_order(asked, CONFIG), measurement.add, recording_path=path) as session:
        assert eventually(lambda: ("decode", 0) in measurement.steps)
        assert session.pid is not None
        os.kill(session.pid, signal.SIGKILL)
        outcome = session.wait(PATIENCE_S)
    assert outcome is not None
    assert (outcome.kind, outcome.phase) == ("killed", "decode")
    replayed = Measurement.of_recording(read_recording(path))
    assert [phase.name for phase in replayed.footprint().gpus[0].phases] == ["load", "prefill", "decode"]
    assert replayed.outcome["kind"] == outcome.kind
