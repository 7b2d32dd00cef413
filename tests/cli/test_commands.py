"""``main.py commands``: the launch line of a plan, on the screen, as JSON, and as files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def commands(*arguments: str, scenario: dict[str, object]) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "main.py"), "commands", "-", *arguments]
    return subprocess.run(line, input=json.dumps(scenario), capture_output=True, text=True, check=False, timeout=200)


SERVED = {
    "version": 1, "model": "meta-llama/Llama-3.1-8B", "task": "inference", "weights": "bf16",
    "inference": {"engine": "llama.cpp", "batch": 2, "prompt_tokens": 900, "new_tokens": 100},
    "hardware": {"gpu": "H100 SXM5 80GB"},
}  # fmt: skip


def test_the_line_is_printed_with_its_version_and_as_json() -> None:
    shown = commands(scenario=SERVED)
    assert shown.returncode == 0
    assert shown.stdout.startswith("# llama-server (llama.cpp ")
    assert "--ctx-size 2000" in shown.stdout
    (found,) = json.loads(commands("--json", scenario=SERVED).stdout)
    assert found["text"] in shown.stdout


def test_files_are_written_and_never_over_others(tmp_path: Path) -> None:
    training = {"version": 1, "model": "meta-llama/Llama-3.1-8B", "task": "training", "hardware": {"gpu": "H100 SXM5 80GB"}}
    written = commands("--write", str(tmp_path / "run"), scenario=training)
    assert written.returncode == 0
    assert {Path(line).name for line in written.stdout.split()} >= {"train.py", "torchtune.yaml", "axolotl.yaml"}
    again = commands("--write", str(tmp_path / "run"), scenario=training)
    assert again.returncode == 3
    assert "train.py" in again.stderr


def test_a_bad_scenario_is_refused() -> None:
    refused = commands(scenario=SERVED | {"weights": "int3"})
    assert refused.returncode == 2
    assert "weights" in refused.stderr
