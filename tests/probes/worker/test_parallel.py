"""What of a plan's parallel dimensions can be measured, and what is said of the rest."""

from __future__ import annotations

from typing import Any

import pytest

from probes.worker.errors import WorkerError
from probes.worker.order import parse_order
from probes.worker.parallel import Layout, layout_of


@pytest.mark.parametrize(
    ("parallel", "task", "layout"),
    [
        ({"data": 2}, "training", Layout("ddp", 2)),
        ({"data": 2, "sharding": "fsdp"}, "training", Layout("fsdp", 2)),
        ({"tensor": 2}, "inference", Layout("tensor", 2)),
    ],
)
def test_layouts(parallel: dict[str, Any], task: str, layout: Layout) -> None:
    assert layout_of(parallel, task, 2) == layout


@pytest.mark.parametrize(
    ("parallel", "task", "field"),
    [
        ({"pipeline": 2}, "training", "pipeline"),
        ({"tensor": 2, "data": 2}, "training", "tensor"),
        ({"data": 2, "sharding": "zero3"}, "training", "sharding"),
        ({"data": 2}, "inference", "data"),
    ],
)
def test_layouts_that_cannot_be_measured_name_their_field(parallel: dict[str, Any], task: str, field: str) -> None:
    with pytest.raises(WorkerError) as told:
        layout_of(parallel, task, 2)
    assert (told.value.kind, told.value.field) == ("unsupported", f"scenario.parallel.{field}")


def test_a_rehearsal_has_one_rank() -> None:
    order = {"mode": "rehearse", "ranks": 4, "config": {"a": 1}, "scenario": {"task": "inference"}}
    assert parse_order(order).ranks == 1


def test_no_rank_at_all_is_a_bad_order() -> None:
    with pytest.raises(WorkerError, match="ranks"):
        parse_order({"mode": "measure", "ranks": 0, "config": {"a": 1}, "scenario": {"task": "inference"}})
