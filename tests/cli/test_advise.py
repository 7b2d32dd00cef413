"""``main.py advise``: proposals on the screen and as JSON, and the plan's own verdict as status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TRAINED = {
    "version": 1, "model": "meta-llama/Llama-3.1-8B", "task": "training", "training": {"batch": 4, "sequence": 4096},
    "hardware": {"gpu": "A100 SXM4 80GB"},
}  # fmt: skip


def advise(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "main.py"), "advise", "-", *arguments]
    return subprocess.run(line, input=json.dumps(TRAINED), capture_output=True, text=True, check=False, timeout=200)


def test_proposals_are_printed_and_the_status_is_the_plans() -> None:
    shown = advise()
    assert shown.returncode == 1
    assert "Gradient checkpointing" in shown.stdout
    assert "does not fit" in shown.stdout


def test_each_proposal_is_a_scenario_to_adopt() -> None:
    found = json.loads(advise("--json").stdout)
    assert {"title", "cost", "saving_bytes", "verdict", "scenario"} <= found[0].keys()
    assert found[0]["verdict"] in ("fits", "tight")
