"""Cards of other makers, where there are none: each says so and what to do."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from probes.worker import loads
from probes.worker.device import as_out_of_memory, describe, segments
from probes.worker.errors import WorkerError
from probes.worker.order import parse_order

ORDER = {"mode": "measure", "config": {"a": 1}, "scenario": {"task": "inference"}}


@pytest.mark.parametrize("device", ["mps", "xpu:0"])
def test_a_card_that_is_not_here_is_named(device: str) -> None:
    kind = device.partition(":")[0]
    if getattr(torch, kind).is_available() if kind == "xpu" else torch.backends.mps.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(WorkerError) as told:
        describe(device)
    assert (told.value.kind, told.value.field) == ("no_device", "device")
    assert "measure on cpu or rehearse" in told.value.message


@pytest.mark.parametrize("device", ["mps", "xpu:1", "cuda:0", "cpu"])
def test_devices_an_order_may_name(device: str) -> None:
    assert parse_order(ORDER | {"device": device}).device == device


@pytest.mark.parametrize("device", ["mps:0", "hip:0", "xpu:x"])
def test_devices_no_order_may_name(device: str) -> None:
    with pytest.raises(WorkerError, match="device"):
        parse_order(ORDER | {"device": device})


def test_a_snapshot_keeps_sizes_and_states_alone() -> None:
    """The shape of torch.cuda.memory_snapshot (torch/cuda/memory.py, Segment and Block)."""
    block = {"size": 512, "requested_size": 500, "address": 7, "state": "active_allocated", "frames": [{"filename": "a.py"}]}
    told = {"device": 0, "address": 7, "total_size": 2097152, "allocated_size": 512, "segment_type": "small", "blocks": [block]}
    assert segments([told]) == [
        {"total": 2097152, "allocated": 512, "kind": "small", "blocks": [[512, "active_allocated"]]}
    ]  # fmt: skip


def test_no_memory_left_is_told_whoever_made_the_card() -> None:
    """In the words of torch's allocators (MPSAllocator.mm, XPUCachingAllocator.cpp)."""
    metal = RuntimeError(
        "MPS backend out of memory (MPS allocated: 17.95 GB, other allocations: 1.02 MB, max allowed: 18.13 GB). Tried to allocate "
        "500.00 MB on private pool."
    )
    intel = torch.OutOfMemoryError("XPU out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 47.99 GiB.")
    assert as_out_of_memory(metal) is not None
    found = as_out_of_memory(intel)
    assert found is not None
    assert found.requested_bytes == 20 * 2**20
    assert as_out_of_memory(RuntimeError("shape mismatch")) is None


@pytest.mark.parametrize("device", ["mps", "xpu:0"])
def test_a_load_without_a_model_knows_them_too(device: str) -> None:
    kind = device.partition(":")[0]
    if getattr(torch, kind).is_available() if kind == "xpu" else torch.backends.mps.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(WorkerError) as told:
        loads.run({"mode": "ramp", "device": device}, Silent())  # type: ignore[arg-type]
    assert told.value.kind == "no_device"
    with pytest.raises(WorkerError) as told:
        loads.run({"mode": "calibrate", "device": device}, Silent())  # type: ignore[arg-type]
    assert told.value.kind == "unsupported"


class Silent:
    def send(self, _event: str, **_fields: object) -> None:
        """Nobody listens."""
