"""Faults beside a run, through real processes: a worded outcome, a readable recording, no orphan, the next works."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from probes.orders import load_order
from probes.recording import read_recording
from probes.session import Limits, ProbeSession
from tests.probes.fake_nvml import H200, FakeNvml, events_beside
from tests.probes.test_session import DONE, Run, run
from tests.timing import PATIENCE_S


def test_a_line_of_a_gigabyte_costs_no_memory(tmp_path: Path) -> None:
    """It is dropped as it comes: this process grows by less than 100 MB, and the run goes on to its result."""
    script = """
    block = b"x" * 2**20
    for _ in range(1024):
        os.write(1, block)
    os.write(1, b"\\n")
    """
    process, highest, ended = psutil.Process(), [0], threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not ended.wait(0.02):
            highest[0] = max(highest[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        probe, outcome = run(tmp_path, textwrap.dedent(script) + DONE, Limits(time_s=PATIENCE_S, grace_s=0.3))
    finally:
        ended.set()
        watcher.join()
    assert outcome.kind == "completed"
    assert [event["message"].split(":")[0] for event in probe.named("note")] == [
        "The probe sent a line of 1,073,741,824 bytes was dropped"
    ]
    assert highest[0] - before < 100 * 10**6


def test_a_gigabyte_without_a_line_end_is_told_too(tmp_path: Path) -> None:
    script = """
    block = b"x" * 2**20
    for _ in range(1024):
        os.write(1, block)
    """
    probe, outcome = run(tmp_path, textwrap.dedent(script), Limits(time_s=PATIENCE_S, grace_s=0.3))
    assert outcome.kind == "crashed"
    assert "middle of a line" in probe.named("note")[0]["message"]


def test_a_clock_that_jumps_keeps_its_events_in_the_run(tmp_path: Path) -> None:
    """A suspended machine's clock leaps: no event lies before the run's begin or after the moment it was heard."""
    script = """
    for leap in (3600.0, -3600.0, 1e12, -1e12, 1e300):
        os.write(1, json.dumps({"event": "tick", "t": time.monotonic() + leap}).encode() + b"\\n")
    say("tick")
    """
    probe, outcome = run(tmp_path, textwrap.dedent(script) + DONE)
    assert outcome.kind == "completed"
    times = [event["t"] for event in probe.named("tick")]
    assert len(times) == 6
    assert all(0 <= t <= outcome.after_s for t in times)


def test_the_wall_clock_plays_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set back by an hour while a run goes on: limits, samples and order stay."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 3600 * (int(real()) % 2))
    probe, outcome = run(tmp_path, "time.sleep(0.4)\n" + DONE)
    assert outcome.kind == "completed"
    for thread in (probe.named("sample"), [event for event in probe.events if event["event"] != "sample"]):
        times = [event["t"] for event in thread]
        assert times == sorted(times)
    assert outcome.after_s < 30


def test_a_stopped_probe_that_goes_on_in_time_is_none_the_worse(tmp_path: Path) -> None:
    probe = Run(
        tmp_path, "say('ready')\ntime.sleep(0.5)\n" + DONE, Limits(time_s=PATIENCE_S, silence_s=PATIENCE_S / 2, grace_s=0.3)
    )
    with probe.session:
        pid = probe.until(lambda event: event["event"] == "hello")["pid"]
        probe.until(lambda event: event["event"] == "ready")
        os.kill(pid, signal.SIGSTOP)
        time.sleep(1.0)
        os.kill(pid, signal.SIGCONT)
        assert probe.finish().kind == "completed"


def test_after_every_fault_the_next_probe_works(tmp_path: Path) -> None:
    faults = ("os.kill(os.getpid(), signal.SIGKILL)", "os.write(1, b'half a li'); os._exit(0)", "os.abort()")
    for number, fault in enumerate(faults):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}-next").mkdir()
        _, outcome = run(tmp_path / f"{number}", fault)
        assert outcome.kind in ("killed", "crashed")
        probe, outcome = run(tmp_path / f"{number}-next", 'say("memory", allocated=7)\n' + DONE)
        assert (outcome.kind, probe.named("memory")[0]["allocated"]) == ("completed", 7)


CUDA_SAYS = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.25 GiB of which 11.31 MiB is free. "
    "Process 1234 has 79.23 GiB memory in use. Of the allocated memory 78.49 GiB is allocated by PyTorch, and 12.10 MiB is "
    "reserved by PyTorch but unallocated."
)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch, which the extra `probe` installs")
def test_cuda_out_of_memory_is_a_result_of_the_real_worker(tmp_path: Path) -> None:
    """In the words of c10/cuda/CUDACachingAllocator.cpp, raised in the middle of a load; the next probe works."""
    script = tmp_path / "full.py"
    script.write_text(f"import torch\nheld = torch.ones(2**20)\nraise torch.OutOfMemoryError({CUDA_SAYS!r})\n")
    events: list[dict[str, Any]] = []
    for asked in (load_order("script", "cpu", script=str(script)), load_order("ramp", "cpu", 4 * 2**20)):
        path = tmp_path / f"{asked['mode']}.jsonl"
        with ProbeSession(asked, events.append, recording_path=path, limits=Limits(time_s=PATIENCE_S)) as session:
            outcome = session.wait(2 * PATIENCE_S)
        assert outcome is not None
        assert read_recording(path).events == events
        assert [event["pid"] for event in events if event["event"] == "hello" and psutil.pid_exists(event["pid"])] == []
        if asked["mode"] == "script":
            assert (outcome.kind, outcome.phase, outcome.requested_bytes) == ("out_of_memory", "script", 20 * 2**20), outcome
            assert outcome.text.startswith("Out of memory in script: 20.0 MiB was asked for")
            assert outcome.exit_code == 1
        else:
            assert outcome.kind == "completed", outcome
        events.clear()


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeNvml]:
    library = FakeNvml(tmp_path_factory.mktemp("nvml"))
    yield library
    library.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"0.lost": 15}, "fallen off the bus"),
        ({"0.lost": 16}, "needs a reset"),
        ({"0.lost": 1}, ""),
        ({"0.memory_v2.code": 999}, ""),
    ],
    ids=["lost", "reset", "shut down", "unknown"],
)
def test_a_driver_that_fails_midway_does_not_end_the_run(
    tmp_path: Path, fake: FakeNvml, change: dict[str, int], words: str
) -> None:
    """Its series stops, the rest goes on."""
    fake.say(H200)
    seen = f"until(lambda gpu: gpu['used'] == {H200['0.memory_v2.used']})"
    lost = "until(lambda gpu: gpu['used'] is None)"
    events = events_beside(fake, tmp_path, f"{seen}\nanswer({change!r})\n{lost}\n")
    assert events[-1]["kind"] == "completed"
    assert read_recording(tmp_path / "r.jsonl").events == events
    notes = [event["message"] for event in events if event["event"] == "note"]
    assert words in "".join(notes)
    assert all(event["rss"] is None or event["rss"] > 0 for event in events if event["event"] == "sample")


@pytest.mark.slow
def test_two_hours_at_20_hz_hold_memory_flat(tmp_path: Path) -> None:
    """144,000 readings as fast as they can be told: the second half takes no more memory than the first left."""
    count = 2 * 3600 * 20
    script = """
    line = '{"event":"memory","t":%r,"allocated":%d,"reserved":2,"device":3,"free":4,"total":5,"phase":"load"}\\n'
    for n in range(0, COUNT, 100):
        os.write(1, "".join(line % (time.monotonic(), one * 512) for one in range(n, n + 100)).encode())
        if n == COUNT // 2:
            say("half")
    """.replace("COUNT", str(count))
    from probes.measurement import Measurement
    from probes.session import ProbeSession
    from tests.probes.test_session import ORDER, SPEAK

    measurement, process = Measurement({}), psutil.Process()
    sizes: dict[str, int] = {}
    taken = [0]

    def take(event: dict[str, Any]) -> None:
        measurement.add(event)
        taken[0] += event["event"] == "memory"
        if event["event"] in ("half", "result"):
            sizes[event["event"]] = process.memory_info().rss

    command = [sys.executable, "-S", "-c", SPEAK + textwrap.dedent(script) + DONE]
    path = tmp_path / "r.jsonl"
    limits = Limits(time_s=250, silence_s=60, grace_s=0.3)
    with ProbeSession(ORDER, take, recording_path=path, command=command, limits=limits) as session:
        outcome = session.wait(260)
    assert outcome is not None
    assert outcome.kind == "completed", outcome
    assert taken[0] == count
    assert len(measurement.timeline) <= 20_000
    assert sizes["result"] - sizes["half"] < 8 * 2**20
    assert measurement.timeline.peak("allocated") == (count - 1) * 512
