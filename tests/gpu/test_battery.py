"""The battery itself, checked without a card: its scenarios make sense, and its runner keeps what the program reads."""

from __future__ import annotations

import gzip
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.battery import KEPT_SAMPLES, thinned
from tests.gpu.scenarios import SCENARIOS, config_of
from tests.gpu.worker_process import ROOT


def test_there_are_forty_of_several_kinds() -> None:
    names = [scenario.name for scenario in SCENARIOS]
    assert len(set(names)) == len(names) >= 40
    assert len({config_of(scenario.model)["model_type"] for scenario in SCENARIOS}) >= 6
    assert {scenario.task for scenario in SCENARIOS} == {"inference", "training"}
    assert sum("lora" in name for name in names) >= 3
    assert sum("ckpt" in name for name in names) >= 3


def test_the_worker_takes_every_order() -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("needs torch")
    from probes.worker.order import parse_order

    for scenario in SCENARIOS:
        order = parse_order(json.loads(json.dumps(scenario.order("measure", "cuda:0"))))
        assert order.task == scenario.task


def test_few_samples_are_kept_and_the_highest_always() -> None:
    memory = [{"event": "memory", "t": n / 20, "reserved": 10**9 if n == 4321 else n} for n in range(10_000)]
    phase = {"event": "phase", "t": 3.0, "name": "load", "state": "end"}
    kept = thinned([*memory, phase])
    assert phase in kept
    assert memory[4321] in kept
    assert KEPT_SAMPLES <= len(kept) <= KEPT_SAMPLES + 5
    assert [event["t"] for event in kept] == sorted(event["t"] for event in kept)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")
def test_a_run_on_the_cpu_leaves_a_recording(tmp_path: Path) -> None:
    """The smallest scenario through the runner as it is started, and begun again: what is there is left out."""
    command = [
        sys.executable,
        "tests/gpu/battery.py",
        str(tmp_path),
        "--device",
        "cpu",
        "--only",
        "smol-infer-b1-t512",
        "--layers",
        "1",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("*.jsonl.gz")
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert lines[0]["highwater_recording"] == 2
    assert lines[-1]["kind"] == "completed"
    ended = {line["name"] for line in lines if line.get("event") == "phase" and line["state"] == "end"}
    assert ended == {"load", "prefill", "decode"}
    assert path.stat().st_size < 100_000
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (again.returncode, again.stdout) == (0, "")
