"""What several tests of the worker's traces share."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

# The models of these tests are too small for threads, here and in children.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def trace():
    """Rehearses a scenario in this process on fake tensors, as CUDA (or ``personality``) allocates; its phases by name."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    pytest.importorskip("transformers", reason="tracing needs transformers")
    from probes.worker.order import parse_order
    from probes.worker.run import run

    class Heard:
        def __init__(self) -> None:
            self.result: dict[str, object] = {}

        def send(self, event: str, **fields: object) -> None:
            if event == "result":
                self.result = fields

        close = send

    def traced(scenario, config, personality="cuda", **more):
        heard = Heard()
        order = {
            "version": 1, "mode": "rehearse", "scenario": dict(scenario), "config": config, "device": "cpu", "layers": None,
            "budget_bytes": None, "personality": personality, "compute_capability": [9, 0],
        }  # fmt: skip
        run(parse_order(json.loads(json.dumps(order | more))), heard)
        return {phase["name"]: phase for phase in heard.result["phases"]}

    return traced


@pytest.fixture(scope="session")
def run_here():
    """Runs an order's worker in this process, without the seconds that a child takes to load its libraries."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    pytest.importorskip("transformers", reason="the worker needs transformers")
    from probes.worker.order import parse_order
    from probes.worker.run import hello, run

    class Wire:
        def __init__(self, on_event: Callable[[dict[str, Any]], object]) -> None:
            self._on_event = on_event

        def send(self, event: str, **fields: Any) -> None:
            self._on_event({"event": event, "t": time.monotonic(), **json.loads(json.dumps(fields))})

        close = send

    def run_order(order: Mapping[str, Any], on_event: Callable[[dict[str, Any]], object]) -> None:
        parsed, wire = parse_order(json.loads(json.dumps(order))), Wire(on_event)
        hello(wire, parsed)
        run(parsed, wire)

    return run_order
