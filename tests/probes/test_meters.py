from __future__ import annotations

import subprocess
import sys

import psutil

from probes.meters import ProbeMeters, ProcessTree, descendants, kernel_oom_kills
from probes.nvml import Nvml
from probes.readings import GpuReading, MemoryReading
from tests.timing import eventually

HOLD = "import sys; held = bytearray(b'x' * {size}); print('ready', flush=True); sys.stdin.read()"
MIB = 2**20


def test_a_tree_counts_its_children() -> None:
    grandchild = HOLD.format(size=64 * MIB)
    script = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, '-S', '-c', {grandchild!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print('ready', flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-S", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        alone = psutil.Process(child.pid).memory_info().rss
        tree = ProcessTree(child.pid)
        whole = tree.rss_bytes()
        assert whole is not None
        assert len(tree.pids) == 2
        assert whole - alone >= 64 * MIB
        assert child.stdin is not None
        child.stdin.close()
        child.wait(10)
    assert eventually(lambda: tree.rss_bytes() is None)


def test_children_that_ended_are_forgotten() -> None:
    """A script that starts one short command after another, for hours."""
    script = """
import subprocess, sys
for line in sys.stdin:
    child = subprocess.Popen([sys.executable, '-S', '-c', 'input()'], stdin=subprocess.PIPE)
    print('ready', flush=True)
    sys.stdin.readline()
    child.communicate(b'\\n')
    print('ended', flush=True)
"""
    arguments = [sys.executable, "-S", "-c", script]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        tree = ProcessTree(child.pid)
        for _ in range(3):
            child.stdin.write("start\n")
            assert child.stdout.readline() == "ready\n"
            tree.walk()
            assert len(tree.pids) == 2
            child.stdin.write("end\n")
            assert child.stdout.readline() == "ended\n"
        tree.walk()
        assert tree.pids == (child.pid,)


def test_children_of_every_thread_are_found_as_psutil_finds_them() -> None:
    script = """
import subprocess, sys, threading
def start():
    held.append(subprocess.Popen([sys.executable, '-S', '-c', 'import sys; sys.stdin.read()'], stdin=subprocess.PIPE))
    started.set()
    ended.wait()
held, started, ended = [], threading.Event(), threading.Event()
thread = threading.Thread(target=start, daemon=True)
thread.start()
started.wait()
print('ready', flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-S", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        process = psutil.Process(child.pid)
        found = descendants(process)
        assert len(found) == 1
        assert found.keys() == {one.pid for one in process.children(recursive=True)}
        assert child.stdin is not None
        child.stdin.close()


def test_a_process_that_never_was_has_no_memory() -> None:
    assert ProcessTree(2**22 + 1).rss_bytes() is None


def test_the_kernels_oom_counter_is_read_where_there_is_one() -> None:
    count = kernel_oom_kills()
    assert count is None or count >= 0
    assert sys.platform != "linux" or count is not None


class Card(Nvml):
    """One card whose answers a test sets."""

    used_bytes: int | None = 100
    trouble = ""

    def readings(self) -> tuple[GpuReading, ...]:
        return (GpuReading(0, "u", "n", MemoryReading(1000, self.used_bytes, 50), trouble=self.trouble),)

    memory = readings


def test_delta_is_against_what_was_used_before_and_na_stays_na() -> None:
    nvml = Card()
    meters = ProbeMeters(psutil.Process().pid, nvml, nvml.readings())
    nvml.used_bytes = 130
    first = meters.read()["gpus"]
    nvml.used_bytes = None
    second = meters.read()["gpus"]
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert (first[0]["used"], first[0]["delta"], first[0]["process"]) == (130, 30, None)
    assert (second[0]["used"], second[0]["delta"]) == (None, None)
    assert "power_watts" in first[0]
    assert "power_watts" not in second[0]


def test_a_trouble_is_told_once() -> None:
    nvml = Card()
    meters = ProbeMeters(psutil.Process().pid, nvml, nvml.readings())
    nvml.trouble = "The GPU has fallen off the bus."
    meters.read()
    meters.read()
    assert meters.new_troubles() == ["GPU 0: The GPU has fallen off the bus."]
    meters.read()
    assert meters.new_troubles() == []
