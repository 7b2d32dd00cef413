"""A stand-in for the NVIDIA driver's library at the C boundary: compiled once, found by the loader, real pynvml on top."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.timing import PATIENCE_S

SOURCE = Path(__file__).with_suffix(".c")
PROJECT = SOURCE.parents[2]

# As `nvidia-smi` shows them on an idle card: round numbers would hide a swapped field.
H200 = {
    "driver": "580.65.06", "cuda": 13000, "count": 1,
    "0.name": "NVIDIA H200", "0.uuid": "GPU-6d1f8f0e-0000-4000-8000-000000000001",
    "0.pci": "00000000:19:00.0",
    "0.memory_v2.total": 150754820096, "0.memory_v2.used": 4653056,
    "0.memory_v2.free": 150116040704, "0.memory_v2.reserved": 634126336,
    "0.memory_v1.total": 150754820096, "0.memory_v1.used": 638779392, "0.memory_v1.free": 150116040704,
    "0.utilization": 37, "0.power": 117250, "0.temperature": 34, "0.processes": "",
}  # fmt: skip


# Runs the scripts it is sent one after the other: starting Python and loading the binding costs more than a test.
_RUNNER = """
import contextlib, io, json, sys, traceback
for line in sys.stdin:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            exec(json.loads(line), {"__name__": "script"})
        except Exception:
            printed = io.StringIO("FAILED " + traceback.format_exc())
    print(json.dumps(printed.getvalue()), flush=True)
"""


class FakeNvml:
    """A folder with the library and the file of answers that it reads at every call; a Python process that uses it."""

    def __init__(self, folder: Path, *defines: str) -> None:
        self.folder = folder
        self.answers = folder / "answers.txt"
        self.say({})
        compile_library(folder, *defines)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _RUNNER], cwd=PROJECT, env=self.environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def say(self, answers: Mapping[str, object]) -> None:
        """Answer so from now on."""
        fresh = self.answers.with_suffix(".new")
        fresh.write_text("".join(f"{key}={value}\n" for key, value in answers.items()))
        fresh.replace(self.answers)

    @property
    def environment(self) -> dict[str, str]:
        """The variables under which a process meets this library."""
        return {**os.environ, "LD_LIBRARY_PATH": str(self.folder), "FAKE_NVML": str(self.answers)}

    def run(self, script: str) -> str:
        """Run a Python script against the library; what it prints."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(script) + "\n")
        self._process.stdin.flush()
        printed = str(json.loads(self._process.stdout.readline()))
        assert not printed.startswith("FAILED"), printed
        return printed

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=100)


_CHILD = """
import json, os, sys, time
sys.stdin.readline()
def answer(change):
    with open(ANSWERS + ".new", "w") as file:
        file.writelines(f"{key}={value}\\n" for key, value in (H200 | change).items())
    os.replace(ANSWERS + ".new", ANSWERS)
def until(condition):
    while not (os.path.exists(SEEN) and condition(json.load(open(SEEN)))):
        time.sleep(0.01)
"""
_SESSION = """
import json, os
from pathlib import Path
from probes.session import Limits, ProbeSession
events = []
def take(event):
    events.append(event)
    if event["event"] == "sample":
        Path(SEEN + ".new").write_text(json.dumps(event["gpus"][0]))
        os.replace(SEEN + ".new", SEEN)
order = {"version": 1, "mode": "measure", "scenario": {}, "config": {}}
with ProbeSession(order, take, recording_path=Path(RECORDING), command=COMMAND, limits=Limits(time_s=PATIENCE_S)) as session:
    session.wait()
print(json.dumps(events))
"""


def events_beside(fake: FakeNvml, folder: Path, script: str) -> list[dict[str, Any]]:
    """What a session tells that samples the card beside a child, recorded in the folder's ``r.jsonl``.

    The child's script may change what the card answers (``answer``, over an H200's) and waits until a sample meets a condition
    (``until``), so that nothing hangs on who is quicker.
    """
    names: dict[str, object] = {"ANSWERS": str(fake.answers), "SEEN": str(folder / "seen.json"), "H200": H200}
    done = 'os.write(1, b\'{"event":"result","outcome":"completed"}\\n\')\n'
    names["COMMAND"] = [sys.executable, "-S", "-c", _given(names) + _CHILD + script + done]
    names |= {"RECORDING": str(folder / "r.jsonl"), "PATIENCE_S": PATIENCE_S}
    events: list[dict[str, Any]] = json.loads(fake.run(_given(names) + _SESSION))
    return events


def _given(names: Mapping[str, object]) -> str:
    return "".join(f"{name} = {value!r}\n" for name, value in names.items())


def compile_library(folder: Path, *defines: str) -> None:
    """Put ``libnvidia-ml.so.1`` into the folder."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler on Linux to build the stand-in for libnvidia-ml.so.1")
    flags = [f"-D{define}" for define in defines]
    target = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", *flags, "-o", target, SOURCE], check=True, timeout=200)
