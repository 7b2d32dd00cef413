"""From a plan to what a measurement needs: the order for the worker, and the prediction of exactly that run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import psutil

from planner.footprint import Footprint
from planner.scenario import InlineConfig, Scenario, to_json
from probes.orders import measure_order
from probes.worker.layers import keep_layers
from resources.plan import Plan, make_plan

_LEFT_FREE = 0.1
"""Share of the free system memory that a run on the CPU must leave."""


@dataclass(frozen=True, slots=True)
class Request:
    """A run that can be ordered, and its prediction."""

    order: Mapping[str, Any]
    prediction: Footprint


def request(
    plan: Plan,
    device: str,
    layers: int | None = None,
    new_tokens: int | None = None,
    budget_bytes: int | None = None,
    *,
    elsewhere: bool = False,
    snapshot: bool = False,
) -> Request:
    """Ask for ``plan`` on ``device`` (``cpu`` or ``cuda:N``), with fewer layers or new tokens if given.

    On the CPU a run without a budget gets nine tenths of the free memory, so that the system's out-of-memory killer
    stays asleep; ``elsewhere``, on another machine, the worker sees to it. Raises what :func:`resources.plan.make_plan` and
    :func:`probes.orders.measure_order` raise.
    """
    scenario = _with_new_tokens(plan.settled, new_tokens)
    prediction = predict_run(plan, device, layers, new_tokens)
    if device == "cpu" and budget_bytes is None and not elsewhere:
        budget_bytes = int(psutil.virtual_memory().available * (1 - _LEFT_FREE))
    ranks = ranks_of(scenario)
    order = measure_order(
        to_json(scenario), plan.source.config, device, layers, budget_bytes, ranks,
        snapshot=snapshot, stored_as=stored_as(plan),
    )  # fmt: skip
    return Request(order, prediction)


def stored_as(plan: Plan) -> str | None:
    """The name of a quantised checkpoint's format, None for a plain one."""
    native = plan.model.native
    return native.name if native.is_quantized else None


def ranks_of(scenario: Scenario) -> int:
    """How many processes the plan's parallel dimensions make."""
    return math.prod(getattr(scenario.parallel, name) for name in ("tensor", "pipeline", "data", "context"))


def predict_run(plan: Plan, device: str, layers: int | None = None, new_tokens: int | None = None) -> Footprint:
    """The prediction of the run that :func:`request` would order; without its arguments, of the plan on that device."""
    scenario = _with_new_tokens(plan.settled, new_tokens)
    if layers is not None:
        scenario = replace(scenario, model=InlineConfig(keep_layers(plan.source.whole_config, layers)))
    return make_plan(scenario, device="cpu" if device == "cpu" else "cuda").footprint


def _with_new_tokens(scenario: Scenario, new_tokens: int | None) -> Scenario:
    if new_tokens is None or scenario.task != "inference":
        return scenario
    return replace(scenario, inference=replace(scenario.inference, new_tokens=new_tokens))
