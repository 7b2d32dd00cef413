"""Whoever starts a run may be killed outright; nothing of the run outlives it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from probes.processes import ProcessGroup
from probes.worker import guardian
from tests.children import is_gone, lives

ROOT = Path(__file__).resolve().parents[3]
SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(300)"]
STUBBORN = f"""
import os, signal, subprocess, sys, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
children = [subprocess.Popen({SLEEP!r}, start_new_session=True), subprocess.Popen({SLEEP!r}, env={{}}, start_new_session=True)]
print("pids", os.getpid(), *(child.pid for child in children), file=sys.stderr, flush=True)
"""
"""Heeds no signal that can be heeded; a child left its group, another forgot where it is from as well."""
SESSION = """
import sys
from pathlib import Path
from probes.session import ProbeSession
with ProbeSession({}, command=[sys.executable, "-S", "-c", sys.argv[2]], recording_path=Path(sys.argv[1]) / "r.jsonl") as session:
    while not session._stderr.endswith(b"\\n"):
        pass
    print(session._stderr.decode(), file=sys.stderr, flush=True)
    session.wait()
"""
posix = pytest.mark.skipif(os.name != "posix", reason="kills as POSIX does")


@contextmanager
def killed_after(*processes: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@posix
@pytest.mark.parametrize("stops", [False, True], ids=["runs", "is stopped"])
@pytest.mark.parametrize(
    "launcher",
    [["main.py", "measure", "--", sys.executable, "-S", "-c"], ["-c", SESSION, "{folder}"]],
    ids=["a command that is watched", "a worker"],
)
def test_nothing_outlives_a_launcher_that_is_killed(tmp_path: Path, launcher: list[str], stops: bool) -> None:
    script = STUBBORN + ("os.kill(os.getpid(), signal.SIGSTOP)\n" if stops else "") + "time.sleep(300)\n"
    words = [sys.executable, *(word.replace("{folder}", str(tmp_path)) for word in launcher), script]
    started = subprocess.Popen(
        words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env=os.environ | {"HIGHWATER_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    with killed_after(started):
        assert started.stderr is not None
        line = next(line for line in iter(started.stderr.readline, b"") if line.startswith(b"pids"))
        pids = [int(word) for word in line.split()[1:]]
        assert all(map(lives, pids))
        started.kill()
        started.wait()
        assert is_gone(*pids)


@posix
def test_it_knows_the_run_by_its_mark_before_it_is_told_a_process() -> None:
    """The launcher may be killed between the start of the run and the line that names it."""
    marked = subprocess.Popen(SLEEP, env=os.environ | {guardian.MARK: "here"}, start_new_session=True)
    other = subprocess.Popen(SLEEP, env=os.environ | {guardian.MARK: "elsewhere"}, start_new_session=True)
    with killed_after(marked, other):
        process = guardian.start("here", subprocess.PIPE)
        assert process is not None
        process.communicate()
        assert marked.wait(60) == -signal.SIGKILL
        assert other.poll() is None


@posix
def test_it_is_let_go_with_its_run_and_harms_nothing() -> None:
    before = {child.pid for child in psutil.Process().children()}
    group = ProcessGroup([sys.executable, "-S", "-c", "pass"], os.environ)
    assert len({child.pid for child in psutil.Process().children()} - before) == 2
    assert group.process.wait(60) == 0
    group.sweep()
    group.close()
    assert {child.pid for child in psutil.Process().children()} <= before


def test_what_cannot_be_started_leaves_no_guardian() -> None:
    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(OSError, match="No such file"):
        ProcessGroup(["/no/such/program"], os.environ)
    assert {child.pid for child in psutil.Process().children()} <= before


@posix
def test_silence_and_the_end_of_its_parent_are_ends_too() -> None:
    """Where it watches over its own parent, as beside a worker that came over SSH."""
    script = f"""
import os, subprocess, sys, time
sys.path.insert(0, {str(ROOT)!r})
from probes.worker import guardian
os.environ[guardian.MARK] = mark = sys.argv[1]
child = subprocess.Popen({SLEEP!r}, start_new_session=True)
print(child.pid, flush=True)
guardian.start(mark, 0, os.getpid(), float(sys.argv[2]))
time.sleep(float(sys.argv[3]))
os._exit(7)
"""
    for silence_s, lives_s, status in (("0.2", "300", -signal.SIGKILL), ("300", "0", 7)):
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", script, f"mark-{silence_s}", silence_s, lives_s],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with killed_after(process):
            assert process.stdout is not None
            child = int(process.stdout.readline())
            assert process.wait(60) == status
            assert is_gone(child)


@pytest.mark.skipif(not Path("/proc/self/stat").exists() or shutil.which("ps") is None, reason="needs Linux and its ps")
def test_where_there_is_no_proc_the_same_processes_are_listed() -> None:
    with subprocess.Popen(SLEEP, start_new_session=True) as process:
        try:
            told, listed = guardian.from_proc("none")[process.pid], guardian.from_ps()[process.pid]
        finally:
            process.kill()
    assert told == listed == (os.getpid(), process.pid, False)
