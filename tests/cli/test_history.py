from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from cli import parser
from resources.history import History, Run


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HIGHWATER_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


def test_runs_are_listed_shown_exported_and_deleted(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = {"outcome_text": "It ran."}
    first = History().add(Run("measure", "org/A", allocated_bytes=2**30, predicted_allocated_bytes=2**30, result=result))
    second = History().add(Run("rehearse", "org/B", gpu="H200"))
    assert parser.run(["history"]) == 0
    listed = capsys.readouterr().out
    assert listed.index("org/B") < listed.index("org/A")
    assert "1.00 GiB" in listed
    assert "+0.00 %" in listed
    assert parser.run(["history", "list", "org/a", "--json"]) == 0
    assert [run["id"] for run in json.loads(capsys.readouterr().out)] == [first]
    assert parser.run(["history", "show", str(first)]) == 0
    assert "It ran." in capsys.readouterr().out
    for name in ("out.csv", "out.json"):
        assert parser.run(["history", "export", str(home / name)]) == 0
    with (home / "out.csv").open(newline="") as file:
        assert [row["model"] for row in csv.DictReader(file)] == ["org/B", "org/A"]
    assert json.loads((home / "out.json").read_text())["runs"][1]["result"] == result
    assert parser.run(["history", "delete", str(second)]) == 0
    assert [run.id for run in History().runs()] == [first]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show"], "name a run by its id"),
        (["show", "x"], "'x' is not the id of a run"),
        (["show", "7"], "run 7: there is none"),
        (["delete", "7"], "run 7: there is none"),
        (["export"], "ends in .json or .csv"),
        (["export", "runs.txt"], "must end in .json or .csv"),
        (["export", "no/such/folder/runs.csv"], "can't be written"),
    ],
)
def test_nonsense_is_told(home: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert parser.run(["history", *arguments]) == 2
    errors = capsys.readouterr().err
    assert words in errors
    assert errors.count("\n") == 1


def test_an_empty_history_says_how_to_fill_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parser.run(["history"]) == 0
    assert "no run yet" in capsys.readouterr().out


def test_a_broken_history_is_said_once_and_begun_anew(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "history.sqlite").write_text("this was a database, once " * 100)
    assert parser.run(["history"]) == 0
    assert "set aside" in capsys.readouterr().err
    assert parser.run(["history"]) == 0
    assert capsys.readouterr().err == ""
