"""The report on a battery's recordings, on such as a card of known figures would have left."""

from __future__ import annotations

import gzip
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from planner.units import MIB
from probes.recording import Recording
from tests.gpu import report
from tests.gpu.rehearsed import rehearse
from tests.gpu.scenarios import SCENARIOS
from tests.probes.fake_nvml import PROJECT
from tests.probes.test_calibration import battery


def test_errors_are_told_by_meter(tmp_path: Path) -> None:
    """allocated is as predicted, reserved and device are not, and calibration mends the device."""
    battery(tmp_path, context=712 * MIB, slack=1.6)
    for path in tmp_path.glob("*.jsonl"):
        (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    done = subprocess.run(
        [sys.executable, "tests/gpu/report.py", str(tmp_path)], cwd=PROJECT, capture_output=True, text=True, timeout=200, check=True
    )
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines()}
    assert lines["6"][1] == "recordings"
    assert lines["allocated"][2:4] == ["0.00%", "0.00%"]
    assert float(lines["reserved"][3].rstrip("%")) > 0
    assert "each run held out" in done.stdout
    before, after = (float(word.rstrip("%")) for word in done.stdout.split("held out:")[1].split() if word.endswith("%"))
    assert after < 0.3 < before


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")
def test_rehearsals_are_set_beside_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording that measured what the rehearsal says, but for 2 % more reserved in one phase."""
    scenario = next(scenario for scenario in SCENARIOS if scenario.name == "llama-train-b4-t512")
    peaks = rehearse(scenario, [9, 0], "2.13.0")
    assert ("optimizer", 2) in peaks
    assert all(0 < allocated <= reserved for allocated, reserved in peaks.values())
    device = {"type": "cuda", "name": "NVIDIA H200", "index": 0, "total_bytes": 150_110_011_392, "capability": [9, 0]}
    order = scenario.order("measure", "cuda:0")
    header = {"scenario": order["scenario"], "config": order["config"], "order": {"mode": "measure", "layers": scenario.layers}}
    with Recording(header, tmp_path / "r.jsonl") as recording:
        recording.append({"event": "hello", "t": 0.1, "versions": {"torch": "2.13.0+cu130"}, "device": device})
        for number, ((name, step), (allocated, reserved)) in enumerate(peaks.items(), 1):
            taken = round(reserved / 0.98) if (name, step) == ("forward", 2) else reserved
            told = {"event": "phase", "name": name, "step": step, "micro": 0}
            recording.append({**told, "state": "begin", "t": float(number)})
            meters = {"allocated": allocated, "reserved": taken, "device": taken}
            recording.append({**told, "state": "end", "t": number + 0.5, **meters})
        recording.append({"event": "outcome", "t": 9.0, "kind": "completed"})
    (tmp_path / f"{scenario.name}.jsonl.gz").write_bytes(gzip.compress((tmp_path / "r.jsonl").read_bytes()))
    asked = []

    def again(*arguments: object) -> object:
        asked.append(arguments)
        return peaks

    monkeypatch.setattr(report, "rehearse", again)
    errors = report.rehearsed_errors(report.read(tmp_path))
    assert asked == [(scenario, [9, 0], "2.13.0", 150_110_011_392)]
    assert set(errors["allocated"]) == {0.0}
    assert min(errors["reserved"]) == pytest.approx(-0.02, abs=1e-4)
    assert errors["reserved"].count(0.0) == len(peaks) - 1
    lines = report.table("rehearsed", errors).splitlines()
    assert [line.split()[0] for line in lines] == ["rehearsed", "allocated", "reserved"]
