"""AMD's driver through a library that replays a card's answers and errors, beside NVIDIA's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from probes.amd import LIBRARY_NOT_FOUND, state_of
from tests.probes.fake_nvml import H200, PROJECT, FakeNvml

MI300X = {
    "sockets": 1, "version": 26, "0.name": "AMD Instinct MI300X", "0.uuid": "11ff74a1-0000-1000-80b2-0c4f5e6a7b81",
    "0.bdf": "0x100002300", "0.driver": "6.12.12", "0.total": 206141652992, "0.used": 297275392,
    "0.busy": 41, "0.current": 137, "0.hotspot": 44, "0.processes": "",
}  # fmt: skip
READ = """
import json
from probes.amd import AmdSmi
amd = AmdSmi()
readings = [reading.to_json() for reading in amd.readings()]
memory = [reading.to_json() for reading in amd.memory()]
print(json.dumps({"state": [amd.state.code, str(amd.state)], "readings": readings, "memory": memory, "driver": amd.driver_version}))
amd.close()
"""


def compile_library(folder: Path, *defines: str) -> None:
    """Put ``libamd_smi.so`` into the folder."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler on Linux to build the stand-in for libamd_smi.so")
    source = Path(__file__).with_name("fake_amdsmi.c")
    flags = [f"-D{define}" for define in defines]
    subprocess.run([compiler, "-shared", "-fPIC", *flags, "-o", folder / "libamd_smi.so", source], check=True, timeout=200)


class Fake:
    """Folders with the library, by the version that it plays, and the answers it reads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.answers = folder / "answers.txt"

    def read(self, answers: Mapping[str, object], *defines: str, script: str = READ) -> dict[str, Any]:
        folder = self._folder / ("-".join(defines) or "plain")
        if not folder.is_dir():
            folder.mkdir()
            compile_library(folder, *defines)
        self.answers.write_text("".join(f"{key}={value}\n" for key, value in answers.items()))
        environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "FAKE_AMDSMI": str(self.answers)}
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=PROJECT, env=environment, capture_output=True, text=True, check=False, timeout=200
        )
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Fake:
    return Fake(tmp_path_factory.mktemp("amdsmi"))


def test_a_healthy_card_is_read_in_full(fake: Fake) -> None:
    seen = fake.read(MI300X | {"0.processes": "4242:7:1073741824 77:4096:0"})
    assert seen["state"] == [0, ""]
    assert seen["driver"] == "6.12.12"
    assert seen["readings"] == [
        {
            "index": 0,
            "mig_index": None,
            "uuid": MI300X["0.uuid"],
            "pci_bus_id": "00000001:23:00.0",
            "name": "AMD Instinct MI300X",
            "total_bytes": 206141652992,
            "used_bytes": 297275392,
            "free_bytes": 206141652992 - 297275392,
            "reserved_bytes": None,
            "memory_source": "amdsmi",
            "utilization_percent": 41.0,
            "power_watts": 137.0,
            "temperature_celsius": 44.0,
            "processes": [{"pid": 4242, "used_bytes": 1073741824}, {"pid": 77, "used_bytes": 4096}],
            "trouble": "",
        }
    ]
    assert seen["memory"][0]["used_bytes"] == 297275392


def test_the_structures_of_older_versions_are_read_too(fake: Fake) -> None:
    answers = MI300X | {"version": 24, "0.processes": "4242:7:1073741824 77:4096:0", "0.edge": 39}
    (reading,) = fake.read(answers, "SHORT_STRINGS")["readings"]
    assert reading["processes"] == [{"pid": 4242, "used_bytes": 1073741824}, {"pid": 77, "used_bytes": 4096}]
    assert (reading["power_watts"], reading["temperature_celsius"]) == (137.0, 39.0)


def test_fields_a_card_does_not_have_are_na(fake: Fake) -> None:
    answers = {key: value for key, value in MI300X.items() if key.split(".")[-1] not in ("busy", "current", "hotspot", "processes")}
    (reading,) = fake.read(answers | {"0.average": 55, "0.used": 2**60})["readings"]
    told = {key: reading[key] for key in ("utilization_percent", "power_watts", "temperature_celsius", "used_bytes", "processes")}
    assert told == {
        "utilization_percent": None, "power_watts": 55.0, "temperature_celsius": None, "used_bytes": None, "processes": [],
    }  # fmt: skip


def test_a_card_that_is_gone_is_asked_no_more_and_the_others_are_kept(fake: Fake) -> None:
    second = {key.replace("0.", "1."): value for key, value in MI300X.items() if key.startswith("0.")}
    seen = fake.read(MI300X | second | {"sockets": 3, "2.type": 2, "0.used.code": 31})
    first, other = seen["memory"]
    assert "does not answer any more" in first["trouble"]
    assert first["used_bytes"] is None
    assert (other["index"], other["trouble"], other["used_bytes"]) == (1, "", 297275392)


@pytest.mark.parametrize(
    ("code", "words"), [(34, "modprobe amdgpu"), (10, "group render"), (4294967295, "status 4294967295"), (18, "amd-smi list")]
)
def test_a_driver_that_does_not_start_is_a_state_with_a_remedy(fake: Fake, code: int, words: str) -> None:
    seen = fake.read({"init": code})
    assert seen["readings"] == []
    assert words in seen["state"][1]


def test_without_the_library_there_are_no_gpus_and_a_word_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from probes import amd

    monkeypatch.setattr(amd, "_load", lambda: None)
    found = amd.AmdSmi()
    assert found.readings() == ()
    assert found.state == state_of(LIBRARY_NOT_FOUND)


def test_processes_are_listed_once_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver makes the list slowly."""
    from probes import amd

    asked: list[str] = []

    class Library:
        def __getattr__(self, name: str) -> Callable[..., int]:
            def call(*_arguments: object) -> int:
                asked.append(name)
                return 0

            return call

    found = amd.AmdSmi()
    found._library = Library()
    found._devices = [amd._Device(0, amd.ctypes.c_void_p(1))]
    for _ in range(5):
        found.readings()
    assert asked.count("amdsmi_get_gpu_process_list") == 1


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeNvml]:
    library = FakeNvml(tmp_path_factory.mktemp("nvml"))
    yield library
    library.close()


def test_the_monitor_watches_both(fake: Fake, nvml: FakeNvml) -> None:
    nvml.say(H200)
    script = f"""
import json, os
os.environ["FAKE_NVML"] = {str(nvml.answers)!r}
from probes.monitor import Monitor
print(json.dumps(Monitor(sort="pid").read().to_json()))
"""
    compile_nvml = nvml.folder / "libnvidia-ml.so.1"
    (fake._folder / "plain").mkdir(exist_ok=True)
    shutil.copy(compile_nvml, fake._folder / "plain" / compile_nvml.name)
    if not (fake._folder / "plain" / "libamd_smi.so").exists():
        compile_library(fake._folder / "plain")
    told = fake.read(MI300X | {"0.processes": f"{os.getpid()}:7:4096"}, script=script)
    assert [(gpu["index"], gpu["name"]) for gpu in told["gpus"]] == [(0, "NVIDIA H200"), (1, "AMD Instinct MI300X")]
    assert [(holder["gpu"], holder["pid"], holder["used_bytes"]) for holder in told["processes"]] == [("1", os.getpid(), 4096)]
