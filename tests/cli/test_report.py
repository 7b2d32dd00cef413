from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli import exits
from main import main

SCENARIO = {"version": 1, "model": "meta-llama/Llama-3.1-8B", "task": "inference", "hardware": {"gpu": "H100 SXM5 80GB"}}


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    path = tmp_path / "scenario.json"
    path.write_text(json.dumps(SCENARIO))
    return str(path)


def test_markdown_with_its_chart_beside_it(scenario: str, tmp_path: Path) -> None:
    output = tmp_path / "plan.md"
    assert main(["report", scenario, "-o", str(output)]) == exits.DONE
    assert "(plan-footprint.svg)" in output.read_text(encoding="utf-8")
    assert (tmp_path / "plan-footprint.svg").read_text(encoding="utf-8").startswith("<svg")


def test_html_is_one_file(scenario: str, tmp_path: Path) -> None:
    output = tmp_path / "plan.html"
    assert main(["report", scenario, "-o", str(output)]) == exits.DONE
    assert "<svg" in output.read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".json"] == ["plan.html"]


def test_without_a_file_it_is_printed(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", scenario]) == exits.DONE
    assert "# meta-llama/Llama-3.1-8B · inference" in capsys.readouterr().out


def test_bad_input_is_said(scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", scenario, "-o", "plan.pdf"]) == exits.BAD_INPUT
    assert "must end in .md or .html" in capsys.readouterr().err
    other = tmp_path / "other.jsonl"
    other.write_text("{}\n")
    assert main(["report", scenario, "--recording", str(other)]) == exits.BAD_INPUT
    assert main(["report", scenario, "-o", str(tmp_path / "none" / "plan.md")]) == exits.NOT_DONE_HERE
