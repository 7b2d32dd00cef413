"""Reading the worker's wire when it may be broken: bounded lines, strict JSON, no exception for garbage."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

LINE_LIMIT_BYTES = 16 * 2**20
"""The longest line that is kept. The worker's batches stay far below."""
_SHOWN_BYTES = 120
_CHUNK_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Line:
    """One line. ``fault`` is empty, or says why it is not one; then ``data`` is only its beginning."""

    data: bytes
    length: int
    fault: str = ""


def bounded_lines(read: Callable[[int], bytes], limit_bytes: int = LINE_LIMIT_BYTES) -> Iterator[Line]:
    """Lines of a stream, never holding more than ``limit_bytes`` of one. ``read(n)`` returns at most n, b"" at the end."""
    kept, length = bytearray(), 0
    while chunk := read(_CHUNK_BYTES):
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            yield _line(kept + piece[: limit_bytes + 1 - len(kept)], length + len(piece), limit_bytes)
            kept, length = bytearray(), 0
        kept += rest[: max(0, limit_bytes + 1 - len(kept))]
        length += len(rest)
    if length:
        yield Line(bytes(kept[:_SHOWN_BYTES]), length, "ended in the middle of a line")


def _line(data: bytes | bytearray, length: int, limit_bytes: int) -> Line:
    if length > limit_bytes:
        return Line(bytes(data[:_SHOWN_BYTES]), length, f"a line of {length:,} bytes was dropped")
    return Line(bytes(data), length)


def decode_event(data: bytes) -> dict[str, Any] | None:
    """The event on a line, None if it is none. NaN and infinities become null."""
    try:
        value = _DECODER.decode(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and isinstance(value.get("event"), str) else None


def _finite(text: str) -> float | None:
    value = float(text)
    return None if value in (float("inf"), float("-inf")) else value


_DECODER = json.JSONDecoder(parse_constant=lambda _name: None, parse_float=_finite)


def shown(data: bytes) -> str:
    """The beginning of a line as a message shows it."""
    return repr(data[:_SHOWN_BYTES].decode("utf-8", "replace"))
