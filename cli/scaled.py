"""``measure --layers A,B``: measure two sizes of a model with few layers, and say what the whole would take."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cli import exits
from cli.measuring import measured
from cli.predict import title_of
from cli.streams import console, print_json
from cli.tables import signed_percent, table
from planner.footprint import Footprint
from planner.units import format_bytes
from probes.measurement import Measurement
from probes.remote import Remote
from probes.request import predict_run, request
from probes.scaled import NotLinear, Scale, extrapolate, find_scale, scale_of
from resources.plan import Plan


def scale_asked(plan: Plan, layers: str, device: str) -> Scale:
    """The scale that ``A,B`` or ``auto`` asks for. Raises ValueError (:class:`probes.scaled.NotLinear`)."""
    config = plan.source.config

    def predict(size: int | None) -> Footprint:
        return predict_run(plan, device, size)

    if layers == "auto":
        return find_scale(config, predict)
    try:
        small, large = (int(word) for word in layers.split(","))
    except ValueError:
        raise NotLinear(f"--layers: must be a number, two numbers A,B or auto, got {layers!r}") from None
    return scale_of(config, small, large, predict)


def run(options: argparse.Namespace, plan: Plan, device: str, budget_bytes: int | None, remote: Remote | None = None) -> int:
    """Measure both sizes and print the whole."""
    scale = scale_asked(plan, options.layers, device)
    pair: list[Measurement] = []
    for size in (scale.small, scale.large):
        asked = request(plan, device, size, None, budget_bytes, elsewhere=remote is not None)
        measurement, outcome, _ = measured(asked, options, _path(options.record, size), remote)
        if outcome.kind != "completed":
            return exits.fail(outcome.exit_code, f"with {size} layers: {outcome.text}")
        pair.append(measurement)
    small, large = pair
    whole = extrapolate(scale, small, large, predict_run(plan, device))
    if options.json:
        print_json(whole.to_json())
    else:
        _print(whole, scale, title_of(plan))
    return exits.DONE


def _path(record: Path | None, size: int) -> Path | None:
    return None if record is None else record.with_name(f"{record.stem}-{size}-layers{record.suffix}")


def _print(whole: Footprint, scale: Scale, title: str) -> None:
    out = console()
    out.print(f"[bold]{title}[/bold] · from {scale.small} and {scale.large} of {scale.whole} layers", soft_wrap=True)
    told: Any = whole.extra["extrapolated"]
    errors: Any = whole.extra["error"]
    made = table(["phase", "allocated", "±", "a layer", "vs predicted", "reserved", "±", "device", "±"], numeric=range(1, 9))
    for phase in told["phases"]:
        error = errors.get(phase["name"], {}).get("allocated")
        cells = [cell for meter in ("reserved", "device") for cell in (phase[meter], phase["bands"][meter])]
        made.add_row(
            phase["name"], format_bytes(phase["allocated"]), format_bytes(phase["bands"]["allocated"]),
            format_bytes(phase["per_layer"]["allocated"]), signed_percent(error),
            *map(format_bytes, cells),
        )  # fmt: skip
    out.print(made)
    for note in whole.notes:
        out.print(f"· {note}", soft_wrap=True)
