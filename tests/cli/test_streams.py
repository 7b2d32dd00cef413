"""What verbs do with the streams that they are given: pipes that close, full disks, poor encodings, names of any bytes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cli.streams import Output
from cli.tables import phase_table
from planner.footprint import COMPONENTS, Phase
from probes.recording import read_recording
from resources.history import History
from tests.children import ending, is_gone
from tests.timing import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
SCENARIO = {"version": 1, "model": "HuggingFaceTB/SmolLM2-135M", "task": "inference"}
posix = pytest.mark.skipif(os.name != "posix", reason="streams and signals as POSIX has them")


def start(*arguments: str, out: int = subprocess.PIPE, err: int = subprocess.PIPE, **env: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "main.py", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=os.environ | env)


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    path = tmp_path / "scenario.json"
    path.write_text(json.dumps(SCENARIO))
    return str(path)


@posix
def test_a_reader_that_goes_is_no_failure(scenario: str) -> None:
    """`predict … | head -1`: status 1 would say that the plan does not fit."""
    reading, writing = os.pipe()
    os.close(reading)
    process = start("predict", scenario, out=writing)
    os.close(writing)
    assert process.communicate(timeout=PATIENCE_S)[1] == b""
    assert process.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_can_not_be_written_is_said_in_a_line(scenario: str) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    process = start("predict", scenario, "--json", out=full)
    os.close(full)
    assert process.communicate(timeout=PATIENCE_S)[1] == b"highwater: output: No space left on device\n"
    assert process.returncode == 3


def test_an_encoding_that_lacks_signs_costs_the_signs_alone(scenario: str) -> None:
    poor, rich = (start("predict", scenario, PYTHONIOENCODING=name) for name in ("ascii", "utf-8"))
    words, whole = poor.communicate(timeout=PATIENCE_S)[0].decode("ascii"), rich.communicate(timeout=PATIENCE_S)[0].decode("utf-8")
    assert (poor.returncode, rich.returncode) == (0, 0)
    assert "·" in whole
    assert words == whole.encode("ascii", "replace").decode("ascii")


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["kill", "terminal closed"])
def test_what_was_launched_does_not_outlive_its_launcher(number: signal.Signals, tmp_path: Path) -> None:
    stubborn = "trap '' INT TERM HUP; echo ready; while :; do sleep 0.05; done"
    process = start("measure", "--", "sh", "-c", stubborn, HIGHWATER_HOME=str(tmp_path))
    assert process.stderr is not None
    assert process.stderr.readline() == b"ready\n"
    launched = psutil.Process(process.pid).children()
    with ending(process):
        process.send_signal(number)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert launched
    assert is_gone(*(process.pid for process in launched))


@posix
def test_a_command_is_read_on_when_nobody_reads_what_it_says(tmp_path: Path) -> None:
    """More than a pipe holds: unread, the command would wait for ever."""
    reading, writing = os.pipe()
    os.close(reading)
    speaks = "import sys; sys.stderr.write('x' * 2**20)"
    process = start("measure", "--json", "--", sys.executable, "-S", "-c", speaks, err=writing, HIGHWATER_HOME=str(tmp_path))
    os.close(writing)
    told = json.loads(process.communicate(timeout=PATIENCE_S)[0])
    assert (told["outcome"], process.returncode) == ("completed", 0)


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_names_of_any_bytes_are_taken(tmp_path: Path) -> None:
    home = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    process = start("measure", "--json", "--", "echo", os.fsdecode(b"\xff"), HIGHWATER_HOME=str(home))
    told = json.loads(process.communicate(timeout=PATIENCE_S)[0])
    assert (told["outcome"], process.returncode) == ("completed", 0)
    assert [run.outcome for run in History(home / "history.sqlite").runs()] == ["completed"]


def test_in_a_narrow_terminal_no_name_is_cut() -> None:
    phases = [Phase(name, 2**20, 2**20, 2**20, dict.fromkeys(COMPONENTS, 2**20)) for name in ("load", "prefill", "decode")]
    shown = Output(file=io.StringIO(), width=40)
    shown.print(phase_table(phases))
    assert isinstance(shown.file, io.StringIO)
    assert "…" not in shown.file.getvalue()
    assert shown.file.getvalue().count("1.0 MiB") == 3 * (len(COMPONENTS) + 3)


@posix
@pytest.mark.parametrize(
    ("closed", "arguments", "status", "words"),
    [
        ("<&-", ["measure", "-"], 2, b"standard input"),
        ("2>&-", ["replay", "/no/such/recording"], 2, b""),
        (">&-", ["gpus"], 0, b""),
        ("<&- >&- 2>&-", ["measure", "--record", "{folder}/r.jsonl", "--", "sh", "-c", "echo out; echo err >&2"], 0, b""),
    ],
)
def test_streams_that_were_closed_before_it_began(
    closed: str, arguments: list[str], status: int, words: bytes, tmp_path: Path
) -> None:
    """What would be written there goes nowhere, and into no file that was opened since."""
    given = [word.replace("{folder}", str(tmp_path)) for word in arguments]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "main.py", *given],
        cwd=ROOT, capture_output=True, timeout=PATIENCE_S, check=False, env=os.environ | {"HIGHWATER_HOME": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, words in done.stderr, done.stderr.count(b"\n")) == (status, True, len(words) > 0), done.stderr
    for path in tmp_path.glob("r.jsonl"):
        recorded = read_recording(path)
        assert recorded.skipped_lines == 0
        assert {event["line"] for event in recorded.events if event["event"] == "log"} == {"out", "err"}
