"""What a measurement came to, as a table beside its prediction."""

from __future__ import annotations

from cli.tables import console, table
from planner.units import format_bytes
from probes.measurement import Measurement


def print_measurement(measurement: Measurement, title: str) -> None:
    """Title, outcome, and each phase's meters beside the prediction."""
    out = console()
    out.print(f"[bold]{title}[/bold] · measured on {_place(measurement)}", soft_wrap=True)
    out.print(str(measurement.outcome.get("text") or "The recording ends before the run did."), soft_wrap=True)
    predicted = {phase["name"]: phase for gpu in (measurement.prediction or {}).get("gpus", ()) for phase in gpu["phases"]}
    errors = measurement.error()
    made = table(["phase", "predicted allocated", "measured allocated", "error", "reserved", "device"], numeric=range(1, 6))
    for step in measurement.phases:
        phase = step.phase()
        error = errors.get(phase.name, {}).get("allocated")
        known = predicted.get(phase.name)
        made.add_row(
            phase.name,
            format_bytes(known["allocated"]) if known else "unknown",
            format_bytes(phase.allocated),
            "N/A" if error is None else f"{100 * error:+.2f} %",
            format_bytes(phase.reserved),
            format_bytes(phase.device),
        )
    out.print(made)


def _place(measurement: Measurement) -> str:
    device = measurement.environment.get("device") or {}
    if device.get("type") == "cuda":
        return f"{device.get('name')} (cuda:{device.get('index')})"
    return "CPU (no GPU used: allocated compares, device is the process's own growth)"
