"""The session over real child processes that behave well, badly, or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from probes import preflight
from probes.outcome import Outcome
from probes.processes import MARK
from probes.recording import Recorded, read_recording
from probes.session import Limits, ProbeSession
from tests.children import is_gone, is_stopped
from tests.probes.fake_nvml import H200, PROJECT, FakeNvml, events_beside
from tests.timing import PATIENCE_S, TRIES, eventually, quickest_s

OWNER = "HIGHWATER_TEST_RUN"
os.environ[OWNER] = str(os.getpid())  # inherited by every process of these tests, and by no other program's
ORDER = {"version": 1, "mode": "measure", "scenario": {"model": "m", "task": "inference"}, "config": {"a": 1}}
SPEAK = """
import json, os, signal, subprocess, sys, time
order = json.loads(sys.stdin.readline())
def say(event, **fields):
    os.write(1, json.dumps({"event": event, "t": time.monotonic(), **fields}).encode() + b"\\n")
say("hello", pid=os.getpid(), device={"type": "cpu"})
say("phase", name="load", state="begin", step=0, micro=0)
"""
DONE = 'say("result", outcome="completed", parameters=7)\n'
QUICK = Limits(time_s=PATIENCE_S, silence_s=PATIENCE_S, grace_s=0.3)


class Run:
    """A session over a child that runs a script, with all its events."""

    def __init__(self, folder: Path, script: str, limits: Limits = QUICK, *, speak: bool = True) -> None:
        self.events: list[dict[str, Any]] = []
        self.path = folder / "run.jsonl"
        text = (SPEAK if speak else "") + textwrap.dedent(script)
        command = [sys.executable, "-S", "-c", text]
        self.session = ProbeSession(ORDER, self.events.append, limits=limits, recording_path=self.path, command=command)

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first event that meets a condition."""
        found = eventually(lambda: next(filter(condition, tuple(self.events)), None))
        assert found is not None, f"no such event in {self.events}"
        return found

    def finish(self) -> Outcome:
        """Wait for the end, then check what holds of every end."""
        outcome = self.session.wait(PATIENCE_S)
        assert outcome is not None
        self.session.close()
        assert self.events[-1]["event"] == "outcome"
        assert self.events[-1]["kind"] == outcome.kind
        assert outcome.text
        assert self.recorded().events == self.events
        assert marked() == []
        return outcome

    def recorded(self) -> Recorded:
        return read_recording(self.path)

    def named(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]


def marked() -> list[psutil.Process]:
    """Processes of a probe of these tests that are alive."""
    found = []
    for process in psutil.process_iter():
        try:
            told = process.environ() if process.status() != psutil.STATUS_ZOMBIE else {}
            if MARK in told and told.get(OWNER) == os.environ[OWNER]:
                found.append(process)
        except psutil.Error:
            continue
    return found


def run(folder: Path, script: str, limits: Limits = QUICK, *, speak: bool = True) -> tuple[Run, Outcome]:
    probe = Run(folder, script, limits, speak=speak)
    with probe.session:
        return probe, probe.finish()


def test_a_run_that_goes_well(tmp_path: Path) -> None:
    probe, outcome = run(tmp_path, 'say("memory", allocated=512, phase="load")\nsay("got", order=order)\n' + DONE)
    assert outcome.kind == "completed"
    assert outcome.phase == "load"
    assert [event["event"] for event in probe.events if event["event"] != "sample"] == [
        "environment", "hello", "phase", "memory", "got", "result", "outcome",
    ]  # fmt: skip
    assert probe.named("got")[0]["order"] == ORDER
    times = [event["t"] for event in probe.events if event["event"] != "sample"]
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] < 30
    header = probe.recorded().header
    assert (header["scenario"], header["config"]) == (ORDER["scenario"], ORDER["config"])
    assert header["environment"]["memory_bytes"] == psutil.virtual_memory().total


def test_samples_run_beside_on_the_same_clock(tmp_path: Path) -> None:
    script = f"""
held = bytearray(b"x" * {64 * 2**20})
say("memory", allocated=1)
while not os.path.exists({str(tmp_path / "enough")!r}):
    time.sleep(0.01)
{DONE}"""
    probe = Run(tmp_path, script)

    def after() -> list[float]:
        """When it was sampled while it held its memory."""
        held_at = [event["t"] for event in tuple(probe.events) if event["event"] == "memory"]
        samples = [event for event in tuple(probe.events) if event["event"] == "sample" and (event["rss"] or 0) > 64 * 2**20]
        return [event["t"] for event in samples if held_at and event["t"] > held_at[0]]

    with probe.session:
        # A busy machine leaves readings out, so some gaps are longer.
        assert eventually(lambda: sum(0.03 < later - sooner < 0.07 for sooner, later in pairwise(after())) >= 5)
        (tmp_path / "enough").touch()
        probe.finish()
    assert after()[-1] - after()[0] > (len(after()) - 2) * 0.05


def test_out_of_memory_is_a_result(tmp_path: Path) -> None:
    _, outcome = run(tmp_path, 'say("result", outcome="out_of_memory", requested_bytes=2048, free_bytes=1024, phase="prefill")')
    assert (outcome.kind, outcome.phase) == ("out_of_memory", "prefill")
    assert (outcome.requested_bytes, outcome.free_bytes) == (2048, 1024)


def test_killed(tmp_path: Path) -> None:
    probe, outcome = run(tmp_path, 'say("memory", allocated=99)\nos.kill(os.getpid(), signal.SIGKILL)')
    assert (outcome.kind, outcome.signal, outcome.phase) == ("killed", signal.SIGKILL, "load")
    assert "out-of-memory killer" in outcome.sentence
    assert probe.named("memory")[0]["allocated"] == 99


def test_a_stopped_process_is_a_hang_and_is_ended(tmp_path: Path) -> None:
    probe = Run(tmp_path, "os.kill(os.getpid(), signal.SIGSTOP)", Limits(silence_s=1.0, grace_s=0.2))
    with probe.session:
        probe.session._liveness.silence_s = None  # no second of a busy machine that starts it is one of silence
        assert is_stopped(probe.until(lambda event: event["event"] == "hello")["pid"])
        probe.session._liveness.silence_s = 1.0
        outcome = probe.finish()
    assert (outcome.kind, outcome.limit_s, outcome.signal, outcome.error_kind) == ("hung", 1.0, signal.SIGKILL, "suspended")
    assert "stopped by a signal or a debugger and said nothing for 1 s, in load" in outcome.text


def test_a_probe_that_answers_and_gets_nowhere_is_ended_on_a_gpu(tmp_path: Path) -> None:
    """Its sampler goes on while a kernel hangs. On a CPU a step may take its time."""
    pulse = "while True:\n    say('memory', allocated=1)\n    time.sleep(0.02)\n"
    for device, time_s, kind, words in (
        ("cuda:0", PATIENCE_S, "hung", "or finished for 0.5 s"),
        ("cpu", 2.0, "timed_out", "time limit"),
    ):
        (tmp_path / device).mkdir()
        probe = Run(tmp_path / device, pulse, Limits(time_s=time_s, silence_s=PATIENCE_S, stall_s=0.5, grace_s=0.2))
        probe.session.order["device"] = device
        with probe.session:
            outcome = probe.finish()
        assert (outcome.kind, words in outcome.text) == (kind, True), outcome


def test_crash_keeps_the_last_words_on_stderr(tmp_path: Path) -> None:
    script = 'sys.stderr.write("x" * 100000 + "the cause\\n"); sys.stderr.flush(); os.abort()'
    _, outcome = run(tmp_path, script)
    assert (outcome.kind, outcome.signal) == ("crashed", signal.SIGABRT)
    assert "the cause" in outcome.stderr_tail
    assert len(outcome.stderr_tail) <= 16 * 2**10


def test_an_end_without_a_result_is_a_crash(tmp_path: Path) -> None:
    _, outcome = run(tmp_path, "raise SystemExit(0)")
    assert outcome.kind == "crashed"
    assert "without a result" in outcome.sentence


def test_the_workers_error_is_told_in_its_own_words(tmp_path: Path) -> None:
    script = 'say("error", kind="bad_order", message="layers: must be at least 1", field="layers")\nraise SystemExit(2)'
    _, outcome = run(tmp_path, script)
    assert (outcome.kind, outcome.sentence, outcome.exit_code) == ("failed", "layers: must be at least 1", 2)


def test_garbage_is_noted_and_survived(tmp_path: Path) -> None:
    script = """
    for _ in range(50):
        os.write(1, b"\\xff\\x00 not json\\n[1,2]\\n{}\\n")
    os.write(1, b'{"event":"memory","allocated":NaN,"t":"soon"}\\n\\n')
    """
    probe, outcome = run(tmp_path, textwrap.dedent(script) + DONE)
    assert outcome.kind == "completed"
    notes = [event["message"] for event in probe.named("note")]
    assert len(notes) == 4
    assert "not an event" in notes[0]
    assert "150 lines in all" in notes[-1]
    (memory,) = probe.named("memory")
    assert memory["allocated"] is None
    assert 0 <= memory["t"] <= outcome.after_s


def test_half_a_line_at_the_end_is_noted(tmp_path: Path) -> None:
    probe, outcome = run(tmp_path, """os.write(1, b'{"event":"memory","t":12.5,"alloc')""")
    assert outcome.kind == "crashed"
    assert ["middle of a line" in event["message"] for event in probe.named("note")] == [True]


def test_a_line_beyond_the_limit_is_dropped(tmp_path: Path) -> None:
    script = """
    block = b"x" * 2**20
    for _ in range(100):
        os.write(1, block)
    os.write(1, b"\\n")
    """
    limits = Limits(time_s=PATIENCE_S, grace_s=0.3, line_bytes=2**20)
    probe, outcome = run(tmp_path, textwrap.dedent(script) + DONE, limits)
    assert outcome.kind == "completed"
    assert "a line of 104,857,600 bytes was dropped" in probe.named("note")[0]["message"]


def test_a_recording_survives_a_value_that_json_cannot_write(tmp_path: Path) -> None:
    probe = Run(tmp_path, """os.write(1, b'{"event":"x","v":' + b"[" * 600 + b"]" * 600 + b"}\\n")\n""" + DONE)
    with probe.session:
        outcome = probe.session.wait(PATIENCE_S)
    assert outcome is not None
    assert outcome.kind == "completed"
    assert probe.recorded().events[-1]["event"] == "outcome"


def test_stop_is_gentle_first(tmp_path: Path) -> None:
    script = """
    def end(number, frame):
        say("error", kind="interrupted", message="told to")
        sys.exit(130)
    signal.signal(signal.SIGINT, end)
    say("ready")
    time.sleep(300)
    """
    probe = Run(tmp_path, script)
    with probe.session:
        probe.until(lambda event: event["event"] == "ready")
        probe.session.stop()
        outcome = probe.finish()
    assert (outcome.kind, outcome.exit_status, outcome.exit_code) == ("stopped", 130, 130)


def test_stop_is_firm_in_the_end(tmp_path: Path) -> None:
    script = """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say("ready")
    time.sleep(300)
    """
    probe = Run(tmp_path, script)
    with probe.session:
        probe.until(lambda event: event["event"] == "ready")
        probe.session.stop()
        outcome = probe.finish()
    assert (outcome.kind, outcome.signal) == ("stopped", signal.SIGKILL)


def test_the_time_limit_ends_a_talkative_run(tmp_path: Path) -> None:
    _, outcome = run(tmp_path, "while True:\n    say('memory')\n    time.sleep(0.01)", Limits(time_s=0.8, grace_s=0.2))
    assert (outcome.kind, outcome.limit_s) == ("timed_out", 0.8)


def test_a_worker_that_has_its_result_may_not_linger(tmp_path: Path) -> None:
    probe, outcome = run(tmp_path, DONE + "signal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(300)")
    assert outcome.kind == "completed"
    assert outcome.after_s - probe.named("result")[0]["t"] < 20


FAMILY = """
own_group = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(300)"])
daemon = subprocess.Popen([sys.executable, "-S", "-c", '''
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print("daemon", flush=True)
        time.sleep(300)
    os._exit(0)
os._exit(0)
'''], stdout=subprocess.PIPE)
daemon.stdout.readline()
say("ready")
"""


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (DONE, "completed"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed"),
        ("os._exit(1)", "crashed"),
        ("time.sleep(300)", "stopped"),
    ],
)
def test_no_descendant_outlives_the_session(tmp_path: Path, end: str, kind: str) -> None:
    """Neither a child in the group nor a daemon that left it by a double fork."""
    probe = Run(tmp_path, FAMILY + end)
    with probe.session:
        probe.until(lambda event: event["event"] == "ready")
        if kind == "stopped":
            assert len(marked()) == 3
            probe.session.stop()
        outcome = probe.finish()
    assert outcome.kind == kind


def test_leaving_the_context_ends_the_run(tmp_path: Path) -> None:
    probe = Run(tmp_path, FAMILY + "time.sleep(300)")
    with probe.session:
        probe.until(lambda event: event["event"] == "ready")
    assert probe.session.wait(0) is not None
    assert probe.finish().kind == "stopped"


@pytest.mark.parametrize("end", ["raise SystemExit", "os.kill(os.getpid(), signal.SIGTERM)"])
def test_nothing_outlives_the_program(tmp_path: Path, end: str) -> None:
    """At a normal exit the sessions are closed; a parent that is killed leaves a worker whose pipe breaks."""
    child = SPEAK + "while True:\n    say('memory')\n    time.sleep(0.02)\n"
    script = f"""
import os, signal, sys, threading
from pathlib import Path
from probes.session import ProbeSession
ready = threading.Event()
command = [sys.executable, "-S", "-c", {child!r}]
on_event = lambda event: ready.set() if event["event"] == "memory" else None
session = ProbeSession({ORDER!r}, on_event, recording_path=Path({str(tmp_path / "r.jsonl")!r}), command=command)
session.start()
ready.wait(100)
print(session.pid, flush=True)
{end}
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert is_gone(int(done.stdout))
    assert marked() == []
    assert read_recording(tmp_path / "r.jsonl").events
    assert "Traceback" not in done.stderr or end != "raise SystemExit"


def test_two_at_once_do_not_touch_each_other(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    waits = f"while not os.path.exists({str(tmp_path / 'go on')!r}):\n    time.sleep(0.01)\n"
    first, second = Run(tmp_path / "a", "time.sleep(300)"), Run(tmp_path / "b", waits + DONE)
    with first.session, second.session:
        for probe in (first, second):
            probe.until(lambda event: event["event"] == "phase")
        first.session.stop()
        assert first.session.wait(PATIENCE_S) is not None
        (tmp_path / "go on").touch()
        assert second.finish().kind == "completed"
    assert first.session.outcome is not None
    assert first.session.outcome.kind == "stopped"


def test_a_program_that_is_not_there_is_an_outcome(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    path = tmp_path / "r.jsonl"
    with ProbeSession(ORDER, events.append, recording_path=path, command=["/no/such/python"]) as session:
        outcome = session.wait(PATIENCE_S)
    assert outcome is not None
    assert outcome.kind == "could_not_start"
    assert "/no/such/python" in outcome.sentence
    assert events[-1]["kind"] == "could_not_start"


def test_missing_packages_are_told_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "NEEDED", ("json", "no_such_torch"))
    with ProbeSession(ORDER, recording_path=tmp_path / "r.jsonl") as session:
        outcome = session.wait(PATIENCE_S)
    assert outcome is not None
    assert (outcome.kind, outcome.exit_code, session.pid) == ("could_not_start", 3, None)
    assert outcome.sentence == 'no_such_torch is not installed. Rehearsing and measuring need them: pip install "highwater[probe]"'


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_does_not_end_the_run(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    command = [sys.executable, "-S", "-c", SPEAK + DONE]
    with ProbeSession(ORDER, events.append, recording_path=Path("/dev/full"), command=command) as session:
        outcome = session.wait(PATIENCE_S)
    assert outcome is not None
    assert outcome.kind == "completed"
    notes = [event["message"] for event in events if event["event"] == "note"]
    assert len(notes) == 1
    assert "No space left" in notes[0]
    assert "No space left" in session.recording.trouble


def test_another_machines_clock_is_shifted_to_ours(tmp_path: Path) -> None:
    script = """
    import time as real
    start = real.monotonic()
    for at in (0.0, 0.5, 1.0):
        real.sleep(max(0.0, start + at - real.monotonic()))
        os.write(1, json.dumps({"event": "tick", "t": 9e9 + at}).encode() + b"\\n")
    os.write(1, b'{"event":"result","outcome":"completed","t":1e400}\\n')
    """
    speak = "import json, os, sys\nsys.stdin.readline()\n"
    for attempt in range(TRIES):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        probe, _ = run(folder, speak + textwrap.dedent(script), speak=False)
        first, second, third = (event["t"] for event in probe.named("tick"))
        assert first < 20
        off_s = max(abs(second - first - 0.5), abs(third - first - 1.0))
        if off_s < 0.1:
            break
    assert off_s < 0.1


def test_a_receiver_that_fails_does_not_end_the_run(tmp_path: Path) -> None:
    calls = 0

    def fail(event: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        raise RuntimeError

    command = [sys.executable, "-S", "-c", SPEAK + DONE]
    path = tmp_path / "r.jsonl"
    with ProbeSession(ORDER, fail, recording_path=path, command=command) as session:
        outcome = session.wait(PATIENCE_S)
    assert outcome is not None
    assert (outcome.kind, calls) == ("completed", 1)
    assert read_recording(path).events[-1]["event"] == "outcome"


def test_starting_returns_at_once_and_leaves_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    probes: list[Run] = []

    def start() -> None:
        probes.append(Run(tmp_path, "time.sleep(300)"))
        probes[-1].session.start()
        probes[-1].session.stop()

    assert quickest_s(start, 0.5) < 0.5
    for probe in probes:
        probe.finish()
    assert threading.active_count() == before


def test_the_worker_is_found_from_any_folder(tmp_path: Path) -> None:
    """A user's folder with a ``json.py`` in it neither hides ours nor theirs is run."""
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    script = f"""
import os, sys
sys.path.insert(0, {str(PROJECT)!r})
from probes.session import PROJECT, worker_command
from probes.processes import project_environment
import subprocess
os.chdir({str(tmp_path)!r})
command = [*worker_command()[:2], "-c", "import json, probes; print(probes.__file__)"]
print(subprocess.run(command, env=project_environment(PROJECT), capture_output=True, text=True, check=True).stdout)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd="/", env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True,
        timeout=200, check=True,
    )  # fmt: skip
    assert Path(done.stdout.strip()) == PROJECT / "probes" / "__init__.py"


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Any:
    library = FakeNvml(tmp_path_factory.mktemp("nvml"))
    yield library
    library.close()


def test_a_gpu_is_sampled_beside_and_its_loss_is_survived(tmp_path: Path, fake: FakeNvml) -> None:
    fake.say(H200)
    events = events_beside(
        fake,
        tmp_path,
        """
until(lambda gpu: gpu.get("delta") == 0)
answer({"0.memory_v2.used": 4653056 + 2**30, "0.processes": f"{os.getpid()}:{2**29}"})
until(lambda gpu: gpu.get("delta") == 2**30 and gpu.get("process") == 2**29)
answer({"0.lost": 15})
until(lambda gpu: gpu["used"] is None)
""",
    )
    notes = [event["message"] for event in events if event["event"] == "note"]
    assert len(notes) == 1
    assert "fallen off the bus" in notes[0]
    assert events[-1]["kind"] == "completed"
    assert events[0]["driver"] == "580.65.06"
