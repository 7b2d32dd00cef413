"""Fit what this machine adds outside the tensors from its own recordings, and keep only what makes predictions better.

Every figure is tried in turn. It is kept when, fitted on all recordings but one and asked about that one, the predictions of
``device`` are closer to what was measured than without it (leave-one-out cross-validation); else it is declined.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, median
from typing import Any

from planner.calibration import PERMILLE, Calibration, Task
from planner.faults import Faults
from planner.footprint import Phase
from planner.gpu import Gpu
from planner.machine import CUBLAS_HANDLES, overheads
from planner.scenario import InlineConfig, Scenario, parse_scenario
from planner.units import MIB
from probes.achieved import Timing, speed_figures, timing_of, with_speeds
from probes.figures import BAND_FLOOR, NEEDED_RUNS, Figure
from probes.measurement import Measurement
from probes.recording import SUFFIX, Recorded, RecordingError, read_recording, recordings_folder
from probes.worker.layers import keep_layers
from resources.gpus import UnknownGpu, gpu
from resources.plan import find_model, make_plan

SMALLEST_SLACK_BYTES = 4 * MIB
"""Slack below two segments says nothing about the rest."""
MOST_GRAPH_BYTES = 256 * MIB
"""More than any captured graph of a step takes."""
FIGURES = ("context", "workspace", "inference slack", "training slack")
"""Of the device figure, in the order in which they are tried."""


@dataclass(frozen=True, slots=True)
class Observation:
    """The peak phase of one run on one card: what was measured, and what the uncalibrated closed form says."""

    name: str
    task: Task
    measured: Phase
    predicted: Phase
    outside_bytes: int

    @property
    def slack_bytes(self) -> int:
        """Measured reserved beyond allocated."""
        return self.measured.reserved - self.measured.allocated

    @property
    def predicted_slack_bytes(self) -> int:
        """Modelled reserved beyond allocated."""
        return self.predicted.reserved - self.predicted.allocated


@dataclass(frozen=True, slots=True)
class Fit:
    """What the recordings of one card came to."""

    card: str
    calibration: Calibration
    figures: tuple[Figure, ...]
    error_before: float | None = None
    error_after: float | None = None

    @property
    def is_better(self) -> bool:
        """Whether anything is worth keeping."""
        return any(figure.accepted for figure in self.figures)


@dataclass(slots=True)
class Evidence:
    """What recordings of one card say."""

    card: Gpu
    observations: list[Observation] = field(default_factory=list)
    workspaces: list[int] = field(default_factory=list)
    graphs: list[int] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    bandwidths: list[float] = field(default_factory=list)
    flops: dict[str, list[float]] = field(default_factory=dict)
    environments: list[str] = field(default_factory=list)


def recordings(paths: Sequence[Path] = ()) -> Iterator[tuple[str, Recorded]]:
    """The recordings at these paths with their names; without any, all that lie in the recordings folder and can be read.

    Raises OSError or :class:`probes.recording.RecordingError` for a path that was named.
    """
    for path in paths or sorted(recordings_folder().glob(f"*{SUFFIX}")):
        try:
            yield path.name, read_recording(path)
        except (OSError, RecordingError):
            if paths:
                raise


def gather(recordings: Iterable[tuple[str, Recorded]]) -> dict[str, Evidence]:
    """Evidence by card, from recordings with their names: what this machine ran on a card of the catalog."""
    found: dict[str, Evidence] = {}
    for name, recorded in recordings:
        order = recorded.header.get("order") or {}
        if order.get("mode") not in ("measure", "calibrate"):
            continue
        run = Measurement.of_recording(recorded)
        card = _card(run)
        elsewhere = run.environment.get("remote")
        if card is None or elsewhere or run.outcome.get("kind") != "completed":
            continue
        evidence = found.setdefault(card.name, Evidence(card))
        if order["mode"] == "calibrate":
            _take_figures(evidence, run.result.get("calibration") or {})
        else:
            observation = _observation(name, recorded, run, card)
            if observation is not None:
                evidence.observations.append(observation)
            timing = _timing(recorded, run, card)
            if timing is not None:
                evidence.timings.append(timing)
        evidence.environments.append(_environment(run))
    return found


def fit(evidence: Evidence) -> Fit:
    """The calibration of a card, of those figures that proved themselves."""
    runs = evidence.observations
    kept: tuple[str, ...] = ()
    before = error = _held_out_error(evidence, kept)
    figures: list[Figure] = []
    for name in FIGURES:
        value, band, count = _value(evidence, runs, name)
        tried = _held_out_error(evidence, (*kept, name)) if value is not None and count >= _needed(name) else None
        accepted = tried is not None and error is not None and tried < error
        figures.append(_judged(name, value, band, count, error, tried, accepted=accepted))
        if accepted:
            kept, error = (*kept, name), tried
    figures += [*_graphs(evidence), *speed_figures(evidence.card, evidence.timings, evidence.bandwidths, evidence.flops)]
    source = f"measured here {_source(evidence)}"
    graph_bytes = next((round(figure.value) for figure in figures if figure.name == "graph" and figure.accepted), None)
    calibration = replace(_calibration(evidence, runs, kept), graph_bytes=graph_bytes, runs=len(runs), source=source)
    return Fit(evidence.card.name, with_speeds(calibration, figures), tuple(figures), before, error)


def _card(run: Measurement) -> Gpu | None:
    device = run.environment.get("device") or {}
    if device.get("type") != "cuda":
        return None
    try:
        return gpu(str(device.get("name")), device.get("total_bytes"))
    except UnknownGpu:
        return None


def _observation(name: str, recorded: Recorded, run: Measurement, card: Gpu) -> Observation | None:
    ended = [step for step in run.phases if step.ended]
    peak = max(ended, key=lambda step: (step.meters["device"], step.meters["allocated"]), default=None)
    predicted = uncalibrated(recorded.header, card)
    if peak is None or peak.name not in predicted or not run.outside_bytes:
        return None
    task: Task = "training" if recorded.header["scenario"].get("task") == "training" else "inference"
    return Observation(name, task, peak.phase(), predicted[peak.name], run.outside_bytes)


def uncalibrated(header: Mapping[str, Any], card: Gpu) -> Mapping[str, Phase]:
    """The closed form of exactly that run on that card with the catalog's figures, by phase; empty where there is none."""
    try:
        gpus = make_plan(_asked(header, card), network=False, calibrated=False).footprint.gpus
    except (Faults, LookupError, ValueError, TypeError):
        return {}
    return {phase.name: phase for phase in gpus[0].phases} if gpus else {}


def _asked(header: Mapping[str, Any], card: Gpu) -> Scenario:
    """The scenario of a recorded run with the layers that were built. Raises what reading it raises."""
    config, layers = header.get("config"), (header.get("order") or {}).get("layers")
    scenario = parse_scenario(header["scenario"])
    kept = config if layers is None else keep_layers(config or {}, int(layers))
    return replace(scenario, model=InlineConfig(kept or {}), hardware=replace(scenario.hardware, gpu=card.name))


def _timing(recorded: Recorded, run: Measurement, card: Gpu) -> Timing | None:
    try:
        scenario = _asked(recorded.header, card)
        model = find_model(scenario.model, network=False)
        return timing_of(run, scenario, model.architecture, model.native, card)
    except (Faults, LookupError, ValueError, TypeError):
        return None


def _take_figures(evidence: Evidence, told: Mapping[str, Any]) -> None:
    if isinstance(told.get("cublas_workspace_bytes"), int):
        evidence.workspaces.append(told["cublas_workspace_bytes"])
    if isinstance(told.get("graph_bytes"), int):
        evidence.graphs.append(told["graph_bytes"])
    if isinstance(told.get("bandwidth_bytes_per_s"), int | float):
        evidence.bandwidths.append(float(told["bandwidth_bytes_per_s"]))
    for dtype, rate in (told.get("flops_per_s") or {}).items():
        evidence.flops.setdefault(str(dtype), []).append(float(rate))


def _environment(run: Measurement) -> str:
    versions = run.environment.get("versions") or {}
    return f"driver {run.environment.get('driver') or 'unknown'}, torch {versions.get('torch') or 'unknown'}"


def _source(evidence: Evidence) -> str:
    latest = evidence.environments[-1] if evidence.environments else "nothing"
    return f"on {datetime.now(UTC):%Y-%m-%d}: {len(evidence.environments)} runs, {latest}"


# One figure from some runs.


def _needed(name: str) -> int:
    return 1 if name == "workspace" else NEEDED_RUNS


def _value(evidence: Evidence, runs: Sequence[Observation], name: str) -> tuple[float | None, float, int]:
    """Median, half-width that holds every run, and how many there are."""
    found = {
        "context": lambda: [float(run.outside_bytes) for run in runs],
        "workspace": lambda: [float(size) for size in evidence.workspaces],
        "inference slack": lambda: _ratios(runs, "inference"),
        "training slack": lambda: _ratios(runs, "training"),
    }[name]()
    if not found:
        return None, 0.0, 0
    middle = median(found)
    return middle, max(BAND_FLOOR * middle, *(abs(value - middle) for value in found)), len(found)


def _ratios(runs: Sequence[Observation], task: Task) -> list[float]:
    told = [run for run in runs if run.task == task and run.predicted_slack_bytes >= SMALLEST_SLACK_BYTES]
    return [run.slack_bytes / run.predicted_slack_bytes for run in told]


def _calibration(evidence: Evidence, runs: Sequence[Observation], names: Sequence[str]) -> Calibration:
    """Of these figures, fitted on these runs."""
    found = {name: _value(evidence, runs, name) for name in names}
    values = {name: (value, band) for name, (value, band, _) in found.items() if value is not None}
    context, context_band = values.get("context", (None, 0.0))
    workspace, _ = values.get("workspace", (None, 0.0))
    inference, inference_band = values.get("inference slack", (None, 0.0))
    training, training_band = values.get("training slack", (None, 0.0))
    return Calibration(
        context_bytes=_whole(context), context_band_bytes=round(context_band), cublas_workspace_bytes=_whole(workspace),
        inference_slack_permille=_whole(inference, PERMILLE), inference_slack_band_permille=round(inference_band * PERMILLE),
        training_slack_permille=_whole(training, PERMILLE), training_slack_band_permille=round(training_band * PERMILLE),
    )  # fmt: skip


def _whole(value: float | None, times: int = 1) -> int | None:
    return None if value is None else round(value * times)


# Whether it helps.


def predicted_device_bytes(run: Observation, card: Gpu, calibration: Calibration) -> int:
    """What a calibrated prediction says of a run's peak."""
    plain = overheads(replace(card, calibration=None))
    machine = overheads(replace(card, calibration=calibration))
    handles = CUBLAS_HANDLES[run.task]
    allocated = run.predicted.allocated + handles * (machine.cublas_workspace_bytes - plain.cublas_workspace_bytes)
    slack = run.predicted_slack_bytes * calibration.slack_permille(run.task) // PERMILLE
    return allocated + slack + machine.context_bytes


def _held_out_error(evidence: Evidence, names: Sequence[str]) -> float | None:
    """Mean absolute relative error of the device figure, each run asked of a fit on all the others."""
    runs = evidence.observations
    if len(runs) < NEEDED_RUNS:
        return None
    errors = []
    for index, run in enumerate(runs):
        others = [*runs[:index], *runs[index + 1 :]]
        told = predicted_device_bytes(run, evidence.card, _calibration(evidence, others, names))
        errors.append(abs(told / run.measured.device - 1))
    return fmean(errors)


def _judged(
    name: str, value: float | None, band: float, count: int, before: float | None, after: float | None, *, accepted: bool
) -> Figure:
    if value is None or count < _needed(name):
        why = f"needs {_needed(name)} runs that say something of it, there are {count}"
    elif after is None or before is None:
        why = f"needs {NEEDED_RUNS} runs to be checked on, there are fewer"
    elif accepted:
        why = "closer to runs that it was not fitted on"
    else:
        why = "declined: not closer to runs that it was not fitted on"
    return Figure(name, value or 0.0, band, count, accepted, why, before, after)


def _graphs(evidence: Evidence) -> list[Figure]:
    """What a captured graph takes, as the card says itself: no run of transformers holds one to check it on."""
    if not evidence.graphs:
        return []
    middle = median(evidence.graphs)
    band = max(BAND_FLOOR * middle, *(abs(size - middle) for size in evidence.graphs))
    sane = 0 < middle <= MOST_GRAPH_BYTES
    why = "as captured here" if sane else "declined: no size that a graph can have"
    return [Figure("graph", middle, band, len(evidence.graphs), sane, why)]
