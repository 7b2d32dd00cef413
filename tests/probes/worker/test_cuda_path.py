"""What the worker does on a CUDA device, where there is none: torch's counters are played, the tensors are the CPU's.

The counters follow the live storages, so that the figures of a run must be those that it has on the CPU.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

import torch

from probes.worker import build
from probes.worker import device as devices
from probes.worker import run as worker_run
from probes.worker.attribution import Attribution
from probes.worker.errors import WorkerError
from probes.worker.loads import Load, _calibrate
from probes.worker.order import parse_order
from probes.worker.tracker import StorageTracker
from tests.probes.worker.conftest import LLAMA, Events, order_json

MIB = 2**20
TOTAL, OTHERS, CONTEXT = 141 * 2**30, 300 * MIB, 500 * MIB
WORK = {
    "inference": {"batch": 2, "prompt_tokens": 24, "new_tokens": 4},
    "training": {"batch": 2, "sequence": 32, "precision": "fp32"},
}


class Card:
    """The counters of a card whose allocator takes segments of 2 MiB."""

    def __init__(self):
        attribution = Attribution()
        self.tracker = StorageTracker(attribution)
        attribution.tracker = self.tracker
        self.fraction = None

    def reserved(self, _device=None):
        return -(-self.tracker.allocated // (2 * MIB)) * 2 * MIB

    def most_reserved(self, _device=None):
        return -(-self.tracker.peak // (2 * MIB)) * 2 * MIB

    def mem_get_info(self, _device=None):
        return TOTAL - OTHERS - CONTEXT - self.reserved(), TOTAL

    def limit(self, fraction, _device=None):
        self.fraction = fraction


@pytest.fixture
def card(monkeypatch):
    found = Card()
    properties = SimpleNamespace(
        name="NVIDIA H200", total_memory=TOTAL, major=9, minor=0, uuid="6d1f8f0e-0000-4000-8000-000000000001",
        pci_domain_id=0, pci_bus_id=25, pci_device_id=0,
    )  # fmt: skip
    block = {"size": 512, "requested_size": 500, "address": 7, "state": "active_allocated", "frames": []}
    segment = {"device": 0, "address": 7, "total_size": 2 * MIB, "allocated_size": 512, "segment_type": "small", "blocks": [block]}
    played = {
        "is_available": lambda: True, "device_count": lambda: 1, "get_device_properties": lambda _index: properties,
        "mem_get_info": found.mem_get_info, "memory_allocated": lambda _device=None: found.tracker.allocated,
        "max_memory_allocated": lambda _device=None: found.tracker.peak, "memory_reserved": found.reserved,
        "max_memory_reserved": found.most_reserved, "synchronize": lambda _device=None: None,
        "reset_peak_memory_stats": lambda _device=None: found.tracker.begin_phase(), "set_device": lambda _device: None,
        "set_per_process_memory_fraction": found.limit, "memory_snapshot": lambda: [segment],
    }  # fmt: skip
    for name, function in played.items():
        monkeypatch.setattr(torch.cuda, name, function)
    opened = devices.open_cuda

    def open_cuda(name, budget_bytes):
        assert str(opened(name, budget_bytes)) == "cuda:0"
        return torch.device("cpu")

    monkeypatch.setattr(devices, "open_cuda", open_cuda)
    return found


@pytest.mark.parametrize("task", WORK)
def test_a_run_on_a_card_has_the_phases_and_figures_of_one_on_the_cpu(card, run_worker, task):
    order = parse_order(order_json("measure", LLAMA, task, WORK[task], device="cuda:0", budget_bytes=2**30, snapshot=True))
    events = Events()
    with card.tracker:
        worker_run.hello(events, order)
        worker_run.run(order, events)
    (hello,) = [fields for event, fields in events if event == "hello"]
    assert hello["device"] == {
        "type": "cuda", "name": "NVIDIA H200", "index": 0, "total_bytes": TOTAL, "capability": [9, 0],
        "uuid": "6d1f8f0e-0000-4000-8000-000000000001", "pci_bus_id": "00000000:19:00.0",
    }  # fmt: skip
    assert card.fraction == 2**30 / TOTAL
    (snapshot,) = [fields for event, fields in events if event == "snapshot"]
    assert snapshot["segments"] == [{"total": 2 * MIB, "allocated": 512, "kind": "small", "blocks": [[512, "active_allocated"]]}]
    own = {
        (phase["name"], phase["step"]): phase["allocated"]
        for phase in run_worker("measure", LLAMA, task, WORK[task]).result["phases"]
    }
    phases = {(phase["name"], phase["step"]): phase for phase in events.result["phases"]}
    assert phases.keys() == own.keys()
    pool = 4 * build._POOL_ELEMENTS  # of random numbers, which a card makes itself
    for key, phase in phases.items():
        assert key[0] == "load" or phase["allocated"] - pool == pytest.approx(own[key], rel=0.02), key
        assert phase["reserved"] >= phase["allocated"]
        assert phase["device"] >= phase["reserved"]
        assert sum(phase["components"].values()) == phase["allocated"]
    held = "optimizer_state" if task == "training" else "kv_cache"
    assert any(phase["components"].get(held) for phase in phases.values())
    samples = [fields for event, fields in events if event == "memory"]
    assert all(fields["device"] >= fields["reserved"] and fields["total"] == TOTAL for fields in samples)


def test_a_budget_beyond_what_is_free_is_out_of_memory_before_anything_is_built(card):
    order = parse_order(order_json("measure", LLAMA, "inference", WORK["inference"], device="cuda:0", budget_bytes=2**40))
    events = Events()
    worker_run.run(order, events)
    assert (events.result["outcome"], events.result["requested_bytes"]) == ("out_of_memory", 2**40)
    assert events.result["free_bytes"] == TOTAL - OTHERS - CONTEXT


def test_weights_that_a_card_cannot_hold_are_not_begun(card, monkeypatch):
    """Others may be at work on it."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device=None: (100_000, TOTAL))
    order = parse_order(order_json("measure", LLAMA, "inference", WORK["inference"], device="cuda:0"))
    events = Events()
    worker_run.run(order, events)
    assert not [fields for event, fields in events if event == "phase"]
    assert (events.result["outcome"], events.result["free_bytes"]) == ("out_of_memory", 100_000)
    assert events.result["requested_bytes"] > 300_000


def test_a_card_that_is_not_there_is_named(card):
    with pytest.raises(WorkerError, match="cuda:3: this machine has 1 CUDA devices"):
        worker_run.hello(Events(), parse_order(order_json("measure", LLAMA, "inference", {}, device="cuda:3")))


class Graph:
    """A captured graph, of 384 KiB in the driver."""

    def replay(self):
        """Nothing."""


@pytest.mark.parametrize("captures", [True, False])
def test_the_cards_own_figures_hold_its_workspace_and_its_graphs(card, monkeypatch, captures):
    from contextlib import contextmanager

    from probes.worker import loads

    taken = [0]

    @contextmanager
    def graph(_graph, pool=None):
        assert pool == (0, 1)
        if not captures:
            raise RuntimeError("operation not permitted when stream is capturing")
        yield
        taken[0] += 384 * 1024

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device=None: (TOTAL - card.reserved() - taken[0], TOTAL))
    monkeypatch.setattr(loads, "_bandwidth", lambda _load: 1.0)
    monkeypatch.setattr(loads, "_flops", lambda _load, _dtype: 1.0)
    with card.tracker:
        told = _calibrate(Load({"mode": "calibrate", "device": "cuda:0"}, Events()))["calibration"]
    assert told["graph_bytes"] == (384 * 1024 if captures else None)
    assert told["cublas_workspace_bytes"] == 0
    assert told["flops_per_s"] == {"bf16": 1.0, "fp16": 1.0, "fp32": 1.0}
