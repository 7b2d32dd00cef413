from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from cli import parser
from planner.units import MIB
from resources import calibration as store
from tests.probes.test_calibration import CARD, WORK, battery, record


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HIGHWATER_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "180")
    return tmp_path


def test_it_is_fitted_shown_exported_and_taken_back(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    battery(home / "recordings", context=712 * MIB, slack=1.6)
    assert parser.run(["calibrate", "fit", "--dry-run"]) == 0
    assert "✔ closer to runs that it was not fitted on" in capsys.readouterr().out
    assert store.cards() == []
    assert parser.run(["calibrate", "fit"]) == 0
    assert store.history_of(CARD)[-1].training_slack_permille == 1600
    assert parser.run(["calibrate", "show"]) == 0
    assert "training_slack_permille: 1600" in capsys.readouterr().out
    assert parser.run(["calibrate", "export", str(home / "c.json")]) == 0
    assert CARD in json.loads((home / "c.json").read_text())["cards"]
    assert parser.run(["calibrate", "undo"]) == 0
    assert store.cards() == []
    assert parser.run(["calibrate", "fit"]) == 0
    assert parser.run(["calibrate", "reset"]) == 0
    assert "1 cards are back" in capsys.readouterr().out
    assert store.cards() == []


def test_only_the_recordings_that_are_named_count(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    battery(home / "recordings", context=712 * MIB, slack=1.6)
    record(home / "one.jsonl", *WORK[0], context=600 * MIB, slack=1.0)
    assert parser.run(["calibrate", "fit", str(home / "one.jsonl")]) == 0
    assert "Nothing proved itself" in capsys.readouterr().out
    assert store.cards() == []


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["fit"], 3, "no recording of a run on a GPU"),
        (["fit", __file__], 2, "not a Highwater recording"),
        (["undo"], 2, "name a card that is calibrated (none)"),
        (["export"], 2, "name one file"),
        (["export", "/no/such/folder/c.json"], 2, "can't be written"),
    ],
)
def test_nonsense_is_told(arguments: list[str], status: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert parser.run(["calibrate", *arguments]) == status
    errors = capsys.readouterr().err
    assert words in errors
    assert errors.count("\n") == 1


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")),
    reason="needs torch and transformers, which the extra `probe` installs",
)
def test_on_a_cpu_there_is_nothing_to_keep(capsys: pytest.CaptureFixture[str]) -> None:
    assert parser.run(["calibrate", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "GB/s" in out
    assert "bf16" in out
    assert "nothing is kept" in out
    assert store.cards() == []
