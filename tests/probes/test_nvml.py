"""The NVML gate over real pynvml and a library that replays a card's answers and errors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psutil
import pytest

from probes.nvml import Nvml, _checked, cuda_version, state_of
from probes.readings import DriverState, MemoryReading
from tests.probes.fake_nvml import H200, PROJECT, FakeNvml

READ = """
import json
from probes.nvml import Nvml
nvml = Nvml()
readings = [reading.to_json() for reading in nvml.readings()]
memory = [reading.to_json() for reading in nvml.memory()]
print(json.dumps({"state": [nvml.state.code, nvml.state.words, nvml.state.remedy], "readings": readings,
                  "memory": memory, "driver": nvml.driver_version, "cuda": nvml.cuda_version}))
"""


Make = Callable[..., FakeNvml]
Read = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """A library with the given answers; the arguments after them leave functions out of it."""
    made: dict[tuple[str, ...], FakeNvml] = {}

    def build(answers: Mapping[str, object], *defines: str) -> FakeNvml:
        if defines not in made:
            made[defines] = FakeNvml(tmp_path_factory.mktemp("nvml"), *defines)
        made[defines].say(answers)
        return made[defines]

    yield build
    for fake in made.values():
        fake.close()


@pytest.fixture
def read(make: Make) -> Read:
    """What :class:`Nvml` reads from a library with the given answers."""
    return lambda answers, *defines: json.loads(make(answers, *defines).run(READ))


def test_a_healthy_card_is_read_in_full(read: Read) -> None:
    seen = read(H200 | {"0.processes": "4242:1073741824 77:na"})
    assert seen["state"][0] == 0
    assert (seen["driver"], seen["cuda"]) == ("580.65.06", "13.0")
    assert seen["readings"] == [
        {
            "index": 0,
            "mig_index": None,
            "uuid": H200["0.uuid"],
            "pci_bus_id": H200["0.pci"],
            "name": "NVIDIA H200",
            "total_bytes": 150754820096,
            "used_bytes": 4653056,
            "free_bytes": 150116040704,
            "reserved_bytes": 634126336,
            "memory_source": "nvml-v2",
            "utilization_percent": 37.0,
            "power_watts": 117.25,
            "temperature_celsius": 34.0,
            "processes": [{"pid": 4242, "used_bytes": 1073741824}, {"pid": 77, "used_bytes": None}],
            "trouble": "",
        }
    ]


@pytest.mark.parametrize(
    ("defines", "error"),
    [(("WITHOUT_MEMORY_V2",), {}), ((), {"0.memory_v2.code": 3}), ((), {"0.memory_v2.code": 999})],
    ids=["absent", "not supported", "unknown error"],
)
def test_without_v2_memory_falls_back_to_v1_and_says_so(read: Read, defines: tuple[str, ...], error: dict[str, int]) -> None:
    (card,) = read(H200 | error, *defines)["readings"]
    assert card["memory_source"] == "nvml-v1"
    assert card["used_bytes"] == H200["0.memory_v1.used"]
    assert card["reserved_bytes"] is None


def test_processes_fall_back_to_v2(read: Read) -> None:
    (card,) = read(H200 | {"0.processes": "5:4096"}, "WITHOUT_PROCESSES_V3")["readings"]
    assert card["processes"] == [{"pid": 5, "used_bytes": 4096}]


def test_a_used_sentinel_above_total_is_rejected(read: Read) -> None:
    (card,) = read(H200 | {"0.memory_v2.used": 2**64 - 2**20})["readings"]
    assert card["used_bytes"] is None
    assert card["free_bytes"] == H200["0.memory_v2.free"]


def test_fields_a_device_does_not_have_are_na(read: Read) -> None:
    errors = {"0.utilization.code": 3, "0.power.code": 3, "0.temperature.code": 4, "0.processes.code": 6}
    (card,) = read(H200 | errors)["readings"]
    assert [card[key] for key in ("utilization_percent", "power_watts", "temperature_celsius")] == [None] * 3
    assert card["processes"] == []
    assert card["trouble"] == ""


@pytest.mark.parametrize("name", ["NVIDIA GB10", "Orin (nvgpu)"])
@pytest.mark.parametrize("total", [None, 0], ids=["not supported", "total 0"])
def test_unified_memory_reads_the_system(read: Read, name: str, total: int | None) -> None:
    answers = {key: value for key, value in H200.items() if ".memory_" not in key} | {"0.name": name}
    if total is not None:
        answers |= {"0.memory_v2.total": 0, "0.memory_v1.total": 0}
    (card,) = read(answers)["readings"]
    assert card["memory_source"] == "system"
    assert card["total_bytes"] == psutil.virtual_memory().total
    assert card["used_bytes"] + card["free_bytes"] == card["total_bytes"]


def test_a_discrete_card_without_memory_figures_stays_na(read: Read) -> None:
    answers = {key: value for key, value in H200.items() if ".memory_" not in key}
    (card,) = read(answers)["readings"]
    assert (card["memory_source"], card["total_bytes"]) == ("none", None)


def test_no_permission_is_hidden_and_not_zero(read: Read) -> None:
    (card,) = read(H200 | {"0.memory_v2.code": 4})["readings"]
    assert (card["memory_source"], card["used_bytes"]) == ("hidden", None)


@pytest.mark.parametrize(
    ("code", "words", "remedy"),
    [
        (9, "not loaded", "modprobe"),
        (18, "updated", "Reboot"),
        (4, "may not read", "/dev/nvidia"),
        (12, "no NVIDIA driver", "catalog"),
        (77, "a brand new error", "nvidia-smi"),
    ],
)
def test_a_driver_that_does_not_start_is_a_state_with_a_remedy(read: Read, code: int, words: str, remedy: str) -> None:
    seen = read({"init": code})
    assert seen["state"][0] == code
    assert words in seen["state"][1]
    assert remedy in seen["state"][2]
    assert seen["readings"] == []


def test_every_error_number_of_nvml_has_words() -> None:
    import pynvml

    codes = [value for name, value in vars(pynvml).items() if name.startswith("NVML_ERROR_")]
    assert len(codes) > 25
    assert all(state_of(code, str(pynvml.NVMLError(code))).words for code in codes)


def test_a_lost_gpu_is_asked_no_more_and_the_others_are_kept(make: Make) -> None:
    other = {key.replace("0.", "1.", 1): value for key, value in H200.items() if key.startswith("0.")}
    both = H200 | other | {"count": 2, "1.uuid": "GPU-2"}
    fake = make(both)
    script = f"""
import json, pathlib
from probes.nvml import Nvml
nvml, answers = Nvml(), pathlib.Path({str(fake.answers)!r})
before = nvml.memory()
healthy = answers.read_text()
answers.write_text("0.lost=15\\n" + healthy)
during = nvml.memory()
answers.write_text(healthy)
after = nvml.readings()
print(json.dumps([[r.to_json() for r in series] for series in (before, during, after)]))
"""
    before, during, after = json.loads(fake.run(script))
    assert [card["trouble"] for card in before] == ["", ""]
    assert "fallen off the bus" in during[0]["trouble"]
    assert during[0]["used_bytes"] is None
    assert during[1]["used_bytes"] == H200["0.memory_v2.used"]
    assert "fallen off the bus" in after[0]["trouble"]
    assert after[1]["utilization_percent"] == 37


def test_a_passing_failure_does_not_change_what_used_means(make: Make) -> None:
    fake = make(H200)
    script = f"""
import json, pathlib
from probes.nvml import Nvml
nvml, answers = Nvml(), pathlib.Path({str(fake.answers)!r})
nvml.memory()
answers.write_text("0.memory_v2.code=10\\n" + answers.read_text())
print(json.dumps(nvml.memory()[0].to_json()))
"""
    card = json.loads(fake.run(script))
    assert (card["memory_source"], card["used_bytes"]) == ("none", None)


def test_mig_instances_take_the_place_of_their_gpu(read: Read) -> None:
    answers = H200 | {"0.mig": 1, "0.mig_slots": 7}
    for slot, total in ((0, 18253611008), (2, 37580963840)):
        answers |= {
            f"0m{slot}.name": "NVIDIA H200 MIG", f"0m{slot}.uuid": f"MIG-{slot}",
            f"0m{slot}.memory_v2.total": total, f"0m{slot}.memory_v2.used": slot + 1,
            f"0m{slot}.memory_v2.free": 5, f"0m{slot}.memory_v2.reserved": 6,
        }  # fmt: skip
    cards = read(answers)["readings"]
    assert [(card["index"], card["mig_index"], card["uuid"]) for card in cards] == [(0, 0, "MIG-0"), (0, 2, "MIG-2")]
    assert [card["total_bytes"] for card in cards] == [18253611008, 37580963840]
    assert cards[1]["power_watts"] is None


def test_a_handle_that_cannot_be_had_is_that_devices_trouble(read: Read) -> None:
    (card,) = read(H200 | {"0.handle.code": 16})["readings"]
    assert "needs a reset" in card["trouble"]


def test_process_bytes_need_a_match_that_is_not_zero(make: Make) -> None:
    fake = make(H200 | {"0.processes": "10:100 11:23 12:0 13:na"})
    script = """
from probes.nvml import Nvml
(card,) = Nvml().readings()
print([card.process_bytes(pids) for pids in ([10, 11], [12], [13], [99], [])])
"""
    assert fake.run(script).strip() == "[123, None, None, None, None]"


def test_unknown_functions_are_logged_once(make: Make) -> None:
    fake = make(H200, "WITHOUT_MEMORY_V2")
    script = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
from probes.nvml import Nvml
nvml = Nvml()
nvml.call("nvmlNoSuchThing"), nvml.call("nvmlNoSuchThing")
nvml.open()
nvml.call("nvmlNoSuchThing"), nvml.call("nvmlNoSuchThing")
"""
    assert fake.run(script).count("nvmlNoSuchThing is unknown") == 1


def test_without_the_binding_the_state_names_the_package() -> None:
    script = "import sys; sys.modules['pynvml'] = None; from probes.nvml import Nvml; print(Nvml().open().remedy)"
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "pip install nvidia-ml-py"


def test_this_machine_gets_a_state_whatever_it_has() -> None:
    nvml = Nvml()
    readings = nvml.readings()
    assert nvml.state.available or nvml.state.words
    assert nvml.state.available or readings == ()
    nvml.close()
    assert nvml.state == DriverState()


def test_cuda_version_numbers() -> None:
    assert [cuda_version(number) for number in (13000, 12080, None, 0)] == ["13.0", "12.8", "", ""]


def test_values_at_the_total_are_kept() -> None:
    class Info:
        total, used, free = 10, 10, 11

    assert _checked(Info, "nvml-v1", 10) == MemoryReading(10, 10, None, 10, "nvml-v1")
