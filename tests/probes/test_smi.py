"""``nvidia-smi`` in place of the driver's library, here and elsewhere."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from probes.amd import LIBRARY_NOT_FOUND
from probes.drivers import Drivers
from probes.nvml import BINDING_MISSING, UNKNOWN
from probes.readings import DriverState
from probes.smi import NvidiaSmi
from probes.worker.smi import MIB
from tests.probes.fake_smi import FakeSmi
from tests.probes.test_drivers import Stub

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSmi:
    fake = FakeSmi(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{fake.folder}{os.pathsep}{os.environ['PATH']}")
    return fake


def drivers(code: int) -> Iterator[Any]:
    found: Any = Drivers(Stub(0, DriverState(code)), Stub(0, DriverState(LIBRARY_NOT_FOUND)))  # type: ignore[arg-type]
    yield found
    found.close()


@pytest.mark.parametrize("code", [12, BINDING_MISSING])
def test_it_takes_the_place_of_a_library_that_is_missing(smi: FakeSmi, code: int) -> None:
    for found in drivers(code):
        assert found.open().available
        assert found.driver_version.startswith("535.54.03")
        first, second = found.readings()
        assert (first.memory.source, first.memory.used_bytes, first.utilization_percent) == ("nvidia-smi", 4051 * MIB, 37.0)
        assert first.process_bytes([4242, 7]) == 4000 * MIB
        assert second.utilization_percent != second.utilization_percent
        assert found.memory()[0].memory == first.memory


def test_a_driver_that_answers_is_asked_itself(smi: FakeSmi) -> None:
    for found in drivers(0):
        assert found.open().available
        assert found.readings() == ()


def test_what_it_says_instead_of_figures_is_the_state(smi: FakeSmi) -> None:
    smi.say("gpus", "Failed to initialize NVML: Driver/library version mismatch", status=18)
    for found in drivers(12):
        state = found.open()
        assert (state.code, found.readings()) == (UNKNOWN, ())
        assert "version mismatch" in str(state)


def test_a_card_on_the_systems_memory_reads_as_that(smi: FakeSmi) -> None:
    smi.say("gpus", "0, GPU-1, 0000000F:01:00.0, 580.95, [N/A], [N/A], [N/A], 0, 4.1, 40, [N/A], NVIDIA GB10\n")
    found = NvidiaSmi(str(smi.path))
    (gpu,) = found.readings()
    found.close()
    assert (gpu.memory.source, gpu.memory.total_bytes) == ("system", psutil.virtual_memory().total)


def test_the_monitor_shows_what_it_tells(smi: FakeSmi) -> None:
    """A process without the package that speaks to the library: the words of the verb as a person reads them."""
    blocked = "import sys; sys.modules['pynvml'] = None; import main; sys.exit(main.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", blocked, "monitor", "--once", "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert [(gpu["used_bytes"], gpu["memory_source"]) for gpu in told["gpus"]] == [
        (4051 * MIB, "nvidia-smi"),
        (50 * MIB, "nvidia-smi"),
    ]
    assert {process["pid"] for process in told["processes"]} == {4242, 7}


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch, which the extra `probe` installs")
def test_a_worker_elsewhere_reads_it_too(smi: FakeSmi, monkeypatch: pytest.MonkeyPatch) -> None:
    from probes.worker import outside

    class Wire:
        told: dict[str, Any]

        def send(self, _event: str, **fields: Any) -> None:
            self.told = fields

    monkeypatch.setattr(outside, "_load", lambda: None)
    smi.say("apps", f"GPU-513536b6-7d19-9063-b049-1e69664bb298, {os.getpid()}, 900\n")
    wire: Any = Wire()
    sent = outside.Outside(wire)
    assert (wire.told["driver"], wire.told["read_by"]) == ("535.54.03", "nvidia-smi")
    assert [(gpu["name"], gpu["used_bytes"], gpu["free_bytes"]) for gpu in wire.told["gpus"]] == [
        ("NVIDIA A100-SXM4-80GB", 4051 * MIB, 76998 * MIB), ("NVIDIA A100-SXM4-80GB", 50 * MIB, 80999 * MIB),
    ]  # fmt: skip
    sample = sent.sample(with_processes=True)
    assert [(gpu["used"], gpu["delta"], gpu["process"]) for gpu in sample["gpus"]] == [
        (4051 * MIB, 0, 900 * MIB),
        (50 * MIB, 0, None),
    ]


def _has_library() -> bool:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


@pytest.mark.skipif(_has_library(), reason="the driver's library is here, so nobody asks its program")
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch, which the extra `probe` installs")
def test_over_ssh_its_figures_are_in_the_recording(smi: FakeSmi, tmp_path: Path) -> None:
    from probes.remote import CONFIG_VARIABLE, Remote
    from tests.probes.sshd import HOST, Sshd
    from tests.probes.test_remote import Run, ramp

    (tmp_path / "sshd").mkdir()
    server = Sshd(tmp_path / "sshd")
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nPATH="{smi.folder}:$PATH" exec "{sys.executable}" "$@"\n')
    wrapper.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CONFIG_VARIABLE, str(server.config))
        run = Run(tmp_path, ramp() | {"budget_bytes": 4 * MIB}, Remote(HOST, str(wrapper)))
        try:
            with run.session:
                outcome = run.finish()
        finally:
            server.close()
    assert outcome.kind == "completed", outcome
    assert [event["read_by"] for event in run.named("environment")[1:]] == ["nvidia-smi"]
    assert run.named("sample")[0]["gpus"][0]["used"] == 4051 * MIB
