"""What several tests of the worker's traces share."""

from __future__ import annotations

import json
import os

import pytest


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
