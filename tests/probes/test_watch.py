"""Watching real processes: launched ones, and ones that were there before."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from planner.units import GIB
from probes.recording import read_recording
from probes.watch import Attach, Ending, Launch, Watch
from probes.watched import Watched
from tests.children import is_gone
from tests.probes.fake_nvml import H200, FakeNvml
from tests.timing import PATIENCE_S, eventually

VLLM = "INFO 08-18 09:59:58 [gpu_worker.py:276] Available KV cache memory: 20.93 GiB"


def python(script: str) -> Launch:
    return Launch([sys.executable, "-S", "-c", script])


class Run:
    """A watch with its events."""

    def __init__(self, target: Launch | Attach, folder: Path, **options: Any) -> None:
        self.events: list[dict[str, Any]] = []
        self.path = folder / "w.jsonl"
        self.watch = Watch(target, self.events.append, recording_path=self.path, **options)

    def until(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The first event that meets a condition."""
        found = eventually(lambda: next(filter(condition, tuple(self.events)), None))
        assert found is not None, f"no such event in {self.events}"
        return found

    def finish(self) -> Ending:
        """The ending, after what holds of every one."""
        ending = self.watch.wait(PATIENCE_S)
        assert ending is not None
        self.watch.close()
        assert ending.text
        assert self.events[-1] == {"event": "outcome", "t": self.events[-1]["t"], **ending.to_json()}
        assert read_recording(self.path).events == self.events
        return ending

    def named(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]


def test_a_command_is_launched_sampled_and_its_log_is_read(tmp_path: Path) -> None:
    passed: list[bytes] = []
    script = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "held = bytearray(b'x' * {96 * 2**20}); input()"], stdin=subprocess.PIPE)
print({VLLM!r})
print("GPU KV cache size: 457,343 tokens", file=sys.stderr)
while not os.path.exists({str(tmp_path / "enough")!r}):
    time.sleep(0.01)
child.communicate(b"\\n")
"""
    run = Run(python(script), tmp_path, on_output=passed.append)
    with run.watch:
        for meter in ("rss", "pss"):
            run.until(lambda event, meter=meter: event["event"] == "sample" and (event.get(meter) or 0) > 96 * 2**20)
        (tmp_path / "enough").touch()
        ending = run.finish()
    assert (ending.kind, ending.exit_status, ending.exit_code) == ("completed", 0, 0)
    assert VLLM.encode() in b"".join(passed)
    (watch,) = run.named("watch")
    assert (watch["launched"], watch["command"][0]) == (True, sys.executable)
    (kv,) = [event for event in run.named("component") if event["is_component"]]
    assert (kv["name"], kv["value"]) == ("kv_cache", round(20.93 * GIB))
    assert {event["line"] for event in run.named("log")} == {VLLM, "GPU KV cache size: 457,343 tokens"}
    live, replayed = Watched(), Watched.of_recording(read_recording(run.path))
    for event in run.events:
        live.add(event)
    assert replayed.to_json() == live.to_json()
    assert live.to_json()["facts"] == {"kv_tokens": 457343}
    assert live.peaks["rss"] == max(event["rss"] or 0 for event in run.named("sample"))


def test_a_launched_command_is_ended_with_all_it_started(tmp_path: Path) -> None:
    script = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"], start_new_session=True)
print("child", child.pid, flush=True)
time.sleep(300)
"""
    run = Run(python(script), tmp_path)
    with run.watch:
        line = run.until(lambda event: str(event.get("line", "")).startswith("child"))["line"]
        run.watch.stop()
        ending = run.finish()
    assert (ending.kind, ending.exit_code) == ("stopped", 130)
    gone = [int(line.split()[1]), run.named("watch")[0]["pid"]]
    assert is_gone(*gone)


@pytest.mark.parametrize(
    ("script", "time_s", "kind", "status", "words"),
    [
        ("raise SystemExit(7)", None, "failed", 7, "exit status 7"),
        ("import os; os.kill(os.getpid(), 9)", None, "killed", -9, "SIGKILL"),
        ("import time; time.sleep(300)", 0.6, "timed_out", -2, "time limit of 0.6 s"),
    ],
)
def test_every_end_is_told(tmp_path: Path, script: str, time_s: float | None, kind: str, status: int, words: str) -> None:
    run = Run(python(script), tmp_path, time_s=time_s)
    with run.watch:
        ending = run.finish()
    assert (ending.kind, words in ending.text) == (kind, True)
    assert ending.exit_status in (status, 1, 130)  # an interrupted Python may end by itself


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    for target, words in ((Launch(["/no/such/program"]), "could not be started"), (Attach(4194301), "no process 4194301")):
        (tmp_path / words).mkdir()
        run = Run(target, tmp_path / words)
        with run.watch:
            ending = run.finish()
        assert (ending.kind, ending.exit_code) == ("could_not_start", 3)
        assert words in ending.text


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is none of the watch's."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "held = bytearray(b'x' * 2**26); print(1, flush=True); input()"],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_a_process_that_was_attached_to_is_left_alone(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    log = tmp_path / "server.log"
    log.write_text("Model loading took 15.2683 GiB and 4.4 seconds\n")
    run = Run(Attach(other.pid, log), tmp_path)
    with run.watch:
        run.until(lambda event: event["event"] == "component")
        with log.open("a") as file:
            file.write(VLLM[:30])
            file.flush()
            time.sleep(0.3)
            file.write(VLLM[30:] + "\n")
        run.until(lambda event: event.get("name") == "kv_cache")
        run.watch.stop()
        ending = run.finish()
    assert (ending.kind, "goes on" in ending.text) == ("stopped", True)
    assert other.poll() is None
    assert max(event["rss"] or 0 for event in run.named("sample")) > 2**26
    assert run.named("watch")[0]["launched"] is False
    assert run.watch.log.components == {"": {"weights": round(15.2683 * GIB), "kv_cache": round(20.93 * GIB)}}


def test_the_end_of_a_process_that_was_attached_to_ends_the_watch(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    run = Run(Attach(other.pid), tmp_path)
    with run.watch:
        run.until(lambda event: event["event"] == "sample")
        other.kill()
        ending = run.finish()
    assert (ending.kind, ending.exit_code) == ("completed", 0)
    assert f"Process {other.pid} ended" in ending.text


def test_leaving_the_context_leaves_no_thread(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    before = threading.active_count()
    with Run(Attach(other.pid), tmp_path).watch:
        time.sleep(0.1)
    assert threading.active_count() == before
    assert other.poll() is None


def test_endless_output_does_not_fill_the_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from probes import watch as module

    monkeypatch.setattr(module, "LOG_LINES", 50)
    script = f"for n in range(3000): print('line', n)\nprint({VLLM!r})"
    run = Run(python(script), tmp_path)
    with run.watch:
        run.finish()
    lines = [event["line"] for event in run.named("log")]
    assert lines == [f"line {n}" for n in range(50)] + [VLLM]
    assert "only lines that say something of memory" in run.named("note")[0]["message"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_and_the_watch_goes_on(tmp_path: Path) -> None:
    run = Run(python("print('hello')"), tmp_path)
    run.watch = Watch(python("print('hello')"), run.events.append, recording_path=Path("/dev/full"))
    with run.watch:
        assert run.watch.wait(PATIENCE_S) is not None
    assert sum("No space left" in event["message"] for event in run.named("note")) == 1
    assert run.events[-1]["kind"] == "completed"


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeNvml]:
    library = FakeNvml(tmp_path_factory.mktemp("nvml"))
    yield library
    library.close()


def test_the_gpus_share_of_a_process_is_told(tmp_path: Path, fake: FakeNvml, other: subprocess.Popen[bytes]) -> None:
    """The driver lists 20 GiB for the process; the plan says 16 for the device."""
    fake.say(H200 | {"0.memory_v2.used": 60 * GIB, "0.processes": f"{other.pid}:{20 * GIB} 1:{40 * GIB}"})
    prediction = {"gpus": [{"phases": [{"name": "decode", "device": 16 * GIB, "components": {}}]}]}
    script = f"""
import json
from pathlib import Path
from probes.watch import Attach, Watch
from probes.watched import Watched
from tests.timing import eventually
watched = Watched({{}}, {prediction!r})
with Watch(Attach({other.pid}), watched.add, recording_path=Path({str(tmp_path / "w.jsonl")!r})) as watch:
    eventually(lambda: "gpu0.process" in watched.peaks)
    watch.stop()
    watch.wait()
print(json.dumps(watched.to_json()))
"""
    told = json.loads(fake.run(script))
    assert told["outcome"] == "stopped"
    assert (told["peaks"]["gpu0.used"], told["peaks"]["gpu0.process"], told["peaks"]["gpu0.delta"]) == (60 * GIB, 20 * GIB, 0)
    assert told["device_bytes"] == 20 * GIB
    assert told["error"]["device"] == pytest.approx(0.25)
    assert psutil.pid_exists(other.pid)
