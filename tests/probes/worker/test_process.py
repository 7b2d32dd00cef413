"""The child process: its wire, its ends, its independence."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile

import pytest

from tests.children import is_gone
from tests.probes.worker.conftest import LLAMA, ROOT, Events, order_json
from tests.timing import eventually

SHORT = {"batch": 1, "prompt_tokens": 16, "new_tokens": 2}
LONG = {"batch": 2, "prompt_tokens": 64, "new_tokens": 100_000}


def events_of(child):
    out, err = child.communicate(timeout=240)
    return [json.loads(line) for line in out.splitlines()], err.decode()


def test_measurement_speaks_only_the_wire(spawn_worker):
    child = spawn_worker(order_json("measure", LLAMA, "inference", SHORT, sample_interval_s=0.01))
    events, _ = events_of(child)
    assert child.returncode == 0
    assert all({"event", "t"} <= event.keys() for event in events)
    names = [event["event"] for event in events]
    assert names[-1] == "result"
    assert {"hello", "progress", "phase", "memory"} <= set(names)
    assert names.count("hello") == 1
    hello = events[names.index("hello")]
    assert hello["protocol"] == 1
    assert hello["pid"] == child.pid
    assert hello["device"]["type"] == "cpu"
    memory = [event for event in events if event["event"] == "memory"]
    assert all(event["reserved"] == event["allocated"] and 0 < event["free"] <= event["total"] for event in memory)


def test_fault_is_one_error_event(spawn_worker):
    child = spawn_worker(b"{\n")
    child.stdin.close()
    child.stdin = None
    events, _ = events_of(child)
    assert child.returncode == 2
    assert [event["kind"] for event in events if event["event"] == "error"] == ["bad_order"]
    assert events[-1]["message"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("order", "kind", "status"),
    [
        ("", "bad_order", 2),
        (order_json("measure", LLAMA, "inference", SHORT, device="cuda:9"), "no_device", 3),
        (order_json("measure", {"hidden_size": 8}, "inference", SHORT), "bad_config", 2),
        (order_json("measure", {"model_type": "unheard-of"}, "inference", SHORT), "unsupported", 3),
        (order_json("measure", LLAMA | {"num_attention_heads": "many"}, "inference", SHORT), "bad_config", 2),
        (order_json("measure", LLAMA, "training", {"optimizer": "galore"}), "unsupported", 3),
        (order_json("rehearse", LLAMA, "training", {"optimizer": "adamw_9bit"}), "unsupported", 3),
        (order_json("measure", LLAMA, "training", {"optimizer": "adamw_8bit"}), "missing_package", 3),
        (order_json("rehearse", LLAMA, "training", {"method": "lora", "lora": {"targets": ["c_attn"]}}), "bad_order", 2),
        (order_json("measure", LLAMA, "inference", SHORT, scenario={"weights": "gguf:Q4_K_M"}), "unsupported", 3),
    ],
)
def test_fault_names_its_kind(order, kind, status):
    from probes.worker.main import serve

    events = Events()
    assert serve(json.dumps(order).encode() if order else b"\n", events) == status
    event, fields = events[-1]
    assert (event, fields["kind"]) == ("error", kind)
    assert fields["message"]


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_a_missing_library_is_told_with_its_remedy(monkeypatch, name):
    from probes.worker.main import serve

    monkeypatch.setitem(sys.modules, name, None)
    events = Events()
    assert serve(json.dumps(order_json("rehearse", LLAMA, "inference", SHORT)).encode(), events) == 3
    assert events[-1][1]["kind"] == "missing_package"
    assert events[-1][1]["message"] == f"{name} is not installed here: python -m pip install {name}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(importlib.util.find_spec("natten") is not None, reason="natten is installed")
def test_a_class_that_needs_a_missing_package_names_it():
    from probes.worker.main import serve

    events = Events()
    assert serve(json.dumps(order_json("rehearse", {"model_type": "dinat"}, "inference", SHORT)).encode(), events) == 3
    assert events[-1][1]["kind"] == "missing_package"
    assert "pip install natten" in events[-1][1]["message"]


def test_a_rehearsal_sees_no_gpu_of_this_machine(monkeypatch):
    """The card that is played is the one that is named."""
    from probes.worker.main import serve

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    serve(json.dumps(order_json("measure", LLAMA, "inference", SHORT, scenario={"weights": "?"})).encode(), Events())
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    serve(json.dumps(order_json("rehearse", LLAMA, "inference", SHORT, scenario={"weights": "?"})).encode(), Events())
    assert not os.environ["CUDA_VISIBLE_DEVICES"]


def wait_for(child, event):
    for line in child.stdout:
        if json.loads(line)["event"] == event:
            return
    pytest.fail(f"no {event} event: {child.stderr.read().decode()[-2000:]}")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "event"), [(signal.SIGINT, "memory"), (signal.SIGTERM, "progress")])
def test_signal_ends_with_an_interrupted_error(spawn_worker, number, event):
    """In the middle of the load, and while libraries are still being imported."""
    child = spawn_worker(order_json("measure", LLAMA, "inference", LONG))
    wait_for(child, event)
    child.send_signal(number)
    *_, last = child.stdout
    assert json.loads(last)["kind"] == "interrupted"
    assert child.wait(60) == 130


@pytest.mark.skipif(sys.platform == "win32", reason="process ids of POSIX")
def test_worker_ends_with_its_parent(tmp_path):
    order = json.dumps(order_json("measure", LLAMA, "inference", LONG, sample_interval_s=600))
    script = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-m', 'probes.worker'], stdin=subprocess.PIPE, stdout=open(sys.argv[1], 'w'))\n"
        "child.stdin.write(sys.stdin.buffer.readline()); child.stdin.flush(); print(child.pid, flush=True); child.wait()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "events")], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    parent.stdin.write(order.encode() + b"\n")
    parent.stdin.flush()
    pid = int(parent.stdout.readline())
    assert eventually(lambda: '"progress"' in (tmp_path / "events").read_text())
    parent.kill()
    parent.communicate()
    assert is_gone(pid)


def test_zipped_package_runs_elsewhere(spawn_worker, tmp_path):
    with zipfile.ZipFile(tmp_path / "worker.zip", "w") as archive:
        for path in sorted((ROOT / "probes" / "worker").glob("*.py")):
            archive.write(path, f"worker/{path.name}")
    shutil.copy(tmp_path / "worker.zip", tmp_path / "w.zip")
    code = "import sys; sys.path.insert(0, 'w.zip'); from worker.main import main; main()"
    child = spawn_worker(order_json("rehearse", LLAMA, "inference", SHORT), ("-c", code), tmp_path)
    events, err = events_of(child)
    assert child.returncode == 0, err
    assert events[-1]["outcome"] == "completed"


@pytest.mark.filterwarnings("ignore")
def test_budget_exceeded_is_a_result(run_worker):
    whole = run_worker("measure", "llama", "training", {"sequence": 64})
    budget = whole.phases["backward", 2][0] - 1
    events = run_worker("measure", "llama", "training", {"sequence": 64}, budget_bytes=budget)
    assert events.result["outcome"] == "out_of_memory"
    assert events.result["requested_bytes"] > events.result["free_bytes"] >= 0
    assert events.result["phase"] in {"forward", "backward", "optimizer"}
    assert ("load", 0) in events.phases


@pytest.mark.filterwarnings("ignore")
def test_fewer_layers(run_worker):
    events = run_worker("rehearse", "llama", "inference", SHORT, layers=1)
    assert events.result["layers"] == 1
