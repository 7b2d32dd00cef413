from __future__ import annotations

import csv
import io
import json
import sqlite3
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from resources import history as module
from resources.history import History, HistoryError, Run

ROOT = Path(__file__).resolve().parents[2]
RUN = Run(
    "measure", "org/Some-Model", "training", "transformers", "H200", "NVIDIA H200", "completed", "fits", 12.5, "backward",
    allocated_bytes=1020, reserved_bytes=2048, device_bytes=4096, predicted_allocated_bytes=1000,
    recording="/tmp/r.jsonl", result={"gpus": [1, 2], "note": "ü"},
)  # fmt: skip


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "deep" / "history.sqlite")


def test_a_run_is_kept_as_it_was(history: History) -> None:
    number = history.add(RUN)
    found = history.run(number)
    assert found.result == RUN.result
    assert (found.model, found.seconds, found.allocated_bytes, found.predicted_device_bytes) == (RUN.model, 12.5, 1020, None)
    assert found.error == pytest.approx(0.02)
    assert found.created.endswith("+00:00")
    assert history.trouble == ""


def test_the_latest_comes_first_and_words_narrow_it(history: History) -> None:
    for index, (model, level) in enumerate([("a/Llama", "measure"), ("a/Qwen", "rehearse"), ("b/llama-2", "rehearse")]):
        history.add(Run(level, model, created=f"2026-01-0{index + 1}T00:00:00+00:00"))
    assert [run.model for run in history.runs()] == ["b/llama-2", "a/Qwen", "a/Llama"]
    assert [run.model for run in history.runs("llama REHEARSE")] == ["b/llama-2"]
    assert [run.model for run in history.runs(limit=1)] == ["b/llama-2"]
    assert history.runs("100%_") == []


def test_deleted_runs_are_gone_and_their_numbers_are_not_used_again(history: History) -> None:
    first, second = history.add(RUN), history.add(RUN)
    assert history.delete([second, 999]) == 1
    assert [run.id for run in history.runs()] == [first]
    with pytest.raises(HistoryError, match=f"run {second}"):
        history.run(second)
    assert history.add(RUN) > second


def test_exports_hold_every_run(history: History) -> None:
    first, second = history.add(RUN), history.add(Run("rehearse", 'a "quoted", name'))
    whole = json.loads("".join(history.export_json()))
    assert [(run["id"], run["result"]) for run in whole["runs"]] == [(second, {}), (first, {"gpus": [1, 2], "note": "ü"})]
    rows = list(csv.DictReader(io.StringIO("".join(history.export_csv()))))
    assert [(row["id"], row["model"]) for row in rows] == [(str(second), 'a "quoted", name'), (str(first), "org/Some-Model")]
    assert rows[1]["device_bytes"] == "4096"
    assert rows[0]["device_bytes"] == ""
    assert [run["id"] for run in json.loads("".join(history.export_json([first])))["runs"]] == [first]
    with pytest.raises(HistoryError, match="run 99"):
        "".join(history.export_csv([99]))


@pytest.mark.parametrize("damage", ["garbage", "page"])
def test_a_broken_file_is_set_aside_and_said(history: History, damage: str) -> None:
    for _ in range(200):
        history.add(RUN)
    content = bytearray(history.path.read_bytes())
    if damage == "garbage":
        content = bytearray(b"no database at all, " * 500)
    else:
        content[4096 * 3 : 4096 * 6] = b"\xff" * (4096 * 3)
    history.path.write_bytes(content)
    fresh = History(history.path)
    assert fresh.runs() == []
    assert "set aside" in fresh.trouble
    (aside,) = history.path.parent.glob("history.sqlite.broken-*Z")
    assert aside.read_bytes() == content
    assert str(aside) in fresh.trouble
    assert fresh.run(fresh.add(RUN)).model == RUN.model


def test_a_history_of_a_newer_version_is_left_alone(history: History) -> None:
    history.add(RUN)
    with sqlite3.connect(history.path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(HistoryError, match="newer Highwater"):
        history.runs()
    with pytest.raises(HistoryError, match="newer Highwater"):
        history.add(RUN)
    assert not list(history.path.parent.glob("*.broken-*"))


def test_older_tables_are_migrated_with_what_is_in_them(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    history.add(RUN)
    step = "ALTER TABLE runs ADD COLUMN colour TEXT NOT NULL DEFAULT 'blue'; UPDATE runs SET colour = 'red'"
    monkeypatch.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, step))
    assert [run.model for run in history.runs()] == [RUN.model]
    with sqlite3.connect(history.path) as database:
        assert database.execute("SELECT colour FROM runs").fetchall() == [("red",)]
        assert database.execute("PRAGMA user_version").fetchone() == (len(module.MIGRATIONS),)
    database.close()


def test_a_migration_that_fails_changes_nothing(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    history.add(RUN)
    with monkeypatch.context() as patch:
        patch.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, "UPDATE runs SET model = 'x'; SELECT x FROM nowhere"))
        with pytest.raises(HistoryError, match="nowhere"):
            history.runs()
    assert [run.model for run in history.runs()] == [RUN.model]


def test_several_programs_write_at_once(history: History) -> None:
    """Four processes that begin with no file at all: every run is there in the end."""
    script = f"""
import sys
from pathlib import Path
from resources.history import History, Run
for number in range(25):
    History(Path({str(history.path)!r})).add(Run("measure", sys.argv[1] + "-" + str(number)))
"""
    children = [subprocess.Popen([sys.executable, "-c", script, str(index)], cwd=ROOT) for index in range(4)]
    assert [child.wait(60) for child in children] == [0] * 4
    assert {run.model for run in history.runs()} == {f"{index}-{number}" for index in range(4) for number in range(25)}
    with sqlite3.connect(history.path) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HistoryError, match="HIGHWATER_HOME"):
        History(tmp_path / "file" / "history.sqlite").add(RUN)
    with pytest.raises(HistoryError, match="HIGHWATER_HOME"):
        History(tmp_path).runs()


def test_tags_are_the_users_words_and_are_found(history: History) -> None:
    first, second = history.add(RUN), history.add(RUN)
    assert history.tag([first, 999], "  baseline   of March ") == 1
    assert [(run.id, run.tags) for run in history.runs("march")] == [(first, "baseline of March")]
    assert history.run(second).tags == ""
    assert "baseline of March" in "".join(history.export_csv([first]))
    history.tag([first], "")
    assert history.runs("march") == []


def test_a_history_from_before_there_were_tags_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    with sqlite3.connect(path) as database:
        for statement in module.MIGRATIONS[0].split(";"):
            database.execute(statement)
        names = "created, level, model, task, engine, gpu, device, outcome, verdict, phase, recording, result"
        row = ("2026-01-01T00:00:00+00:00", "measure", "a/b", "", "", "", "", "", "", "", "", zlib.compress(b"{}"))
        database.execute(f"INSERT INTO runs ({names}) VALUES ({', '.join('?' * len(row))})", row)
        database.execute("PRAGMA user_version = 1")
    database.close()
    history = History(path)
    assert [(run.model, run.tags) for run in history.runs()] == [("a/b", "")]
    assert history.tag([1], "old") == 1
