"""Recordings: one file per run that explains itself, written line by line while the run goes on.

A recording is JSON lines. The first is the header: ``highwater_recording`` (its version), ``created`` (UTC), and what was
asked and predicted (``scenario``, ``config``, ``order``, ``prediction``, ``environment``). Every further line is an event
as the session emits it: ``event`` and ``t`` (seconds since the run began) and its own fields. Whatever ends the program,
the file reads to its last complete line.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

import platformdirs

logger = logging.getLogger(__name__)

VERSION = 1
SUFFIX = ".jsonl"
_BATCH_LINES = 4096
_BINARY = getattr(os, "O_BINARY", 0)  # Windows would write line ends of two bytes

Event = dict[str, Any]


class RecordingError(ValueError):
    """A file that is not a recording, or not one this version reads."""


@dataclass(frozen=True, slots=True)
class RecordingState:
    """Whether events reach the disk. ``trouble`` is empty while they do, else what the user is told."""

    path: Path | None
    trouble: str = ""
    events: int = 0


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recording read back. ``skipped_lines`` counts what was not readable: 1 when the last line is torn."""

    header: Event
    events: list[Event]
    skipped_lines: int


def highwater_home() -> Path:
    """Where this program keeps its files: ``HIGHWATER_HOME``, else the user's data folder."""
    chosen = os.environ.get("HIGHWATER_HOME")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_data_dir("highwater", appauthor=False))


def recordings_folder() -> Path:
    """Where recordings go unless a path is given."""
    return highwater_home() / "recordings"


class Recording:
    """A recording being written. A disk that does not take it is a state, never an exception: the run goes on."""

    def __init__(self, header: Mapping[str, object], path: Path | None = None) -> None:
        """Open ``path``, which must not exist, or a new file in the recordings folder, and write the header."""
        self._lock = Lock()
        self._events = 0
        self._size = 0
        self._trouble = ""
        self._descriptor: int | None = None
        self.path = path if path is not None else recordings_folder() / file_name(header)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | _BINARY | self._exclusive(), 0o644)
        except OSError as error:
            self._fail(error)
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._write(_line({"highwater_recording": VERSION, "created": created, **header}))

    @property
    def state(self) -> RecordingState:
        """How it goes."""
        exists = self._descriptor is not None or self._size > 0
        return RecordingState(self.path if exists else None, self._trouble, self._events)

    def append(self, event: Mapping[str, object]) -> None:
        """Write one event through to the system. Raises ValueError for what JSON cannot say (NaN)."""
        line = _line(event)
        with self._lock:
            if self._write(line):
                self._events += 1

    def close(self) -> None:
        """Bring it to the disk and close it; may be called twice."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is not None:
                try:
                    os.fsync(descriptor)
                except OSError as error:
                    if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                        self._fail(error)
                finally:
                    os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _exclusive(self) -> int:
        """A recording never overwrites a file; a device (/dev/stdout) may be given all the same."""
        return 0 if self.path.exists() and not self.path.is_file() else os.O_EXCL

    def _write(self, line: bytes) -> bool:
        if self._descriptor is None or self._trouble:
            return False
        try:
            rest = line
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            self._fail(error)
            self._drop_torn_line()
            return False
        self._size += len(line)
        return True

    def _fail(self, error: OSError) -> None:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = "free some space or set HIGHWATER_HOME to another disk"
        elif self.path.exists():
            remedy = "choose another name: recordings are never overwritten"
        else:
            remedy = "set HIGHWATER_HOME to a folder that can be written"
        kept = f"its first {self._events} events are kept" if self._size else "nothing of it was written"
        self._trouble = (
            f"The run is not being recorded: {error.filename or self.path}: {reason}; {kept}. {remedy[0].upper()}{remedy[1:]}."
        )
        logger.warning("%s", self._trouble)

    def _drop_torn_line(self) -> None:
        """Cut off half a line, which needs no space; a device that cannot be cut has nothing to cut."""
        if self._descriptor is not None:
            try:
                os.ftruncate(self._descriptor, self._size)
            except OSError as error:
                logger.debug("%s could not be cut to its last whole line: %s", self.path, error)


def file_name(header: Mapping[str, object]) -> str:
    """A name that sorts by time, says the model and task, and is met only once."""
    scenario = header.get("scenario")
    told = scenario if isinstance(scenario, Mapping) else {}
    model = told.get("model")
    last = model.rstrip("/").rsplit("/", 1)[-1] if isinstance(model, str) else "model"
    parts = [datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"), last, str(told.get("task", "run")), uuid.uuid4().hex[:6]]
    return "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", part)[:60] for part in parts) + SUFFIX


def read_recording(path: Path) -> Recorded:
    """Read a recording to its last complete event. Raises OSError, or :class:`RecordingError` for any other file."""
    with path.open("rb") as lines:
        header = _header(lines.readline(64 * 2**20), path)
        events: list[Event] = []
        skipped = 0
        for batch in _batches(lines):
            read, bad = _parse(batch)
            events += read
            skipped += bad
    return Recorded(header, events, skipped)


def _header(line: bytes, path: Path) -> Event:
    header = _object(line)
    if header is None or "highwater_recording" not in header:
        message = f"{path}: not a Highwater recording (its first line has no highwater_recording)"
        raise RecordingError(message)
    version = header["highwater_recording"]
    if version != VERSION:
        message = f"{path}: written as recording version {version!r}; this Highwater reads version {VERSION}"
        raise RecordingError(message)
    return header


def _batches(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for line in lines:
        batch.append(line)
        if len(batch) == _BATCH_LINES:
            yield batch
            batch = []
    yield batch


def _parse(lines: list[bytes]) -> tuple[list[Event], int]:
    """The events of some lines, and how many lines are none. One call of the parser for all is twice as quick."""
    try:
        values = json.loads(b"[" + b",".join(lines) + b"]")
    except (ValueError, RecursionError):
        values = [_object(line) for line in lines]
    if len(values) != len(lines):
        values = [_object(line) for line in lines]
    events = [value for value in values if isinstance(value, dict) and "event" in value]
    return events, len(values) - len(events)


def _object(line: bytes) -> Event | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _line(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
