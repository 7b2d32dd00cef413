"""A run that has ended, as the history keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.footprint import Footprint
from probes.measurement import Measurement
from probes.recording import RecordingState
from resources.history import History, HistoryError, Run

LEFT_OUT = ("timeline", "samples")
"""Parts of a result that its recording holds."""


def keep(measurement: Measurement, recording: RecordingState, history: History | None = None) -> str:
    """Put a run into the history. What the user should know of it, such as a disk that is full; else an empty text."""
    history = history or History()
    try:
        history.add(run_of(measurement, recording))
    except HistoryError as error:
        return f"The run is not in the history: {error}"
    return history.trouble


def run_of(measurement: Measurement, recording: RecordingState) -> Run:
    """What the history keeps of a measurement or a rehearsal."""
    result = measurement.footprint().to_json()
    scenario, outcome = measurement.scenario, measurement.outcome
    task = str(scenario.get("task") or "")
    peak = _peak(result)
    predicted = _phase(measurement.prediction, peak.get("phase"))
    device = measurement.environment.get("device") or {}
    return Run(
        level=measurement.level,
        model=model_name(scenario.get("model")),
        task=task,
        engine=str(_mapping(scenario.get(task)).get("engine") or ""),
        gpu=str(_mapping(scenario.get("hardware")).get("gpu") or ""),
        device=str(device.get("name") or ""),
        outcome=str(outcome.get("kind") or ""),
        verdict=str(result["verdict"]),
        seconds=outcome.get("after_s"),
        phase=str(peak.get("phase") or ""),
        allocated_bytes=peak.get("allocated"),
        reserved_bytes=peak.get("reserved"),
        device_bytes=peak.get("device"),
        predicted_allocated_bytes=predicted.get("allocated"),
        predicted_device_bytes=predicted.get("device"),
        recording="" if recording.path is None else str(recording.path.absolute()),
        result={key: value for key, value in result.items() if key not in LEFT_OUT},
    )


def run_of_plan(footprint: Footprint) -> Run:
    """What the history keeps of a plan that nothing has been run of."""
    result = footprint.to_json()
    scenario = footprint.scenario
    task = str(scenario.get("task") or "")
    peak = footprint.fullest.peak if footprint.fullest else None
    return Run(
        level=footprint.level,
        model=model_name(scenario.get("model")),
        task=task,
        engine=str(_mapping(scenario.get(task)).get("engine") or ""),
        gpu=str(_mapping(scenario.get("hardware")).get("gpu") or ""),
        outcome="kept",
        verdict=footprint.verdict,
        phase=peak.name if peak else "",
        predicted_allocated_bytes=peak.allocated if peak else None,
        predicted_device_bytes=peak.device if peak else None,
        result=result,
    )


def model_name(model: object) -> str:
    """The name a person knows a scenario's model by."""
    if isinstance(model, Mapping):
        config = _mapping(model.get("config"))
        return str(model.get("path") or config.get("_name_or_path") or config.get("model_type") or "")
    return str(model or "")


def _peak(result: Mapping[str, Any]) -> Mapping[str, Any]:
    gpus = result.get("gpus") or ()
    return _mapping(gpus[0].get("peak")) if gpus else {}


def _phase(footprint: Mapping[str, Any] | None, name: object) -> Mapping[str, Any]:
    """The phase of that name on the first GPU; empty where there is none."""
    gpus = (footprint or {}).get("gpus") or ()
    phases = gpus[0].get("phases") or () if gpus else ()
    return next((phase for phase in phases if phase.get("name") == name), {})


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
