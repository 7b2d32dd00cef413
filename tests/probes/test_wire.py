from __future__ import annotations

import io
import json
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from probes.wire import Line, bounded_lines, decode_event


def lines_of(data: bytes, limit_bytes: int, chunk: int) -> list[Line]:
    stream = io.BytesIO(data)
    return list(bounded_lines(lambda size: stream.read(min(size, chunk)), limit_bytes))


@given(st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), max_size=20), st.integers(1, 50))
def test_whatever_the_chunks_whole_lines_come_out_whole(lines: list[bytes], chunk: int) -> None:
    """Splitting a stream into lines does not depend on how the stream arrives."""
    found = lines_of(b"".join(line + b"\n" for line in lines), 30, chunk)
    assert [line.data for line in found] == lines
    assert not any(line.fault for line in found)


@given(st.integers(0, 60), st.integers(1, 70), st.integers(1, 40))
def test_lines_beyond_the_limit_are_dropped_and_the_next_survives(length: int, chunk: int, limit: int) -> None:
    """A line is kept exactly when it has at most ``limit_bytes`` bytes."""
    first, second = lines_of(b"x" * length + b"\nok\n", max(limit, 2), chunk)
    assert (first.fault == "") == (length <= max(limit, 2))
    assert first.length == length
    assert second == Line(b"ok", 2)


def test_half_a_line_is_told_as_such() -> None:
    whole, half = lines_of(b'{"a":1}\n{"b"', 100, 5)
    assert whole.fault == ""
    assert (half.data, half.length) == (b'{"b"', 4)
    assert "middle" in half.fault


def test_a_line_of_a_gibibyte_takes_no_memory() -> None:
    left = 2**30
    block = b"x" * 2**16

    def read(size: int) -> bytes:
        nonlocal left
        left -= size
        return block[:size] if left >= 0 else b""

    tracemalloc.start()
    (line,) = bounded_lines(read, 2**20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert line.length == 2**30
    assert peak < 8 * 2**20


@given(st.binary(max_size=200))
def test_garbage_never_raises(data: bytes) -> None:
    """Any bytes either are an event or None."""
    event = decode_event(data)
    assert event is None or isinstance(event["event"], str)


def test_hostile_json_is_no_event() -> None:
    hostile = [b"[" * 100_000, b'{"event":' * 5000, b"1" * 10_000, b'{"event":7}', b'{"t":1}', b"null", b"\xff\xfe", b""]
    assert [decode_event(line) for line in hostile] == [None] * len(hostile)


def test_numbers_that_json_lacks_become_null() -> None:
    event = decode_event(b'{"event":"memory","a":NaN,"b":-Infinity,"c":1e999,"d":1.5}')
    assert event == {"event": "memory", "a": None, "b": None, "c": None, "d": 1.5}
    json.dumps(event, allow_nan=False)
