"""Speed against concurrency: the same load with more and more sequences at once. Nothing here knows of widgets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.engines.mixed import slowest_card
from planner.faults import Faults
from planner.predict import predict, settled_of
from planner.scenario import Scenario
from planner.solve import with_values
from planner.speed import Share, step_shares
from planner.sweep import VERDICTS, speed_curve, sweep

if TYPE_CHECKING:
    from planner.footprint import Verdict
    from resources.plan import Plan

POINTS = 14
"""Of the curve; each has room for its count below the axis."""
STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Micro-batches that a training is tried with."""


@dataclass(frozen=True, slots=True)
class Pace:
    """One point: tokens of all sequences in a second, and how long each sequence waits for its next one (or a step takes)."""

    scenario: Scenario
    batch: int
    verdict: Verdict
    tokens_per_s: float
    wait_s: float


@dataclass(frozen=True, slots=True)
class OpenedPace:
    """A point and why: by what it is bound, and what a step is the sum of (nothing where that is not known)."""

    pace: Pace
    bound_by: str
    shares: tuple[Share, ...]


def paces_of(plan: Plan, settled: Scenario, go_on: Callable[[], None]) -> tuple[Pace, ...]:
    """The curve from one sequence to as many as fit; of a training, steps of more and more samples.

    None for a card whose rates are not known, or where not one sequence fits. ``go_on`` raises when nobody waits any more.
    """
    go_on()
    if settled.task == "training":
        return tuple(pace for batch in STEPS if (pace := _step(plan, settled, batch, go_on)) is not None)
    curve = speed_curve(settled, plan.architecture, plan.gpu, plan.model.native, points=POINTS)
    if curve is None:
        return ()
    verdicts = sweep(settled, plan.architecture, plan.gpu, plan.model.native, batch=curve.concurrency).verdict
    rows = zip(curve.concurrency.tolist(), verdicts, curve.tokens_per_s.tolist(), curve.time_per_token_s.tolist(), strict=True)
    return tuple(
        Pace(with_values(settled, batch=batch), batch, VERDICTS[verdict], rate, wait) for batch, verdict, rate, wait in rows
    )


def open_pace(plan: Plan, pace: Pace) -> OpenedPace:
    """Why a point of a plan's curve is where it is."""
    footprint = predict(pace.scenario, plan.architecture, plan.gpu, plan.model.native)
    settled, fmt = settled_of(pace.scenario, plan.architecture, plan.model.native)
    shares = step_shares(settled, plan.architecture, fmt, slowest_card(settled, plan.gpu))
    return OpenedPace(pace, str(footprint.speed.get("bound_by") or ""), shares)


def _step(plan: Plan, settled: Scenario, batch: int, go_on: Callable[[], None]) -> Pace | None:
    go_on()
    scenario = with_values(settled, batch=batch)
    try:
        footprint = predict(scenario, plan.architecture, plan.gpu, plan.model.native)
    except Faults:
        return None
    rate, seconds = footprint.speed.get("tokens_per_s"), footprint.speed.get("step_s")
    if not isinstance(rate, float) or not isinstance(seconds, float):
        return None
    return Pace(scenario, batch, footprint.verdict, rate, seconds)
