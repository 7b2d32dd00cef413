from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from cli import parser
from probes.recording import Recording

EVENTS: list[dict[str, Any]] = [
    {"event": "hello", "t": 0.0, "device": {"type": "cpu"}},
    {"event": "phase", "t": 0.1, "name": "prefill", "state": "begin", "step": 0},
    *({"event": "memory", "t": 0.1 + n / 20, "allocated": 2**20 * n, "phase": "prefill"} for n in range(40)),
    {"event": "phase", "t": 2.2, "name": "prefill", "state": "end", "step": 0, "allocated": 2**30, "reserved": 2**30, "device": 0},
    {"event": "outcome", "t": 2.3, "kind": "completed", "text": "The run completed in 2.3 s."},
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "r.jsonl"
    with Recording({"scenario": {"model": "org/A"}}, path) as recording:
        for event in EVENTS:
            recording.append(event)
    return path


def test_events_come_as_they_were(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun = time.monotonic()
    assert parser.run(["replay", str(path), "--json", "--speed", "5"]) == 0
    assert 0.4 < time.monotonic() - begun < 1.5
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == EVENTS


def test_the_words_end_with_the_result(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parser.run(["replay", str(path), "--speed", "max"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "prefill begins" in line]
    assert 2 <= sum("allocated" in line and " s  " in line for line in lines) <= 3
    assert "org/A" in "\n".join(lines)
    assert "1.00 GiB" in lines[-1]


def test_nonsense_is_told(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in [
        ([str(path), "--speed", "fast"], "--speed: must be a number or max"),
        ([str(path), "--speed", "0"], "speed: must be above 0"),
        (["nowhere.jsonl"], "nowhere.jsonl: No such file"),
        ([__file__], "not a Highwater recording"),
    ]:
        assert parser.run(["replay", *arguments]) == 2
        assert words in capsys.readouterr().err
