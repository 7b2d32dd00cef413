"""What a rehearsal has come to, as the window shows it: a value that can go from one thread to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from gui.state import replace_at
from probes.peaks import OpenedPeak
from probes.recording import Event
from probes.rehearsal import Rehearsal
from probes.rehearsal_order import rehearse_request
from probes.request import Request
from resources.plan import Plan, make_plan

_POINTS = 2000


@dataclass(frozen=True, slots=True)
class Stretch:
    """One pass through a phase. ``share`` (0 to 1) is how much of its events had gone by when the meters (bytes) held."""

    phase: str
    share: NDArray[np.float64]
    meters: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """Highest meters and errors against the prediction by phase, and the course of memory; once it has ended, the rest."""

    meters: Mapping[str, Mapping[str, int]]
    errors: Mapping[str, Mapping[str, float | None]]
    course: tuple[Stretch, ...]
    peaks: tuple[OpenedPeak, ...] = ()
    notes: tuple[str, ...] = ()
    outcome: Event | None = None

    def peak_of(self, phase: str | None) -> OpenedPeak | None:
        """The opened peak of a phase."""
        return next((peak for peak in self.peaks if peak.phase == phase), None)

    @property
    def highest(self) -> OpenedPeak | None:
        """The highest of the opened peaks."""
        return max(self.peaks, key=lambda peak: peak.allocated_bytes, default=None)

    @property
    def highest_bytes(self) -> int:
        """The highest meter that is drawn."""
        return max((meters["reserved"] for meters in self.meters.values()), default=0)


def ask_rehearsal(plan: Plan, device: str, layers: int | None, new_tokens: int | None) -> Request:
    """Ask for a rehearsal as the CPU or, for every other device, as the plan's card runs it."""
    if new_tokens is not None and plan.scenario.task == "inference":
        plan = make_plan(replace_at(plan.scenario, "inference.new_tokens", new_tokens))
    return rehearse_request(plan, layers, personality="cpu" if device == "cpu" else "cuda")


def rehearsed_of(rehearsal: Rehearsal) -> Rehearsed:
    """The rehearsal as it is now. The peaks are opened once it has ended: that takes longer."""
    shown = Rehearsed(
        meters={step.name: dict(step.meters) for step in rehearsal.phases},
        errors=rehearsal.error(),
        course=_course(rehearsal),
    )
    if not rehearsal.outcome:
        return shown
    return replace(shown, peaks=rehearsal.peaks(), notes=rehearsal.footprint().notes, outcome=rehearsal.outcome)


def _course(rehearsal: Rehearsal) -> tuple[Stretch, ...]:
    points = rehearsal.timeline_points(_POINTS)
    runs = [list(found) for phase, found in groupby(points, key=lambda point: point[1]) if phase]
    return tuple(_stretch(run) for run in runs)


def _stretch(points: list[tuple[int, str, int, int]]) -> Stretch:
    events = np.array([point[0] for point in points], dtype=np.float64)
    length = max(events[-1] - events[0], 1.0)
    allocated, reserved = (np.array([point[column] for point in points], dtype=np.float64) for column in (2, 3))
    return Stretch(points[0][1], (events - events[0]) / length, {"allocated": allocated, "reserved": reserved})
