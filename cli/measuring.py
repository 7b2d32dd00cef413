"""A probe run to its end for a verb: measured, kept in the history, and on which device where none is named."""

from __future__ import annotations

import argparse
from pathlib import Path

from cli import exits
from cli.ending import end_of
from probes.history import keep
from probes.measurement import Measurement
from probes.outcome import Outcome
from probes.recording import RecordingState
from probes.remote import Remote
from probes.request import Request
from probes.session import Limits, ProbeSession


def measured(
    asked: Request, options: argparse.Namespace, record: Path | None, remote: Remote | None
) -> tuple[Measurement, Outcome, Path | None]:
    """Run the probe to its end and keep it: what it came to, how it ended, and its recording. What is not kept is said."""
    prediction = asked.prediction.to_json()
    measurement = Measurement(asked.order["scenario"], prediction)
    limits = Limits(time_s=options.time_limit)
    with ProbeSession(
        asked.order, measurement.add, prediction=prediction, limits=limits, recording_path=record, remote=remote
    ) as session:
        outcome = end_of(session)
    keep_run(measurement, outcome, session.recording)
    return measurement, outcome, session.recording.path


def keep_run(measurement: Measurement, outcome: Outcome, recording: RecordingState) -> None:
    """Put a run into the history, and say where it or its recording could not be kept."""
    exits.fail(outcome.exit_code, *filter(None, (recording.trouble, keep(measurement, recording))))


def default_device() -> str:
    """``cuda:0`` where CUDA shows a GPU, else ``cpu``."""
    from probes.drivers import Drivers, visible  # noqa: PLC0415

    nvml = Drivers()
    try:
        return "cuda:0" if nvml.open().available and visible(nvml.readings()) else "cpu"
    finally:
        nvml.close()
