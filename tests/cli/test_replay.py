from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli import parser
from probes.recording import Recording
from tests.timing import quickest_s

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
    def replay() -> None:
        assert parser.run(["replay", str(path), "--json", "--speed", "5"]) == 0
        assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == EVENTS

    assert 0.4 < quickest_s(replay, 2.2) < 2.2


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


def test_what_each_rank_said_is_told_and_compared_with_its_own_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rank 1 of a prediction with two GPUs; both ranks' samples are told, about one a second of each."""

    def phase(state: str, t: float, **meters: int) -> dict[str, Any]:
        return {"event": "phase", "t": t, "name": "forward", "state": state, "step": 1, **meters}

    def both(event: dict[str, Any]) -> list[dict[str, Any]]:
        return [event, {"event": "rank", "t": event["t"], "rank": 1, "of": event}]

    ended = [phase("end", 2.0, allocated=2**20 * (number + 1), reserved=2**30, device=2**30) for number in (0, 1)]
    events = [
        *both({"event": "hello", "t": 0.0, "device": {"type": "cuda", "index": 0}}),
        *both(phase("begin", 0.5)),
        *(
            event
            for n in range(8)
            for event in both({"event": "memory", "t": 0.6 + n / 20, "allocated": 2**20, "phase": "forward"})
        ),
        ended[0],
        {"event": "rank", "t": 2.0, "rank": 1, "of": ended[1]},
        {"event": "outcome", "t": 2.3, "kind": "completed", "text": "The run completed in 2.3 s."},
    ]
    predicted = [{"phases": [{"name": "forward", "allocated": size, "reserved": 1, "device": 1}]} for size in (2**20, 2**20)]
    path = tmp_path / "ranks.jsonl"
    with Recording({"scenario": {"model": "org/A"}, "prediction": {"gpus": predicted}}, path) as recording:
        for event in events:
            recording.append(event)
    assert parser.run(["replay", str(path), "--speed", "max"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[-1] for line in lines if "allocated 1" in line] == ["allocated 1.0 MiB", "rank 1: allocated 1.0 MiB"]
    rows = [line.split() for line in lines if line.split()[1:2] == ["forward"]]
    assert [(row[0], "+0.00" in row, "+100.00" in row) for row in rows] == [("0", True, False), ("1", False, True)]


def test_values_of_another_kind_do_not_end_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that was edited, or written by what is not Highwater."""
    lines: list[dict[str, object]] = [
        {"highwater_recording": 2, "scenario": [], "prediction": {"gpus": 7}, "order": None},
        {"event": "memory", "t": 1, "allocated": [], "reserved": 5},
        {"event": "sample", "t": 5, "gpus": [1, {"used": {}}, {"index": 2, "used": 2**30}]},
        {"event": "sample", "t": 9, "gpus": {"used": 1}},
    ]
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert parser.run(["replay", str(path), "--speed", "max"]) == 0
    out = capsys.readouterr().out
    assert "reserved 5 B" in out
    assert "GPU 2 1.00 GiB" in out
