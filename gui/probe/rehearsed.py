"""What a rehearsal has come to, as the window shows it: a value that can go from one thread to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from probes.peaks import OpenedPeak
from probes.rehearsal import Rehearsal

_POINTS = 2000


@dataclass(frozen=True, slots=True)
class Stretch:
    """One pass through a phase. ``share`` (0 to 1) is how much of its events had gone by when the meters (bytes) held."""

    phase: str
    share: NDArray[np.float64]
    meters: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """Highest meters and errors against the prediction by phase, the course of memory, and the peaks once it has ended."""

    meters: Mapping[str, Mapping[str, int]]
    errors: Mapping[str, Mapping[str, float | None]]
    course: tuple[Stretch, ...]
    peaks: tuple[OpenedPeak, ...] = ()

    def peak_of(self, phase: str | None) -> OpenedPeak | None:
        """The opened peak of a phase."""
        return next((peak for peak in self.peaks if peak.phase == phase), None)


def rehearsed_of(rehearsal: Rehearsal) -> Rehearsed:
    """The rehearsal as it is now."""
    return Rehearsed(
        meters={step.name: dict(step.meters) for step in rehearsal.phases},
        errors=rehearsal.error(),
        course=_course(rehearsal),
        peaks=rehearsal.peaks() if rehearsal.outcome else (),
    )


def _course(rehearsal: Rehearsal) -> tuple[Stretch, ...]:
    points = rehearsal.timeline_points(_POINTS)
    runs = [list(found) for phase, found in groupby(points, key=lambda point: point[1]) if phase]
    return tuple(_stretch(run) for run in runs)


def _stretch(points: list[tuple[int, str, int, int]]) -> Stretch:
    events = np.array([point[0] for point in points], dtype=np.float64)
    length = max(events[-1] - events[0], 1.0)
    allocated, reserved = (np.array([point[column] for point in points], dtype=np.float64) for column in (2, 3))
    return Stretch(points[0][1], (events - events[0]) / length, {"allocated": allocated, "reserved": reserved})
