"""``python main.py monitor`` as a process of its own, over a library that plays cards at the C boundary."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli import parser
from cli.monitor import sparkline
from probes.monitor import Holder, sort_holders
from probes.recording import read_recording
from tests.children import ending
from tests.probes.fake_nvml import H200, PROJECT, FakeNvml
from tests.timing import PATIENCE_S

GIB = 2**30


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeNvml]:
    library = FakeNvml(tmp_path_factory.mktemp("nvml"))
    yield library
    library.close()


def start(fake: FakeNvml, *arguments: str, home: Path | None = None) -> subprocess.Popen[str]:
    env = fake.environment | {"COLUMNS": "180", "HIGHWATER_HOME": str(home or fake.folder)}
    command = [sys.executable, "main.py", "monitor", *arguments]
    return subprocess.Popen(command, cwd=PROJECT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def monitor(fake: FakeNvml, *arguments: str) -> tuple[int, str, str]:
    child = start(fake, *arguments)
    out, errors = child.communicate(timeout=PATIENCE_S)
    return child.returncode, out, errors


def once(fake: FakeNvml, answers: dict[str, Any], *arguments: str) -> dict[str, Any]:
    fake.say(answers)
    status, out, errors = monitor(fake, "--once", "--json", *arguments)
    assert (status, errors) == (0, "")
    told: dict[str, Any] = json.loads(out)
    return told


def test_one_reading_names_cards_and_their_processes(fake: FakeNvml) -> None:
    told = once(fake, H200 | {"0.processes": f"{os.getpid()}:{GIB} 4194301:{2 * GIB} 1:na"})
    (gpu,) = told["gpus"]
    assert (gpu["name"], gpu["total_bytes"], gpu["utilization_percent"]) == ("NVIDIA H200", 150754820096, 37)
    assert [(process["pid"], process["used_bytes"]) for process in told["processes"]] == [
        (4194301, 2 * GIB), (os.getpid(), GIB), (1, None),
    ]  # fmt: skip
    gone, ours, _ = told["processes"]
    assert (gone["name"], gone["rss_bytes"]) == ("", None)
    assert "python" in ours["name"]
    assert ours["rss_bytes"] > 2**20
    sorted_by_pid = once(fake, H200 | {"0.processes": f"{os.getpid()}:{GIB} 1:na"}, "--sort", "pid")["processes"]
    assert [process["pid"] for process in sorted_by_pid] == [1, os.getpid()]


def test_instances_of_a_partitioned_card_are_read_each(fake: FakeNvml) -> None:
    answers = H200 | {"0.mig": 1, "0.mig_slots": 7}
    for slot, used in ((0, GIB), (2, 9 * GIB)):
        answers |= {
            f"0m{slot}.name": "NVIDIA H200 MIG 1g.18gb", f"0m{slot}.uuid": f"MIG-{slot}",
            f"0m{slot}.memory_v2.total": 10 * GIB, f"0m{slot}.memory_v2.used": used,
            f"0m{slot}.memory_v2.free": 10 * GIB - used, f"0m{slot}.memory_v2.reserved": 0,
        }  # fmt: skip
    told = once(fake, answers, "--threshold", "85")
    assert [(gpu["index"], gpu["mig_index"], gpu["used_bytes"]) for gpu in told["gpus"]] == [(0, 0, GIB), (0, 2, 9 * GIB)]
    assert told["over"] == ["0.2"]


def test_unified_memory_is_the_systems(fake: FakeNvml) -> None:
    told = once(
        fake, {"driver": "580", "cuda": 13000, "count": 1, "0.name": "NVIDIA GB10", "0.uuid": "GPU-1", "0.memory_v2.code": 3}
    )
    (gpu,) = told["gpus"]
    assert gpu["memory_source"] == "system"
    assert gpu["total_bytes"] > GIB
    assert gpu["power_watts"] is None


@pytest.mark.parametrize(
    ("code", "words"), [(9, "installed but not loaded"), (18, "was updated"), (12, "no NVIDIA driver"), (999, "failed")]
)
def test_a_driver_that_does_not_answer_is_said(fake: FakeNvml, code: int, words: str) -> None:
    fake.say({"init": code})
    for arguments in (("--once",), ("--json",), ()):
        status, out, errors = monitor(fake, *arguments)
        assert status == 3
        assert words in errors
        assert errors.count("\n") == 1
        assert (json.loads(out)["gpus"] == []) if "--json" in arguments else out == ""


def test_it_goes_on_until_it_is_interrupted_and_records(fake: FakeNvml, tmp_path: Path) -> None:
    """Memory grows past the threshold, a process comes, the card is lost: all of it is told and in the recording."""
    path = tmp_path / "m.jsonl"
    fake.say(H200)
    child = start(fake, "--json", "--interval", "0.05", "--threshold", "50", "--record", str(path))
    assert child.stdout is not None

    def until(condition: Any) -> dict[str, Any]:
        assert child.stdout is not None
        return next(told for told in map(json.loads, child.stdout) if condition(told))

    with ending(child):
        until(lambda told: told["gpus"])
        fake.say(H200 | {"0.memory_v2.used": 100 * GIB, "0.processes": f"{os.getpid()}:{99 * GIB}"})
        assert until(lambda told: told["over"])["processes"][0]["used_bytes"] == 99 * GIB
        fake.say(H200 | {"0.lost": 15})
        assert "fallen off the bus" in until(lambda told: told["gpus"][0]["trouble"])["gpus"][0]["trouble"]
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 0
    assert errors.splitlines()[-1] == f"recording: {path}"
    recorded = read_recording(path)
    assert recorded.header["order"] == {"mode": "monitor"}
    notes = [event["message"] for event in recorded.events if event["event"] == "note"]
    assert ["more than 50 %" in notes[0], "fallen off the bus" in notes[1], len(notes)] == [True, True, 2]
    samples = [event for event in recorded.events if event["event"] == "sample"]
    assert max(event["gpus"][0]["used"] or 0 for event in samples) == 100 * GIB
    assert samples[-1]["gpus"][0]["used"] is None
    lists = [event["processes"] for event in recorded.events if event["event"] == "processes"]
    assert [len(processes) for processes in lists][-2:] == [1, 0]


def test_the_picture_shows_memory_over_time(fake: FakeNvml) -> None:
    fake.say(H200 | {"0.memory_v2.used": 140 * GIB, "0.processes": f"{os.getpid()}:{GIB}"})
    status, out, _ = monitor(fake, "--for", "0.5", "--interval", "0.1")
    assert status == 0
    assert "NVIDIA H200" in out
    assert "100 %" in out
    assert "█████" in out
    assert "117 W" in out
    assert str(os.getpid()) in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--threshold", "0"], "--threshold: must be above 0"),
        (["--threshold", "nan"], "--threshold: must be above 0"),
        (["--interval", "0"], "--interval: must be from 0.02"),
        (["--for", "-1"], "--for: must be above 0"),
        (["--record", __file__], "exists already"),
    ],
)
def test_nonsense_is_told(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert parser.run(["monitor", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_processes_are_sorted_with_unknown_sizes_last() -> None:
    holders = [Holder("0", 3, None, "b"), Holder("1", 1, 5, "C"), Holder("0", 2, 9, "a")]
    orders = {sort: [holder.pid for holder in sort_holders(holders, sort)] for sort in ("memory", "pid", "name", "gpu")}
    assert orders == {"memory": [2, 1, 3], "pid": [1, 2, 3], "name": [2, 3, 1], "gpu": [2, 3, 1]}


def test_a_sparkline_leaves_gaps() -> None:
    assert sparkline([0.0, 0.5, None, 1.0, 1.2]) == "▁▅ ██"


def test_who_holds_a_card_is_told_most_first(fake: FakeNvml) -> None:
    """After a run that found no memory; processes of nobody known and without a size are left out."""
    fake.say(H200 | {"0.processes": f"{os.getpid()}:1073741824 4194304:2147483648 77:na"})
    script = "import json; from probes.monitor import who_holds; print(json.dumps(who_holds()))"
    first, second = json.loads(fake.run(script))
    assert first == "GPU 0: a process (pid 4194304) holds 2.00 GiB"
    assert second.startswith("GPU 0: ")
    assert f"(pid {os.getpid()}, " in second
    assert second.endswith("holds 1.00 GiB")
