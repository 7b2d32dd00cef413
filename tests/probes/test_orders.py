from __future__ import annotations

import json

import pytest

from probes.orders import measure_order
from probes.worker.order import parse_order

SCENARIO = {"version": 1, "model": "org/model", "task": "inference", "inference": {"batch": 2, "prompt_tokens": 7}}
CONFIG = {"model_type": "llama"}


def test_the_worker_reads_the_order() -> None:
    order = parse_order(json.loads(json.dumps(measure_order(SCENARIO, CONFIG, "cuda:1", layers=3, budget_bytes=2**33))))
    assert (order.mode, order.device, order.layers, order.budget_bytes) == ("measure", "cuda:1", 3, 2**33)
    assert (order.inference.batch, order.inference.prompt_tokens) == (2, 7)
    assert order.config == CONFIG


@pytest.mark.parametrize("device", ["cuda", "cuda:", "gpu", "cuda:-1", "", "CPU"])
def test_a_device_nobody_has_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match="device: must be cpu or cuda:N"):
        measure_order(SCENARIO, CONFIG, device)


@pytest.mark.parametrize("field", ["layers", "budget_bytes"])
def test_counts_below_one_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: must be at least 1, got 0"):
        measure_order(SCENARIO, CONFIG, **{field: 0})
