"""The worker's own look at the driver, where its parent is on another machine."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator

import psutil
import pytest

from tests.probes.fake_nvml import H200, FakeNvml

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch, which the extra `probe` installs")
SCRIPT = """
import json, os
from probes.worker.outside import Outside
class Wire:
    def send(self, event, **fields):
        self.told = fields
wire = Wire()
outside = Outside(wire)
with open(os.environ["FAKE_NVML"], "a") as answers:
    answers.write("0.processes=%d:900 1:5\\n" % os.getpid())
print(json.dumps([wire.told, outside.sample(with_processes=True), outside.sample(with_processes=False)]))
"""


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeNvml]:
    library = FakeNvml(tmp_path_factory.mktemp("nvml"))
    yield library
    library.close()


def test_the_driver_is_asked_without_any_package(fake: FakeNvml) -> None:
    fake.say({key: value for key, value in H200.items() if key != "0.processes"})
    told, slow, quick = json.loads(fake.run(SCRIPT))
    assert (told["remote"], told["driver"], told["cuda_driver"]) == (True, "580.65.06", "13.0")
    assert told["gpus"] == [{
        "index": 0, "mig_index": None, "uuid": H200["0.uuid"], "pci_bus_id": H200["0.pci"], "name": "NVIDIA H200",
        "total_bytes": 150754820096,
        "used_bytes": 4653056, "free_bytes": 150116040704,
    }]  # fmt: skip
    assert slow["rss"] > 2**20
    assert slow["gpus"] == [{"index": 0, "mig_index": None, "used": 4653056, "free": 150116040704, "delta": 0, "process": 900}]
    assert "process" not in quick["gpus"][0]
    assert os.uname().nodename not in json.dumps(told)


@pytest.mark.parametrize(
    ("change", "used"),
    [
        ({"0.memory_v2.code": 3}, 638779392),
        ({"0.memory_v2.code": 15, "0.memory_v1.code": 15}, None),
        ({"0.memory_v2.used": 2**60, "0.memory_v1.used": 2**60}, None),
    ],
    ids=["only the older structure", "lost", "a sentinel"],
)
def test_a_driver_that_says_less(fake: FakeNvml, change: dict[str, int], used: int | None) -> None:
    fake.say({key: value for key, value in H200.items() if key != "0.processes"} | change)
    _told, slow, _quick = json.loads(fake.run(SCRIPT))
    assert slow["gpus"][0]["used"] == used


def test_a_card_on_the_systems_memory_is_read_from_the_system(fake: FakeNvml) -> None:
    answers = {key: value for key, value in H200.items() if ".memory_" not in key and key != "0.processes"}
    fake.say(answers | {"0.name": "NVIDIA GB10", "0.memory_v2.total": 0, "0.memory_v1.total": 0})
    told, slow, _quick = json.loads(fake.run(SCRIPT))
    assert told["gpus"][0]["total_bytes"] == psutil.virtual_memory().total
    assert slow["gpus"][0]["used"] + slow["gpus"][0]["free"] == psutil.virtual_memory().total


def test_a_passing_failure_does_not_change_what_used_means_there_either(fake: FakeNvml) -> None:
    """The older structure counts what is the driver's own: a jump of 600 MB that nothing caused."""
    fake.say({key: value for key, value in H200.items() if key != "0.processes"})
    fails = SCRIPT.replace('0.processes=%d:900 1:5\\n" % os.getpid()', '0.memory_v2.code=10\\n"')
    assert fails != SCRIPT
    told, slow, _quick = json.loads(fake.run(fails))
    assert told["gpus"][0]["used_bytes"] == H200["0.memory_v2.used"]
    assert (slow["gpus"][0]["used"], slow["gpus"][0]["delta"]) == (None, None)


def test_mig_instances_take_the_place_of_their_gpu_there_too(fake: FakeNvml) -> None:
    answers: dict[str, object] = {key: value for key, value in H200.items() if key != "0.processes"}
    answers |= {"0.mig": 1, "0.mig_slots": 7}
    for slot in (0, 2):
        answers |= {
            f"0m{slot}.name": "NVIDIA H200 MIG", f"0m{slot}.uuid": f"MIG-{slot}",
            f"0m{slot}.memory_v2.total": 10**10, f"0m{slot}.memory_v2.used": slot + 1,
            f"0m{slot}.memory_v2.free": 5, f"0m{slot}.memory_v2.reserved": 6,
        }  # fmt: skip
    fake.say(answers)
    told, slow, _quick = json.loads(fake.run(SCRIPT))
    assert [(gpu["index"], gpu["mig_index"], gpu["uuid"]) for gpu in told["gpus"]] == [(0, 0, "MIG-0"), (0, 2, "MIG-2")]
    assert [(gpu["mig_index"], gpu["used"], gpu["delta"]) for gpu in slow["gpus"]] == [(0, 1, 0), (2, 3, 0)]


def test_a_driver_that_does_not_start_has_no_gpus(fake: FakeNvml) -> None:
    fake.say({"init": 9})
    told, slow, _quick = json.loads(fake.run(SCRIPT))
    assert told["gpus"] == []
    assert "gpus" not in slow
