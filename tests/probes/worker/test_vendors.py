"""Cards of other makers, where there are none: each says so and what to do."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from probes.worker.device import describe, segments
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
