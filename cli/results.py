"""What a measurement came to, as a table beside its prediction."""

from __future__ import annotations

from collections.abc import Iterator

from cli.streams import console
from cli.tables import signed_percent, table
from planner.units import format_bytes
from probes.measurement import Measurement


def print_measurement(measurement: Measurement, title: str) -> None:
    """Title, outcome, and each phase's meters beside the prediction."""
    out = console()
    out.print(f"[bold]{title}[/bold] · measured on {_place(measurement)}", soft_wrap=True)
    out.print(str(measurement.outcome.get("text") or "The recording ends before the run did."), soft_wrap=True)
    headings = ["phase", "predicted allocated", "measured allocated", "error", "reserved", "device"]
    if not measurement.ranks:
        made = table(headings, numeric=range(1, 6))
        for row in _rows(measurement):
            made.add_row(*row)
    else:
        made = table(["rank", *headings], numeric=(0, *range(2, 7)))
        for rank, one in sorted({0: measurement, **measurement.ranks}.items()):
            for row in _rows(one):
                made.add_row(str(rank), *row)
            made.add_section()
    if made.row_count:
        out.print(made)


def _rows(measurement: Measurement) -> Iterator[tuple[str, ...]]:
    gpus = (measurement.prediction or {}).get("gpus") or ()
    predicted = {phase["name"]: phase for phase in gpus[0]["phases"]} if gpus else {}
    errors = measurement.error()
    for step in measurement.phases:
        phase = step.phase()
        error = errors.get(phase.name, {}).get("allocated")
        known = predicted.get(phase.name)
        yield (
            phase.name,
            format_bytes(known["allocated"]) if known else "unknown",
            format_bytes(phase.allocated),
            signed_percent(error),
            format_bytes(phase.reserved),
            format_bytes(phase.device),
        )


def _place(measurement: Measurement) -> str:
    device = measurement.environment.get("device") or {}
    if not measurement.on_cpu:
        return f"{device.get('name')} ({device.get('type')}:{device.get('index') or 0})"
    if not device:
        return "nothing: it did not begin"
    return "CPU (no GPU used: allocated compares, device is the process's own growth)"
