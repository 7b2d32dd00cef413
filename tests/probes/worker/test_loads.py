"""Loads without a model, in real child processes on the CPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from probes.measurement import Measurement
from probes.orders import load_order
from probes.outcome import Outcome
from probes.session import Limits, ProbeSession

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch, which the extra `probe` installs")
MIB = 2**20


def load(
    folder: Path, mode: str, budget_bytes: int | None = None, **order: Any
) -> tuple[list[dict[str, Any]], Measurement, Outcome]:
    events: list[dict[str, Any]] = []
    measurement = Measurement({})

    def take(event: dict[str, Any]) -> None:
        events.append(event)
        measurement.add(event)

    asked = load_order(mode, "cpu", budget_bytes, **order)
    with ProbeSession(asked, take, recording_path=folder / "r.jsonl", limits=Limits(time_s=120)) as session:
        outcome = session.wait(150)
    assert outcome is not None
    return events, measurement, outcome


def result_of(events: list[dict[str, Any]]) -> dict[str, Any]:
    return next(event for event in events if event["event"] == "result")


def test_a_ramp_takes_what_its_budget_allows(tmp_path: Path) -> None:
    events, measurement, outcome = load(tmp_path, "ramp", 100 * MIB, block_bytes=16 * MIB)
    assert outcome.kind == "completed", outcome.text + outcome.stderr_tail
    result = result_of(events)
    assert (result["available_bytes"], result["stopped_by"]) == (96 * MIB, "budget")
    (phase,) = measurement.phases
    assert (phase.name, phase.meters["allocated"]) == ("ramp", 96 * MIB)
    assert phase.meters["device"] >= 90 * MIB


def test_the_machines_own_figures(tmp_path: Path) -> None:
    events, _, outcome = load(tmp_path, "calibrate")
    assert outcome.kind == "completed", outcome.text + outcome.stderr_tail
    told = result_of(events)["calibration"]
    assert told["cublas_workspace_bytes"] is None
    assert 1e8 < told["bandwidth_bytes_per_s"] < 1e13
    assert {name for name, rate in told["flops_per_s"].items() if 1e7 < rate < 1e16} == {"bf16", "fp16", "fp32"}


SCRIPT = """
import sys, torch
held = torch.ones(int(sys.argv[1]), dtype=torch.float32)
print("held", held.numel())
if "fail" in sys.argv:
    raise SystemExit(4)
if "raise" in sys.argv:
    raise KeyError("the cause")
"""


def test_a_script_of_ones_own_is_measured(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT)
    events, measurement, outcome = load(tmp_path, "script", script=str(script), arguments=[str(4 * MIB)])
    assert outcome.kind == "completed", outcome.text + outcome.stderr_tail
    assert "held 4194304" in outcome.stderr_tail
    (phase,) = measurement.phases
    assert phase.meters["allocated"] == 16 * MIB
    assert result_of(events)["phases"][0]["name"] == "script"


@pytest.mark.parametrize(
    ("arguments", "budget", "kind", "words"),
    [
        (["16", "fail"], None, "failed", "exit status 4"),
        ([str(4 * MIB)], MIB, "out_of_memory", "Out of memory in script"),
    ],
)
def test_how_a_script_ends_is_told(tmp_path: Path, arguments: list[str], budget: int | None, kind: str, words: str) -> None:
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT)
    _, _, outcome = load(tmp_path, "script", budget, script=str(script), arguments=arguments)
    assert (outcome.kind, words in outcome.sentence) == (kind, True), outcome.sentence


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ({"mode": "script", "script": "/no/such.py"}, "there is no file /no/such.py"),
        ({"mode": "script"}, "name a script or a module"),
        ({"mode": "script", "module": "no_such_module_here"}, "there is no module no_such_module_here"),
        ({"mode": "ramp", "block_bytes": 5}, "block_bytes: must be at least"),
    ],
)
def test_nonsense_is_bad_input(tmp_path: Path, order: dict[str, Any], words: str) -> None:
    _, _, outcome = load(tmp_path, **order)
    assert (outcome.kind, outcome.exit_code) == ("failed", 2)
    assert words in outcome.sentence


def test_a_device_that_no_worker_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="device: must be cpu or cuda:N"):
        load_order("ramp", "tpu")
    with pytest.raises(ValueError, match="budget_bytes"):
        load_order("ramp", "cpu", 0)
