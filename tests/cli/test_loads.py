from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from cli import parser
from resources.history import History

MIB = 2**20
needs_torch = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")),
    reason="needs torch and transformers, which the extra `probe` installs",
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HIGHWATER_HOME", str(tmp_path))
    return tmp_path


@needs_torch
def test_a_ramp_says_what_is_available(capsys: pytest.CaptureFixture[str]) -> None:
    assert parser.run(["measure", "--load", "ramp", "--device", "cpu", "--budget", "200", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["available_bytes"], told["stopped_by"]) == (192 * MIB, "budget")
    (run,) = History().runs()
    assert (run.model, run.phase, run.allocated_bytes) == ("plain allocations", "ramp", 192 * MIB)


@needs_torch
def test_a_script_or_a_module_of_ones_own(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    script = home / "mine.py"
    script.write_text("import sys, torch\nheld = torch.ones(int(sys.argv[1]))\nraise SystemExit(int(sys.argv[2]))\n")
    assert parser.run(["measure", "--script", str(script), "--device", "cpu", "--", str(8 * MIB), "0"]) == 0
    assert "32.0 MiB" in capsys.readouterr().out
    monkeypatch.chdir(home)
    assert parser.run(["measure", "--module", "mine", "--device", "cpu", "--", "8", "5"]) == 3
    assert "exit status 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["scenario.json", "--load", "ramp"], "stand alone"),
        (["--load", "ramp", "--script", "x.py"], "stand alone"),
        (["--script", __file__, "--module", "json"], "stand alone"),
        (["--module", "json", "--device", "ssh:box"], "run on this machine only"),
        (["--load", "ramp", "--", "x"], "takes no command"),
        (["--script", "/no/such.py"], "there is no file /no/such.py"),
    ],
)
def test_nonsense_is_told(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert parser.run(["measure", *arguments]) == 2
    errors = capsys.readouterr().err
    assert words in errors
    assert errors.count("\n") == 1
