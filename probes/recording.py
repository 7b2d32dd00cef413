"""Recordings: one file per run that explains itself, written line by line while the run goes on.

A recording is JSON lines. The first is the header: ``highwater_recording`` (its version), ``created`` (UTC), and what was
asked and predicted (``scenario``, ``config``, ``order``, ``prediction``, ``environment``). Every further line is an event
as the session emits it, ``event`` and ``t`` (seconds since the run began) and its own fields; samples are rows of numbers
(:mod:`probes.rows`). Whatever ends the program, the file reads to its last complete line. Version 1 had no rows.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import uuid
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from gzip import GzipFile
from io import BufferedReader
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Self

from probes.rows import FORM_EVENT, Event, Form, RowRun, RowWriter, is_event, lines_of, read_form, read_rows, row_runs
from resources.home import highwater_home

__all__ = [
    "SUFFIX", "Event", "Recorded", "Recording", "RecordingError", "RecordingState", "file_name", "highwater_home",
    "read_recording", "recordings_folder",
]  # fmt: skip

logger = logging.getLogger(__name__)

VERSION = 2
READABLE = (1, 2)
SUFFIX = ".jsonl"
SHOWN = 20_000
"""Samples that a chart is given."""
_SHOWN_AT_LEAST = 16
"""Between two other events."""
_CHUNK_BYTES = 2**20
"""Read at once: short enough that NumPy, which parses it in one go, lets other threads of the program go on."""
_TOLD_OF_A_RUN = ("scenario", "config", "order", "prediction", "environment")
_BINARY = getattr(os, "O_BINARY", 0)  # Windows would write line ends of two bytes


class RecordingError(ValueError):
    """A file that is not a recording, or not one this version reads."""


@dataclass(frozen=True, slots=True)
class RecordingState:
    """Whether events reach the disk. ``trouble`` is empty while they do, else what the user is told."""

    path: Path | None
    trouble: str = ""
    events: int = 0


@dataclass(frozen=True)
class Recorded:
    """A recording read back. ``skipped_lines`` counts what was not readable: 1 when the last line is torn.

    ``pieces`` are the events in order, samples as runs of rows; ``events`` has every sample as an event of its own, which
    takes its time where there are a million.
    """

    header: Event
    pieces: list[Event | RowRun]
    skipped_lines: int

    @cached_property
    def events(self) -> list[Event]:
        """Every event in order."""
        return [event for piece in self.pieces for event in (piece.events() if isinstance(piece, RowRun) else [piece])]

    def shown_events(self, limit: int = SHOWN) -> list[Event]:
        """Every event in order, but of many samples only about ``limit``, with every series' peaks: to be drawn."""
        whole = sum(piece.length for piece in self.pieces if isinstance(piece, RowRun))
        share = min(1.0, limit / max(whole, 1))
        return [event for piece in self.pieces for event in _shown(piece, share)]


def _shown(piece: Event | RowRun, share: float) -> list[Event]:
    return piece.thinned(max(_SHOWN_AT_LEAST, round(share * piece.length))) if isinstance(piece, RowRun) else [piece]


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
        self._rows = RowWriter()
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
        with self._lock:
            if self._write(self._rows.lines(event) or _line(event)):
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
        logger.info("%s", self._trouble)

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
    model, order = told.get("model"), header.get("order")
    mode = order.get("mode") if isinstance(order, Mapping) and not told else None
    last = model.rstrip("/").rsplit("/", 1)[-1] if isinstance(model, str) else str(mode or "model")
    parts = [datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"), last, str(told.get("task", "run")), uuid.uuid4().hex[:6]]
    return "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", part)[:60] for part in parts) + SUFFIX


def read_recording(path: Path) -> Recorded:
    """Read a recording, compressed with gzip or not, to its last complete event.

    Raises OSError, or :class:`RecordingError` for any other file.
    """
    with _open(path) as file:
        reader = _Reader()
        try:
            header = _header(file.readline(64 * 2**20), path)
            for lines in _whole_lines(file):
                reader.take(lines)
        except (EOFError, zlib.error) as error:
            if not reader.pieces:
                message = f"{path}: not a Highwater recording (what is compressed breaks off)"
                raise RecordingError(message) from error
            reader.skipped += 1
    return Recorded(header, reader.pieces, reader.skipped)


def _open(path: Path) -> GzipFile | BufferedReader:
    return GzipFile(path) if path.suffix == ".gz" else path.open("rb")


def _header(line: bytes, path: Path) -> Event:
    header = _object(line)
    if header is None or "highwater_recording" not in header:
        message = f"{path}: not a Highwater recording (its first line has no highwater_recording)"
        raise RecordingError(message)
    version = header["highwater_recording"]
    if version not in READABLE:
        message = f"{path}: written as recording version {version!r}; this Highwater reads version {VERSION} and older"
        raise RecordingError(message)
    told = {key: header[key] if isinstance(header.get(key), dict) else None for key in _TOLD_OF_A_RUN if key in header}
    if not _is_footprint(told.get("prediction")):
        told["prediction"] = None
    return header | told


def _is_footprint(value: object) -> bool:
    """Whether its phases can be laid beside others: a name, and sizes that are whole numbers or null."""
    gpus = value.get("gpus") or [] if isinstance(value, dict) else []
    phases = [gpu.get("phases") if isinstance(gpu, dict) else None for gpu in gpus] if isinstance(gpus, list) else [None]
    if not all(isinstance(each, list) for each in phases):
        return False
    named = [phase for each in phases for phase in each or () if isinstance(phase, dict) and isinstance(phase.get("name"), str)]
    sizes = [phase.get(meter) for phase in named for meter in ("allocated", "reserved", "device")]
    parts = [phase.get("components") or {} for phase in named]
    return (
        len(named) == sum(map(len, filter(None, phases)))
        and all(size is None or type(size) is int for size in sizes)
        and all(isinstance(part, dict) and all(type(size) is int for size in part.values()) for part in parts)
    )


def _whole_lines(file: GzipFile | BufferedReader) -> Iterator[bytes]:
    """The rest of a file in pieces of whole lines; a torn last line is a piece of its own."""
    rest: list[bytes] = []
    while block := file.read1(_CHUNK_BYTES):
        end = block.rfind(b"\n") + 1
        if end:
            yield b"".join((*rest, block[:end]))
            rest = []
        rest.append(block[end:])
    if torn := b"".join(rest):
        yield torn


class _Reader:
    """Takes whole lines, in order."""

    def __init__(self) -> None:
        self.pieces: list[Event | RowRun] = []
        self.skipped = 0
        self._forms: dict[int, Form] = {}

    def take(self, data: bytes) -> None:
        for rows, lines in row_runs(data):
            if rows:
                self._take_rows(lines)
            else:
                self._take_events(lines_of(lines))

    def _take_rows(self, lines: bytes) -> None:
        parts, length, bad = read_rows(lines, self._forms)
        self.skipped += bad
        if not self.pieces or not isinstance(self.pieces[-1], RowRun):
            self.pieces.append(RowRun())
        run = self.pieces[-1]
        assert isinstance(run, RowRun)  # noqa: S101  just made
        run.add(parts, length)

    def _take_events(self, lines: list[bytes]) -> None:
        events, bad = _parse(lines)
        self.skipped += bad
        for event in events:
            if event["event"] == FORM_EVENT:
                self._declare(event)
            else:
                self.pieces.append(event)

    def _declare(self, event: Event) -> None:
        form = read_form(event)
        if form is None:
            self.skipped += 1
        else:
            self._forms[form.id] = form


def _parse(lines: list[bytes]) -> tuple[list[Event], int]:
    """The events of some lines, and how many lines are none. One call of the parser for all is twice as quick."""
    try:
        values = json.loads(b"[" + b",".join(lines) + b"]")
    except (ValueError, RecursionError):
        values = [_object(line) for line in lines]
    if len(values) != len(lines):
        values = [_object(line) for line in lines]
    events = [value for value in values if is_event(value)]
    return events, len(values) - len(events)


def _object(line: bytes) -> Event | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _line(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
