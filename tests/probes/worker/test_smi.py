"""What is read from ``nvidia-smi``: recorded answers, and all that stands in them instead of figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from probes.worker.smi import MIB, Smi, ask, program
from tests.probes.fake_smi import GPUS, FakeSmi
from tests.timing import eventually

MIG = """<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log>
  <gpu id="00000000:01:00.0">
    <product_name>NVIDIA A100-SXM4-80GB</product_name>
    <mig_devices>
      <mig_device>
        <index>0</index> <gpu_instance_id>3</gpu_instance_id> <compute_instance_id>0</compute_instance_id>
        <fb_memory_usage> <total>19968 MiB</total> <used>12 MiB</used> <free>19955 MiB</free> </fb_memory_usage>
      </mig_device>
      <mig_device>
        <index>1</index> <gpu_instance_id>4</gpu_instance_id> <compute_instance_id>0</compute_instance_id>
        <fb_memory_usage> <total>19968 MiB</total> <used>N/A</used> <free>N/A</free> </fb_memory_usage>
      </mig_device>
    </mig_devices>
    <uuid>GPU-513536b6-7d19-9063-b049-1e69664bb298</uuid>
    <processes>
      <process_info>
        <gpu_instance_id>3</gpu_instance_id> <compute_instance_id>0</compute_instance_id>
        <pid>4242</pid> <process_name>python, with a comma</process_name> <used_memory>9 MiB</used_memory>
      </process_info>
    </processes>
  </gpu>
</nvidia_smi_log>
"""


@pytest.fixture
def smi(tmp_path: Path) -> FakeSmi:
    return FakeSmi(tmp_path / "bin")


def test_every_figure_stands_where_it_belongs(smi: FakeSmi) -> None:
    answer = ask(str(smi.path))
    first, second = answer.rows
    assert (answer.driver_version, answer.failed) == ("535.54.03", "")
    assert (first.index, first.uuid, first.pci_bus_id) == (0, "GPU-513536b6-7d19-9063-b049-1e69664bb298", "00000000:01:00.0")
    assert first.name == "NVIDIA A100-SXM4-80GB"
    assert (first.total_bytes, first.used_bytes, first.free_bytes) == (81920 * MIB, 4051 * MIB, 76998 * MIB)
    assert (first.utilization_percent, first.power_watts, first.temperature_celsius) == (37.0, 67.03, 27.0)
    assert first.processes == ((4242, 4000 * MIB), (7, None))
    assert (second.utilization_percent, second.power_watts, second.processes) == (None, None, ())


@pytest.mark.parametrize(
    "word", ["[N/A]", "[Not Supported]", "[Insufficient Permissions]", "[Unknown Error]", "N/A", "", "17592186044415", "-1", "12.5"]
)
def test_what_is_no_size_is_not_told(smi: FakeSmi, word: str) -> None:
    """The last but two are a sentinel of some Windows drivers above the total."""
    smi.say("gpus", f"0, GPU-1, 00000000:01:00.0, 535.161.08, 81920, {word}, {word}, {word}, {word}, {word}, [N/A], NVIDIA A100\n")
    (row,) = ask(str(smi.path)).rows
    assert (row.total_bytes, row.used_bytes, row.free_bytes) == (81920 * MIB, None, None)


def test_without_permission_the_card_is_there_and_its_memory_is_not(smi: FakeSmi) -> None:
    """As an unprivileged container on a card in MIG mode is answered, whose instances are in the other form."""
    hidden = ", ".join(["[Insufficient Permissions]"] * 3)
    smi.say(
        "gpus",
        "0, GPU-513536b6-7d19-9063-b049-1e69664bb298, 00000000:01:00.0, 535.161.08, "
        f"{hidden}, [N/A], 60.1, 47, Enabled, NVIDIA A100\n",
    )
    smi.say("xml", "", status=4)
    (row,) = ask(str(smi.path)).rows
    assert (row.name, row.mig_index, row.total_bytes) == ("NVIDIA A100", None, None)
    smi.say("xml", f"WARNING: infoROM is corrupted\n{MIG}")
    rows = ask(str(smi.path)).rows
    assert [(row.index, row.mig_index, row.total_bytes, row.used_bytes) for row in rows] == [
        (0, 0, 19968 * MIB, 12 * MIB), (0, 1, 19968 * MIB, None),
    ]  # fmt: skip
    assert [row.processes for row in rows] == [((4242, 9 * MIB),), ()]


def test_the_instances_stand_between_the_other_cards(smi: FakeSmi) -> None:
    smi.say("gpus", GPUS.replace("27, Disabled", "27, Enabled"))
    smi.say("xml", MIG)
    assert [(row.index, row.mig_index) for row in ask(str(smi.path)).rows] == [(0, 0), (0, 1), (1, None)]


def test_a_driver_that_knows_no_mig_is_asked_without_it(smi: FakeSmi) -> None:
    smi.say("gpus", 'Field "mig.mode.current" is not a valid field to query.\n', status=2)
    smi.say("gpus_older", "0, GPU-1, 00000000:01:00.0, 418.87, 16280, 10, 16270, 0, 25.1, 30, Tesla P100, one with a comma\n")
    (row,) = ask(str(smi.path)).rows
    assert (row.name, row.used_bytes) == ("Tesla P100, one with a comma", 10 * MIB)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 535.161\n", 18),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", 9),
        ("No devices were found\n", 6),
        ("Unable to determine the device handle for GPU 0000:02:00.0: GPU is lost.  Reboot the system to recover this GPU\n", 15),
    ],
)
def test_what_it_says_instead_is_passed_on(smi: FakeSmi, text: str, status: int) -> None:
    smi.say("gpus", text, status=status)
    answer = ask(str(smi.path))
    assert (answer.rows, answer.failed) == ((), " ".join(text.split()))


def test_a_program_that_cannot_be_run_or_says_nothing_is_told(smi: FakeSmi, tmp_path: Path) -> None:
    smi.say("gpus", "", status=255)
    assert ask(str(smi.path)).failed == "nvidia-smi ended with exit status 255"
    assert "could not be started" in ask(str(tmp_path / "none")).failed


def test_it_is_found_on_the_path(smi: FakeSmi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(smi.folder))
    assert program() == str(smi.path)


def until(smi: Smi, word: str, wanted: object) -> None:
    assert eventually(lambda: getattr(smi.read().rows[0], word) == wanted)


def test_it_is_asked_again_while_it_is_read_and_a_lost_card_stays_with_its_trouble(smi: FakeSmi) -> None:
    asked = Smi(str(smi.path))
    until(asked, "used_bytes", 4051 * MIB)
    smi.say("gpus", GPUS.replace(" 4051,", " 5000,"))
    until(asked, "used_bytes", 5000 * MIB)
    lost = "Unable to determine the device handle for GPU 0000:01:00.0: GPU is lost."
    smi.say("gpus", lost, status=15)
    until(asked, "trouble", lost)
    row = asked.read().rows[0]
    assert (row.used_bytes, row.total_bytes) == (None, 81920 * MIB)
    smi.say("gpus", GPUS)
    until(asked, "used_bytes", 4051 * MIB)
    asked.close()
