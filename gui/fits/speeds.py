"""Speed against concurrency: the same load with more and more sequences at once. Nothing here knows of widgets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.faults import Faults
from planner.predict import predict
from planner.scenario import Scenario
from planner.solve import with_values

if TYPE_CHECKING:
    from planner.footprint import Verdict
    from resources.plan import Plan

CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Pace:
    """One point: tokens of all sequences in a second, and how long each sequence waits for its next one (or a step takes)."""

    scenario: Scenario
    batch: int
    verdict: Verdict
    tokens_per_s: float
    wait_s: float
    bound_by: str


def paces_of(plan: Plan, settled: Scenario, go_on: Callable[[], None]) -> tuple[Pace, ...]:
    """The paces of every concurrency; none for a card whose rates are not known. ``go_on`` raises when nobody waits any more."""
    found = []
    for batch in CONCURRENCIES:
        go_on()
        scenario = with_values(settled, batch=batch)
        try:
            footprint = predict(scenario, plan.architecture, plan.gpu, plan.model.native)
        except Faults:
            continue
        speed = footprint.speed
        rate, wait = speed.get("tokens_per_s"), speed.get("time_per_token_s") or speed.get("step_s")
        if isinstance(rate, int | float) and isinstance(wait, int | float) and rate > 0:
            found.append(Pace(scenario, batch, footprint.verdict, float(rate), float(wait), str(speed.get("bound_by") or "")))
    return tuple(found)
