"""Ranks that fail, under a real torchrun. What a rank says is scripted: what is told of it and who is left are asked."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

from probes.worker.errors import WorkerError
from probes.worker.ranks import SOCKET, AgentLog, Ranks
from probes.worker.wire import Wire
from tests.children import is_gone

under_torchrun = pytest.mark.skipif(
    sys.platform == "win32" or importlib.util.find_spec("torch") is None, reason="needs torchrun, which comes with torch"
)
RANK = f"""
import json, os, signal, socket, sys, time
rank = int(os.environ["RANK"])
link = socket.socket(socket.AF_UNIX)
link.connect(os.environ["{SOCKET}"])
def say(event, **fields):
    told = {{"event": event, "t": time.monotonic(), **fields}}
    told = {{"event": "rank", "rank": rank, "of": told}} if rank else told
    link.sendall(json.dumps(told).encode() + bytes([10]))
def wait():
    signal.signal(signal.SIGTERM, lambda *_: (say("error", kind="interrupted", message="told to end"), os._exit(130)))
    time.sleep(300)
def after(name):
    while not os.path.exists(name):
        time.sleep(0.01)
    time.sleep(0.2)  # what was said before is heard by now
say("hello", pid=os.getpid())
"""


class Told:
    """What two ranks that run ``program`` come to: the events on the wire and the error, if there is one."""

    def __init__(self, program: str, silence_s: float = 60.0) -> None:
        reader, writer = os.pipe()
        self.error: WorkerError | None = None
        try:
            Ranks({}, 2, Wire(writer), RANK + program, silence_s).run()
        except WorkerError as error:
            self.error = error
        finally:
            os.close(writer)
        with os.fdopen(reader, "rb") as lines:
            self.events = [json.loads(line) for line in lines]
        for event in self.events:
            pid = event.get("of", event).get("pid")
            if pid:
                assert is_gone(pid), f"an orphan: {event}"


@under_torchrun
def test_every_rank_is_heard_and_there_is_one_result() -> None:
    """Garbage between two events does no harm, and each rank's events come under its number."""
    told = Told("""
link.sendall(b"{half\\n[1]\\n\\xff\\n{}\\n")
say("phase", name="load", state="begin")
say("result", outcome="completed", phases=[{"name": "load", "allocated": 512 + rank}])
""")
    assert told.error is None
    assert [event["event"] for event in told.events].count("result") == 1
    assert told.events[-1]["ranks"] == [{"rank": rank, "phases": [{"name": "load", "allocated": 512 + rank}]} for rank in (0, 1)]
    begun = [event for event in told.events if event.get("of", event)["event"] == "phase"]
    assert sorted(event.get("rank", 0) for event in begun) == [0, 1]


@under_torchrun
def test_a_rank_that_cannot_go_on_is_named_and_the_others_are_ended() -> None:
    told = Told("""
if rank == 0:
    wait()
say("error", kind="no_device", message="cuda:1: this machine has 1 CUDA devices", field="device")
os._exit(3)
""")
    assert told.error is not None
    assert (told.error.kind, told.error.field, told.error.told) == ("no_device", "device", {"rank": 1})
    assert told.error.message == "rank 1: cuda:1: this machine has 1 CUDA devices"


@under_torchrun
def test_a_rank_without_memory_is_the_result_whatever_the_others_say_of_it(tmp_path: Path) -> None:
    told = Told(f"""
if rank == 0:
    after({str(tmp_path / "said")!r})
    say("error", kind="internal", message="connection closed by peer", field=None)
    os._exit(3)
say("result", outcome="out_of_memory", requested_bytes=2**20, free_bytes=7, phase="forward", message="", phases=[])
open({str(tmp_path / "said")!r}, "w").close()
""")
    assert told.error is None
    result = told.events[-1]
    assert (result["event"], result["outcome"], result["rank"], result["free_bytes"]) == ("result", "out_of_memory", 1, 7)


@under_torchrun
def test_a_rank_that_is_killed_is_told_with_its_signal(tmp_path: Path) -> None:
    """Though another rank says first that it lost it."""
    told = Told(f"""
if rank == 0:
    say("error", kind="internal", message="connection closed by peer", field=None)
    open({str(tmp_path / "said")!r}, "w").close()
    wait()
after({str(tmp_path / "said")!r})
os.kill(os.getpid(), signal.SIGKILL)
""")
    assert told.error is not None
    assert (told.error.kind, told.error.told) == ("rank_ended", {"rank": 1, "signal": 9})


@under_torchrun
def test_a_rank_that_stops_is_not_waited_for_for_ever() -> None:
    """The other one never ends by itself: waiting for either would outlast the test's time."""
    told = Told(
        """
if rank == 1:
    os.kill(os.getpid(), signal.SIGSTOP)
signal.signal(signal.SIGTERM, lambda *_: os._exit(130))
while True:
    say("memory", allocated=1)
    time.sleep(0.05)
""",
        silence_s=1.0,
    )
    assert told.error is not None
    assert (told.error.kind, told.error.told) == ("rank_ended", {"rank": 1, "signal": None})
    assert "said nothing for 1 s" in told.error.message


def test_torchruns_summary_tells_the_status_and_not_the_machine() -> None:
    """As torch 2.13's ChildFailedError prints it."""
    log = AgentLog()
    summary = Path(__file__).with_name("torchrun_summary.txt").read_text().splitlines()
    passed = [line for line in summary if log.take(line)]
    assert log.exits == {0: 3, 1: -9}
    assert not [line for line in passed if "machine-of-somebody" in line]
    assert len(passed) == len(summary) - 2
