"""``python main.py measure`` on a model small enough to take only the time its libraries take."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli import parser
from resources.history import History
from tests.children import ending
from tests.timing import PATIENCE_S, eventually

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
    "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
SCENARIO = {
    "version": 1, "model": {"config": TINY}, "weights": "fp32", "task": "inference",
    "inference": {"prompt_tokens": 16, "new_tokens": 3},
}  # fmt: skip
needs_libraries = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")),
    reason="needs torch and transformers, which the extra `probe` installs",
)


@needs_libraries
@pytest.mark.slow
def test_two_sizes_tell_the_whole_and_the_history_keeps_both(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "main.py", "measure", "-", "--device=cpu", "--layers=auto", "--json", f"--record={tmp_path}/r.jsonl"],
        cwd=ROOT, input=json.dumps(SCENARIO), capture_output=True, text=True, timeout=200, check=False,
        env=os.environ | {"HIGHWATER_HOME": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    whole = json.loads(done.stdout)
    assert whole["extrapolated"]["layers"] == [1, 2]
    assert whole["parameters"] == 2 * 256 * 64 + 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64
    assert [phase["name"] for phase in whole["gpus"][0]["phases"]] == ["load", "prefill", "decode"]
    assert abs(whole["error"]["load"]["allocated"]) < 0.01
    kept = History(tmp_path / "history.sqlite").runs()
    assert [Path(run.recording).name for run in kept] == ["r-2-layers.jsonl", "r-1-layers.jsonl"]
    assert [(run.level, run.outcome, run.phase != "") for run in kept] == [("measure", "completed", True)] * 2


@needs_libraries
@pytest.mark.skipif(os.name != "posix", reason="interrupts as POSIX does")
def test_an_interrupted_measurement_is_kept(tmp_path: Path) -> None:
    work = SCENARIO | {"inference": {"prompt_tokens": 16, "new_tokens": 4000}}
    (tmp_path / "scenario.json").write_text(json.dumps(work), encoding="utf-8")
    child = subprocess.Popen(
        [sys.executable, "main.py", "measure", str(tmp_path / "scenario.json"), "--device=cpu", "--json"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"HIGHWATER_HOME": str(tmp_path)},
    )  # fmt: skip
    with ending(child):
        assert eventually(lambda: any('"prefill","state"' in path.read_text() for path in tmp_path.glob("recordings/*")))
        child.send_signal(signal.SIGINT)
        out, errors = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 130
    assert errors.startswith("highwater: Stopped")
    measured = json.loads(out)["gpus"][0]["phases"]
    assert (measured[0]["name"], measured[0]["allocated"] > 0) == ("load", True)
    assert [run.outcome for run in History(tmp_path / "history.sqlite").runs()] == ["stopped"]


@needs_libraries
@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("3,2", "the smaller first"),
        ("1,9", "the model has 4"),
        ("x", "must be a number, two numbers A,B or auto"),
        ("0", "layers: must be at least 1"),
    ],
)
def test_layers_that_tell_nothing_are_refused(
    layers: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIGHWATER_HOME", str(tmp_path))
    path = tmp_path / "scenario.json"
    path.write_text(json.dumps(SCENARIO))
    assert parser.run(["measure", str(path), "--device", "cpu", "--layers", layers]) == 2
    errors = capsys.readouterr().err
    assert words in errors
    assert errors.count("\n") == 1


def test_a_place_that_names_no_host_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parser.run(["measure", str(tmp_path / "none.json"), "--device", "ssh:-oProxyCommand=x"]) == 2
    assert "must be ssh:HOST" in capsys.readouterr().err
