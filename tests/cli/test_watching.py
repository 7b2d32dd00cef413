"""``measure -- COMMAND…`` and ``measure --attach PID`` as a person runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli import parser
from planner.units import GIB
from resources.history import History
from tests.children import ending
from tests.timing import PATIENCE_S, eventually

ROOT = Path(__file__).resolve().parents[2]
LLAMA = {"version": 1, "model": "meta-llama/Llama-3.1-8B", "task": "inference", "inference": {"batch": 4, "prompt_tokens": 4096}}
SERVER = "print('Model loading took 14.9890 GiB and 4.4 seconds', flush=True)"


def measure(home: Path, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "main.py", "measure", *arguments],
        cwd=ROOT, input=given, capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"HIGHWATER_HOME": str(home), "COLUMNS": "160"},
    )  # fmt: skip


def test_a_command_beside_its_plan(tmp_path: Path) -> None:
    done = measure(tmp_path, "-", "--json", "--", sys.executable, "-c", SERVER, given=json.dumps(LLAMA))
    assert done.returncode == 0
    told = json.loads(done.stdout)
    assert "Model loading took" in done.stderr
    assert (told["outcome"], told["engine"]) == ("completed", "vllm")
    assert told["components"] == {"": {"weights": round(14.989 * GIB)}}
    assert told["error"]["weights"] == pytest.approx(round(14.989 * GIB) / 16_060_522_496 - 1)
    (kept,) = History(tmp_path / "history.sqlite").runs()
    again = subprocess.run(
        [sys.executable, "main.py", "replay", told["recording"], "--speed", "max"],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    assert "Model loading took 14.9890 GiB" in again.stdout
    assert "14.99 GiB" in again.stdout
    assert (kept.level, kept.model, kept.engine, kept.recording) == ("watch", LLAMA["model"], "vllm", told["recording"])


def test_without_a_plan_the_words_tell_what_was_seen(tmp_path: Path) -> None:
    done = measure(tmp_path, "--", sys.executable, "-c", SERVER + "; raise SystemExit(3)")
    assert done.returncode == 3
    assert "exit status 3" in done.stdout
    assert "14.99 GiB" in done.stdout
    assert "host memory" in done.stdout


def test_options_after_the_dashes_are_the_commands_own(tmp_path: Path) -> None:
    done = measure(tmp_path, "--", sys.executable, "-c", "import sys; print(sys.argv)", "--json", "--attach", "1")
    assert "['-c', '--json', '--attach', '1']" in done.stderr


def test_attaching_leaves_the_process_alone_also_when_interrupted(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    try:
        child = subprocess.Popen(
            [sys.executable, "main.py", "measure", "--attach", str(other.pid)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"HIGHWATER_HOME": str(tmp_path)},
        )  # fmt: skip
        with ending(child):
            assert eventually(lambda: any("\n[" in path.read_text() for path in tmp_path.glob("recordings/*")))
            child.send_signal(signal.SIGINT)
            out, errors = child.communicate(timeout=PATIENCE_S)
        assert child.returncode == 130
        assert f"process {other.pid} goes on" in out
        assert f"process {other.pid} goes on" in errors
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name a scenario"),
        (["--attach", "1", "--", "true"], "not both"),
        (["--"], "name the command"),
        (["--log", "x", "--", "true"], "--log goes with --attach"),
        (["--attach", "1", "--log", "/no/such/file"], "/no/such/file is not a file"),
        (["--record", __file__, "--", "true"], "exists already"),
        (["--attach", "1", "--device", "cpu", "--layers", "2"], "--device, --layers: a process that is watched"),
        (["--budget", "100", "--", "true"], "--budget: a process that is watched"),
    ],
)
def test_nonsense_is_told(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert parser.run(["measure", *arguments]) == 2
    errors = capsys.readouterr().err
    assert words in errors
    assert errors.count("\n") == 1


def test_a_process_that_is_not_there(tmp_path: Path) -> None:
    done = measure(tmp_path, "--attach", "4194301")
    assert (done.returncode, done.stdout) == (3, "")
    assert "There is no process 4194301 here." in done.stderr
    assert History(tmp_path / "history.sqlite").runs() == []
