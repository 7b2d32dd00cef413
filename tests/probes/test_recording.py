from __future__ import annotations

import gzip
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from probes.measurement import Measurement
from probes.recording import (
    Recording,
    RecordingError,
    file_name,
    highwater_home,
    read_recording,
    recordings_folder,
)
from tests.benchmarks.speed import stated_ms
from tests.probes.fake_nvml import PROJECT

HEADER = {"scenario": {"model": "org/Some-Model", "task": "inference"}, "prediction": None}


def event(number: int) -> dict[str, object]:
    return {"event": "memory", "t": number / 20, "allocated": number * 512, "phase": "prefill"}


def write(path: Path, count: int) -> None:
    with Recording(HEADER, path) as recording:
        for number in range(count):
            recording.append(event(number))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path / "r.jsonl", 5000)
    recorded = read_recording(tmp_path / "r.jsonl")
    assert recorded.header["highwater_recording"] == 2
    assert recorded.header["scenario"] == HEADER["scenario"]
    assert recorded.events == [event(number) for number in range(5000)]
    assert recorded.skipped_lines == 0


def test_every_event_is_on_disk_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    recording = Recording(HEADER, path)
    for number in range(3):
        recording.append(event(number))
        assert len(read_recording(path).events) == number + 1
    recording.close()


def test_a_torn_tail_costs_only_its_own_line(tmp_path: Path) -> None:
    """Whatever byte a file ends at, every line that is complete is read."""
    path, torn = tmp_path / "r.jsonl", tmp_path / "torn.jsonl"
    write(path, 4)
    data = path.read_bytes()
    for end in range(data.index(b"\n") + 1, len(data) + 1):
        torn.write_bytes(data[:end])
        whole = max(0, data[:end].count(b"\n") - 2)  # the header, and the declaration of the rows
        recorded = read_recording(torn)
        assert recorded.events[:whole] == [event(number) for number in range(whole)]
        assert len(recorded.events) - whole + recorded.skipped_lines <= (not data[:end].endswith(b"\n"))


def test_a_broken_line_in_the_middle_is_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2:2] = [b"\x00\x00garbage\n", b"[1,2],[3]\n", b'"text"\n']
    path.write_bytes(b"".join(lines))
    recorded = read_recording(path)
    assert recorded.events == [event(number) for number in range(3)]
    assert recorded.skipped_lines == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a Highwater recording"),
        (b"\x89PNG\r\n", "not a Highwater recording"),
        (b'{"version":1}\n', "not a Highwater recording"),
        (b'{"highwater_recording":3}\n', "reads version 2 and older"),
    ],
)
def test_other_files_are_refused_with_their_name(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=said) as caught:
        read_recording(path)
    assert str(path) in str(caught.value)


def test_a_recording_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, 2)
    with Recording(HEADER, path) as second:
        second.append(event(7))
        assert "never overwritten" in second.state.trouble
        assert second.state.path is None
    assert len(read_recording(path).events) == 2


def test_a_full_disk_is_a_state_and_what_was_written_stays_readable(tmp_path: Path) -> None:
    """The file size limit fails a write half-way, as a full disk does."""
    path = tmp_path / "r.jsonl"
    script = f"""
import resource, sys
from pathlib import Path
from probes.recording import Recording
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
recording = Recording({HEADER!r}, Path({str(path)!r}))
for number in range(200):
    recording.append({{"event": "memory", "t": number, "allocated": 512}})
recording.close()
print(recording.state.events, recording.state.trouble)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=200, check=True)
    kept, trouble = done.stdout.split(" ", 1)
    assert "not being recorded" in trouble
    assert "space" in trouble
    recorded = read_recording(path)
    assert recorded.skipped_lines == 0
    assert len(recorded.events) == int(kept) > 5
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_without_a_byte_left_says_so_and_keeps_quiet_after() -> None:
    with Recording(HEADER, Path("/dev/full")) as recording:
        for number in range(3):
            recording.append(event(number))
        state = recording.state
    assert "No space left" in state.trouble
    assert state.events == 0
    assert state.path is None or state.path == Path("/dev/full")


def test_a_folder_that_cannot_be_made_is_a_state(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Recording(HEADER, tmp_path / "file" / "r.jsonl") as recording:
        recording.append(event(0))
        assert "HIGHWATER_HOME" in recording.state.trouble
        assert recording.state.path is None


def test_the_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HIGHWATER_HOME", str(tmp_path))
    assert recordings_folder() == tmp_path / "recordings"
    with Recording(HEADER) as recording:
        assert recording.path.parent == tmp_path / "recordings"
    monkeypatch.delenv("HIGHWATER_HOME")
    assert highwater_home().name == "highwater"


@given(st.text(max_size=80), st.text(max_size=20))
def test_names_are_safe_and_unique(model: str, task: str) -> None:
    """No model name makes a file name that leaves its folder or is met twice."""
    header = {"scenario": {"model": model, "task": task}}
    names = {file_name(header) for _ in range(3)}
    assert len(names) == 3
    assert all(Path(name).name == name and len(name) < 200 and name.isascii() for name in names)


def test_lines_are_plain_json(tmp_path: Path) -> None:
    write(tmp_path / "r.jsonl", 1)
    header, form, row = map(json.loads, (tmp_path / "r.jsonl").read_text().splitlines())
    assert header["created"].endswith("+00:00")
    assert form == {
        "event": "rows", "id": 0, "like": {"event": "memory", "t": None, "allocated": None, "phase": "prefill"},
        "columns": [[["t"], 6], [["allocated"], 0]],
    }  # fmt: skip
    assert row == [0, 0, 0]


def test_recordings_of_version_1_are_read(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    lines = [{"highwater_recording": 1, "created": "2026-01-01T00:00:00+00:00"}, event(0), event(1)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_recording(path).events == [event(0), event(1)]


NUMBERS = st.one_of(
    st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 10**9).map(lambda number: number / 1e6)
)
LEAVES = st.one_of(NUMBERS, st.none(), st.booleans(), st.text(max_size=5))
SAMPLES = st.builds(
    dict,
    event=st.sampled_from(["memory", "sample", "note"]), t=NUMBERS, phase=st.sampled_from(["", "prefill"]),
    gpus=st.lists(st.dictionaries(st.sampled_from(["used", "free", "mig_index"]), LEAVES, max_size=3), max_size=2), more=LEAVES,
)  # fmt: skip


@example(events=[{"event": "memory", "t": -0.0}])
@given(events=st.lists(SAMPLES, max_size=12))
def test_every_event_is_read_as_it_was_written(events: list[dict[str, object]], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever numbers an event holds, as a row or not: what is read equals what was written, in type and order."""
    path = tmp_path_factory.mktemp("r") / "r.jsonl"
    with Recording(HEADER, path) as recording:
        for sample in events:
            recording.append(sample)
    recorded = read_recording(path)
    assert json.dumps(recorded.events, sort_keys=True) == json.dumps(json.loads(json.dumps(events)), sort_keys=True)
    assert recorded.skipped_lines == 0


def test_broken_rows_cost_only_themselves(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, 6)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[4:4] = [b"[0,1]\n", b"[0,1,2,3]\n", b"[7,1,2]\n", b'[0,1,"x"]\n', b"[0,1.5,2]\n", b"[]\n", b"[1,2],[3]\n", b"[0,1,2\n"]
    path.write_bytes(b"".join(lines))
    recorded = read_recording(path)
    assert recorded.events == [event(number) for number in range(6)]
    assert recorded.skipped_lines == 8


def test_a_million_samples_open_in_a_second(tmp_path: Path) -> None:
    """Read and folded: as many as 14 hours at 20 Hz make."""
    path, count = tmp_path / "r.jsonl", 1_000_000
    with Recording(HEADER, path) as recording:
        recording.append({"event": "phase", "name": "decode", "state": "begin", "step": 0, "t": 0.0})
        meters = {"allocated": 1, "reserved": 1, "device": 1, "free": 1, "total": 1}
        recording.append({"event": "memory", "t": 0.0, **meters, "phase": "decode"})
    with path.open("a") as file:
        file.writelines(
            f"[0,{n * 50_000},{10**9 + n * 512},{2 * 10**9 + n * 512},{3 * 10**9},{80 * 10**9 - n},{85 * 10**9}]\n"
            for n in range(1, count)
        )
    opened: list[Measurement] = []
    taken_ms = [stated_ms(lambda: opened.append(Measurement.of_recording(read_recording(path)))) for _ in range(3)]
    assert min(taken_ms) < 1000
    measurement = opened[-1]
    (step,) = measurement.steps.values()
    assert step.meters == {"allocated": 10**9 + (count - 1) * 512, "reserved": 2 * 10**9 + (count - 1) * 512, "device": 3 * 10**9}
    assert measurement.timeline.peak("allocated", "decode") == step.meters["allocated"]
    assert measurement.timeline.t[0] == 0.0
    assert len(measurement.timeline) <= 20_000


def test_a_compressed_recording_is_read_to_where_it_breaks_off(tmp_path: Path) -> None:
    path, packed = tmp_path / "r.jsonl", tmp_path / "r.jsonl.gz"
    write(path, 5_000)
    data = gzip.compress(path.read_bytes())
    packed.write_bytes(data)
    assert read_recording(packed).events == read_recording(path).events
    packed.write_bytes(data[: len(data) * 9 // 10])
    broken = read_recording(packed)
    assert broken.skipped_lines == 1
    assert 0 < len(broken.events) < 5_000
    packed.write_bytes(data[:20])
    with pytest.raises(RecordingError, match="breaks off"):
        read_recording(packed)
    packed.write_bytes(b"plain")
    with pytest.raises(OSError, match="gzip"):
        read_recording(packed)


def test_of_many_samples_the_peaks_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    samples = [event(number) | {"t": number / 20, "allocated": 10**12 if number == 4321 else number} for number in range(6000)]
    with Recording(HEADER, path) as recording:
        recording.append({"event": "phase", "t": 0.0})
        for sample in samples:
            recording.append(sample)
        recording.append({"event": "outcome", "t": 9.0})
    recorded = read_recording(path)
    shown = recorded.shown_events(limit=100)
    assert len(shown) <= 103
    assert samples[4321] in shown
    assert shown[-2] == samples[-1]
    assert [event["t"] for event in shown[1:-1]] == sorted(event["t"] for event in shown[1:-1])
    assert recorded.shown_events(limit=6000) == recorded.events


HEADER = {"highwater_recording": 2, "scenario": {}, "prediction": {"gpus": [{"phases": [{"name": "load", "allocated": 1}]}]}}


@pytest.mark.parametrize(
    "line",
    [
        {"event": "rows", "id": 0, "like": {"event": "memory", "t": None}, "columns": [[["t"], 10**30]]},
        {"event": "rows", "id": 0, "like": {"event": "memory", "t": "x"}, "columns": []},
        {"event": "rows", "id": 0, "like": {"event": "rank", "rank": 1, "of": {}, "t": None}, "columns": [[["t"], 6]]},
        {"event": "rank", "t": 1, "rank": 1, "of": {"a": 1}},
        {"event": "memory", "t": "late"},
        {"event": ["memory"], "t": 1},
    ],
)
def test_what_makes_no_sense_is_left_out(tmp_path: Path, line: object) -> None:
    """Also a form whose decimals would have ten raised to a power that no machine ends."""
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join(map(json.dumps, (HEADER, line, {"event": "note", "t": 2, "message": "m"}))) + "\n")
    recorded = read_recording(path)
    assert (recorded.skipped_lines, [event["event"] for event in recorded.events]) == (1, ["note"])
    assert recorded.header["prediction"] == HEADER["prediction"]


@pytest.mark.parametrize(
    "prediction",
    [[], "x", {"gpus": 7}, {"gpus": [1]}, {"gpus": [{}]}, {"gpus": [{"phases": [{"name": "load", "allocated": "1"}]}]}],
)
def test_a_prediction_that_is_none_is_left_out(tmp_path: Path, prediction: object) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(HEADER | {"prediction": prediction, "order": 7}) + "\n")
    header = read_recording(path).header
    assert (header["prediction"], header["order"], header["scenario"]) == (None, None, {})
