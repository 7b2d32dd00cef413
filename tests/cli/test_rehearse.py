"""``python main.py rehearse`` as a person runs it, on models small enough to take only the time their libraries take."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cli import parser
from probes import preflight
from tests.children import ending
from tests.timing import PATIENCE_S, eventually

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
    "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
needs_libraries = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")),
    reason="needs torch and transformers, which the extra `probe` installs",
)


def scenario(
    task: str = "training", gpu: str = "A100 SXM4 80GB", config: dict[str, Any] = TINY, **workload: object
) -> dict[str, Any]:
    workload = {"training": {"sequence": 64}, "inference": {"prompt_tokens": 16, "new_tokens": 3}}[task] | workload
    document = {"version": 1, "model": {"config": config}, "weights": "bf16", "task": task, task: workload}
    return document | {"hardware": {"gpu": gpu}}


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "main.py", "rehearse", *arguments],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"HIGHWATER_HOME": str(home), "COLUMNS": "160"},
    )  # fmt: skip


def rehearse(home: Path, asked: dict[str, Any], *arguments: str) -> tuple[int, str, str]:
    child = start(home, "-", *arguments)
    out, errors = child.communicate(json.dumps(asked), timeout=280)
    return child.returncode, out, errors


@needs_libraries
def test_json_timeline_and_snapshot(tmp_path: Path) -> None:
    timeline, snapshot, recording = tmp_path / "t.csv", tmp_path / "s.pickle", tmp_path / "r.jsonl"
    files = ["--timeline", str(timeline), "--snapshot", str(snapshot), "--record", str(recording)]
    status, out, errors = rehearse(tmp_path, scenario(), "--json", *files)
    assert (status, errors) == (0, "")
    answer = json.loads(out)
    phases = answer["gpus"][0]["phases"]
    assert (answer["level"], answer["outcome"], answer["verdict"]) == ("rehearse", "completed", "fits")
    assert [phase["name"] for phase in phases] == ["load", "forward", "backward", "optimizer"]
    assert set(answer["error"]) == {"load", "forward", "backward", "optimizer"}
    assert answer["environment"]["versions"]["torch"]
    assert answer["recording"] == str(recording)
    assert recording.stat().st_size > 0
    with timeline.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["event"]) for row in rows] == list(range(len(rows)))
    assert max(int(row["allocated"]) for row in rows) == max(phase["allocated"] for phase in phases)
    assert max(int(row["reserved"]) for row in rows) == max(phase["reserved"] for phase in phases)
    shows_in_the_viewer(snapshot, tmp_path / "plot.html")


def shows_in_the_viewer(snapshot: Path, page: Path) -> None:
    """PyTorch's own reader of snapshots, as a process of its own: it unpickles the file, this one does not."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    viewer = Path(next(iter(spec.submodule_search_locations or ()))) / "cuda" / "_memory_viz.py"
    events = subprocess.run([sys.executable, viewer, "trace", snapshot], capture_output=True, text=True, check=True).stdout
    assert "free completed" in events
    subprocess.run([sys.executable, viewer, "trace_plot", snapshot, "-o", page], capture_output=True, check=True)
    assert "MemoryViz" in page.read_text(encoding="utf-8")


@needs_libraries
def test_out_of_memory_is_a_result(tmp_path: Path) -> None:
    """10 MiB beside the context hold the weights, but no segment of 20 MiB for cuBLAS's workspace."""
    status, out, errors = rehearse(tmp_path, scenario(), "--capacity", str(266 / 1024))
    assert status == 1
    assert errors.startswith("highwater: Out of memory in forward: 8.1 MiB was asked for, ")
    assert "allocated, at " in out
    assert "vs predicted" in out
    assert "optimizer_state" in out


@needs_libraries
def test_a_config_the_library_rejects_is_one_message(tmp_path: Path) -> None:
    status, out, errors = rehearse(tmp_path, scenario(config=TINY | {"hidden_act": "nonsense"}))
    assert (status, out) == (2, "")
    assert "nonsense" in errors
    assert errors.count("\n") == 1


@needs_libraries
@pytest.mark.skipif(os.name != "posix", reason="interrupts as POSIX does")
def test_an_interrupt_stops_it(tmp_path: Path) -> None:
    child = start(tmp_path, "-")
    with ending(child):
        assert child.stdin is not None
        child.stdin.write(json.dumps(scenario()))
        child.stdin.close()
        child.stdin = None
        assert eventually(lambda: any('"hello"' in path.read_text() for path in tmp_path.glob("recordings/*")))
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 130
    assert errors.startswith("highwater: Stopped")
    assert errors.count("\n") == 1


def run(asked: object, tmp_path: Path, *arguments: str) -> int:
    path = tmp_path / "scenario.json"
    path.write_text(json.dumps(asked), encoding="utf-8")
    return parser.run(["rehearse", str(path), *arguments])


@needs_libraries
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--layers", "0"], "layers: must be at least 1, got 0"),
        (["--capacity", "0"], "--capacity: must be above 0 GiB"),
        (["--capacity", "nan"], "--capacity: must be above 0 GiB"),
        (["--alloc-conf", "max_split_size_mb:1"], "PYTORCH_CUDA_ALLOC_CONF.max_split_size_mb: must be at least 20, got 1"),
        (["--alloc-conf", "nonsense"], "PYTORCH_CUDA_ALLOC_CONF"),
        (["--timeline", "t.txt"], "--timeline: t.txt must end in .csv or .json"),
        (["--snapshot", "no/such/folder/s.pickle"], "--snapshot: there is no folder no/such/folder"),
        (["--record", __file__], "exists already"),
    ],
)
def test_bad_options_are_refused_before_the_work(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(scenario(), tmp_path, *arguments) == 2
    assert words in capsys.readouterr().err


def test_bad_scenarios_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "NEEDED", ())
    assert run(scenario(batch=0) | {"colour": "red"}, tmp_path) == 2
    errors = capsys.readouterr().err
    assert "training.batch: must be at least 1, got 0" in errors
    assert "colour: unknown key" in errors


def test_missing_libraries_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "NEEDED", ("torch_that_nobody_has",))
    assert run(scenario(), tmp_path) == 3
    errors = capsys.readouterr().err
    assert "torch_that_nobody_has is not installed" in errors
    assert errors.count("\n") == 1
