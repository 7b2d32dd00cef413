"""The history: every run with its result, in one SQLite file that several programs may use at once (WAL).

A database that is broken is set aside under another name and a new one begun; what had to be done is told by ``trouble``.
The version of the tables is ``PRAGMA user_version``; older ones are migrated when they are opened.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from resources.home import highwater_home

MIGRATIONS = (
    """
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        created TEXT NOT NULL,
        level TEXT NOT NULL,
        model TEXT NOT NULL,
        task TEXT NOT NULL,
        engine TEXT NOT NULL,
        gpu TEXT NOT NULL,
        device TEXT NOT NULL,
        outcome TEXT NOT NULL,
        verdict TEXT NOT NULL,
        seconds REAL,
        phase TEXT NOT NULL,
        allocated_bytes INTEGER,
        reserved_bytes INTEGER,
        device_bytes INTEGER,
        predicted_allocated_bytes INTEGER,
        predicted_device_bytes INTEGER,
        recording TEXT NOT NULL,
        result BLOB NOT NULL
    );
    CREATE INDEX runs_by_time ON runs (created);
    """,
    "ALTER TABLE runs ADD COLUMN tags TEXT NOT NULL DEFAULT ''",
)
"""Each takes the tables from the version that is its index to the next."""
_WAIT_S = 5.0
_BROKEN = (11, 26)
"""SQLITE_CORRUPT, SQLITE_NOTADB (sqlite3.h)."""


class HistoryError(Exception):
    """The history can't be read or written; the text says why and what helps."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run. Sizes are those of the phase that took most of the device; None is not known, an empty text not said.

    ``result`` is the footprint as JSON without its samples, which are in the file ``recording``; empty in a list of runs.
    """

    level: str
    model: str = ""
    task: str = ""
    engine: str = ""
    gpu: str = ""
    device: str = ""
    outcome: str = ""
    verdict: str = ""
    seconds: float | None = None
    phase: str = ""
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    device_bytes: int | None = None
    predicted_allocated_bytes: int | None = None
    predicted_device_bytes: int | None = None
    recording: str = ""
    created: str = ""
    id: int = 0
    result: Mapping[str, Any] = field(default_factory=dict)
    tags: str = ""
    """Words of the user's own."""

    @property
    def error(self) -> float | None:
        """Measured allocated against predicted: +0.02 took 2 % more."""
        if self.allocated_bytes is None or not self.predicted_allocated_bytes:
            return None
        return self.allocated_bytes / self.predicted_allocated_bytes - 1

    def to_json(self) -> dict[str, Any]:
        """JSON-ready data; ``result`` is the run's own."""
        return {column.name: getattr(self, column.name) for column in fields(self)} | {"error": self.error}


_SUMMARY = tuple(column.name for column in fields(Run) if column.name != "result")
_SEARCHED = ("model", "level", "task", "engine", "gpu", "device", "outcome", "verdict", "tags")


class History:
    """The runs in one file. Every call opens it anew, so that any thread may call. All raise :class:`HistoryError`."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or highwater_home() / "history.sqlite"
        self.trouble = ""
        """What happened to the file, if the user should know."""

    def add(self, run: Run) -> int:
        """Keep a run; its id. ``created`` is now unless it is given."""
        values = asdict(run) | {
            "created": run.created or datetime.now(UTC).isoformat(timespec="seconds"),
            "result": zlib.compress(json.dumps(run.result, separators=(",", ":")).encode()),
        }
        del values["id"]
        values = {name: _plain(value) if isinstance(value, str) else value for name, value in values.items()}
        names = ", ".join(values)
        places = ", ".join("?" * len(values))
        with self._open() as database:
            cursor = database.execute(f"INSERT INTO runs ({names}) VALUES ({places})", tuple(values.values()))  # noqa: S608  names of our own
            return int(cursor.lastrowid or 0)

    def runs(self, search: str = "", limit: int | None = None) -> list[Run]:
        """The latest runs first; those only that have every word of ``search`` in a text field."""
        words = search.lower().split()
        joined = " || ' ' || ".join(_SEARCHED)
        condition = " AND ".join([f"instr(lower({joined}), ?) > 0"] * len(words)) or "1"
        columns = ", ".join(_SUMMARY)
        query = f"SELECT {columns} FROM runs WHERE {condition} ORDER BY created DESC, id DESC LIMIT ?"  # noqa: S608  likewise
        with self._open() as database:
            rows = database.execute(query, (*words, -1 if limit is None else limit)).fetchall()
        return [Run(**dict(zip(_SUMMARY, row, strict=True))) for row in rows]

    def run(self, number: int) -> Run:
        """One run with its result."""
        with self._open() as database:
            return _whole(database, number)

    def tag(self, numbers: Iterable[int], tags: str) -> int:
        """Give runs these words of the user's own, instead of those they have; how many there were."""
        words = " ".join(tags.split())
        with self._open() as database:
            return sum(
                database.execute("UPDATE runs SET tags = ? WHERE id = ?", (words, number)).rowcount for number in numbers
            )  # fmt: skip

    def delete(self, numbers: Iterable[int]) -> int:
        """Forget runs; how many there were. Their recordings stay."""
        with self._open() as database:
            return sum(database.execute("DELETE FROM runs WHERE id = ?", (number,)).rowcount for number in numbers)

    def export_json(self, numbers: Iterable[int] = ()) -> Iterator[str]:
        """Runs with their results as JSON, in pieces of one run each; all without ``numbers``."""
        return self._json_of([run.id for run in self._chosen(numbers)])

    def export_csv(self, numbers: Iterable[int] = ()) -> Iterator[str]:
        """Runs as a table with one row each, without their results, line by line; all without ``numbers``."""
        return _csv_of(self._chosen(numbers))

    def _chosen(self, numbers: Iterable[int]) -> list[Run]:
        """The runs of these numbers, the latest first; all without any."""
        chosen, runs = set(numbers), self.runs()
        if missing := chosen - {run.id for run in runs}:
            raise HistoryError(f"run {min(missing)}: there is none of this number")
        return [run for run in runs if not chosen or run.id in chosen]

    def _json_of(self, numbers: Iterable[int]) -> Iterator[str]:
        yield '{"highwater_history": 1, "runs": ['
        with self._open() as database:
            for place, number in enumerate(numbers):
                yield (",\n" if place else "\n") + json.dumps(_whole(database, number).to_json())
        yield "\n]}\n"

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The database at the present version; what is done to it in the block is done whole or not at all."""
        try:
            try:
                database = self._connect()
            except sqlite3.DatabaseError as error:
                if _code(error) not in _BROKEN:
                    raise
                self._set_aside(error)
                database = self._connect()
            with contextlib.closing(database), database:
                yield database
        except (sqlite3.Error, OSError) as error:
            raise HistoryError(f"the history {self.path} can't be used: {error}; set HIGHWATER_HOME to another folder") from error

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self.path, timeout=_WAIT_S)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            _check(database)
            self._migrate(database)
        except BaseException:
            database.close()
            raise
        return database

    def _migrate(self, database: sqlite3.Connection) -> None:
        if _version(database) == len(MIGRATIONS):
            return
        with database:
            database.execute("BEGIN IMMEDIATE")
            version = _version(database)
            if version > len(MIGRATIONS):
                message = f"the history {self.path} was written by a newer Highwater (version {version}); update this one"
                raise HistoryError(message)
            for step in MIGRATIONS[version:]:
                for statement in step.split(";"):
                    database.execute(statement)
            database.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def _set_aside(self, error: Exception) -> None:
        """Give a broken file, and what SQLite keeps beside it, another name. Raises OSError."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
        aside = self.path.with_name(f"{self.path.name}.broken-{stamp}")
        self.path.rename(aside)
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                self.path.with_name(self.path.name + suffix).rename(aside.with_name(aside.name + suffix))
        self.trouble = f"The history was broken ({error}). It was set aside as {aside}, and a new one begun."


def _whole(database: sqlite3.Connection, number: int) -> Run:
    columns = ", ".join((*_SUMMARY, "result"))
    row = database.execute(f"SELECT {columns} FROM runs WHERE id = ?", (number,)).fetchone()  # noqa: S608  names of our own
    if row is None:
        raise HistoryError(f"run {number}: there is none of this number; `history` lists them")
    return Run(**dict(zip(_SUMMARY, row, strict=False)), result=_result(row[-1]))


def _csv_of(runs: Iterable[Run]) -> Iterator[str]:
    names = ("id", *(name for name in _SUMMARY if name != "id"), "error")
    for row in (names, *([getattr(run, name) for name in names] for run in runs)):
        line = io.StringIO(newline="")
        csv.writer(line).writerow(row)
        yield line.getvalue()


def _check(database: sqlite3.Connection) -> None:
    """Raise DatabaseError for pages that do not hang together, also when no query of ours would meet them."""
    found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        broken = sqlite3.DatabaseError(str(found))
        broken.sqlite_errorcode = _BROKEN[0]
        raise broken


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def _plain(text: str) -> str:
    """Without the stand-ins for bytes of a file name that are no UTF-8, which SQLite does not take."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _code(error: sqlite3.Error) -> int | None:
    return getattr(error, "sqlite_errorcode", None)


def _result(data: bytes) -> dict[str, Any]:
    """A stored result; nothing when it is not readable, which is no reason to lose the rest."""
    try:
        value = json.loads(zlib.decompress(data))
    except (ValueError, TypeError, zlib.error):
        return {}
    return value if isinstance(value, dict) else {}
