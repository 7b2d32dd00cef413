"""Rehearse a scenario: the real model on fake tensors, its every allocation through a simulated CUDA allocator. No GPU needed."""

from __future__ import annotations

import argparse
import csv
import json
import pickle  # noqa: TID251  written for PyTorch's memory viewer, which reads nothing else; never loaded
from dataclasses import replace
from pathlib import Path
from typing import Any

from cli import exits
from cli.ending import end_of
from cli.inputs import ERRORS, plan_of, read_scenario, refuse, require_layers
from cli.predict import title_of
from cli.streams import console, print_json
from cli.tables import signed_percent, table
from planner.footprint import METERS
from planner.units import GIB, format_bytes
from probes.history import keep
from probes.outcome import Outcome
from probes.peaks import OpenedPeak
from probes.preflight import why_not
from probes.recording import RecordingState
from probes.rehearsal import Rehearsal
from probes.rehearsal_order import rehearse_request
from probes.request import Request
from probes.session import ProbeSession
from resources.plan import Plan

PEAK_LINES = 6


def add_options(parser: argparse.ArgumentParser) -> None:
    """Scenario, card and allocator, files to write."""
    parser.add_argument("scenario", help="scenario file (JSON), or - for standard input")
    parser.add_argument("--layers", type=int, help="build only so many layers")
    parser.add_argument("--capacity", type=float, metavar="GIB", help="memory of the card in GiB (default: the catalog's)")
    allocator = parser.add_mutually_exclusive_group()
    allocator.add_argument("--alloc-conf", default="", metavar="CONF", help="allocator settings, as in PYTORCH_CUDA_ALLOC_CONF")
    allocator.add_argument(
        "--expandable-segments", dest="alloc_conf", action="store_const", const="expandable_segments:True",
        help="the same as --alloc-conf expandable_segments:True",
    )  # fmt: skip
    parser.add_argument("--timeline", type=Path, metavar="FILE", help="write memory after every event, as .csv or .json")
    parser.add_argument("--snapshot", type=Path, metavar="FILE", help="write a memory snapshot for pytorch.org/memory_viz")
    parser.add_argument("--record", type=Path, metavar="FILE", help="where to record (default: the recordings folder)")
    parser.add_argument("--json", action="store_true", help="print the whole result as JSON")


def run(options: argparse.Namespace) -> int:
    """Rehearse to the end and print phases, error of the prediction, and what the peaks are made of."""
    missing, bad = why_not(), _bad_file(options)
    if missing or bad:
        return exits.fail(exits.NOT_DONE_HERE if missing else exits.BAD_INPUT, missing or bad)
    try:
        plan = _plan(options)
        require_layers(plan, options.layers)
        asked = rehearse_request(plan, options.layers, conf=options.alloc_conf)
    except ERRORS as error:
        return refuse(error)
    except ValueError as error:
        return exits.fail(exits.BAD_INPUT, str(error))
    rehearsal, outcome, recording = _rehearse(asked, options.record)
    trouble = keep(rehearsal, recording)
    _show(rehearsal, recording, plan, as_json=options.json)
    try:
        _write_files(rehearsal, options)
    except OSError as error:
        return exits.fail(exits.BAD_INPUT, f"{error.filename}: can't be written: {error.strerror or error}")
    exits.fail(outcome.exit_code, *filter(None, (recording.trouble, trouble)))
    return exits.fail(outcome.exit_code, outcome.text) if outcome.exit_code else exits.DONE


def _bad_file(options: argparse.Namespace) -> str:
    """What is wrong with a file to write, said before the work rather than after it."""
    if options.record is not None and options.record.exists():
        return f"--record: {options.record} exists already; name a new file"
    if options.timeline is not None and options.timeline.suffix not in (".csv", ".json"):
        return f"--timeline: {options.timeline} must end in .csv or .json"
    for name in ("timeline", "snapshot"):
        path = getattr(options, name)
        if path is not None and not path.absolute().parent.is_dir():
            return f"--{name}: there is no folder {path.parent}"
    return ""


def _plan(options: argparse.Namespace) -> Plan:
    scenario = read_scenario(options.scenario)
    if options.capacity is not None:
        if not 0 < options.capacity < 2**20:
            message = f"--capacity: must be above 0 GiB, got {options.capacity:g}"
            raise ValueError(message)
        capacity_bytes = int(options.capacity * GIB)
        scenario = replace(scenario, hardware=replace(scenario.hardware, capacity_bytes=capacity_bytes))
    return plan_of(scenario)


def _rehearse(asked: Request, record: Path | None) -> tuple[Rehearsal, Outcome, RecordingState]:
    prediction = asked.prediction.to_json()
    rehearsal = Rehearsal(asked.order, prediction)
    with ProbeSession(asked.order, rehearsal.add, prediction=prediction, recording_path=record) as session:
        outcome = end_of(session)
    return rehearsal, rehearsal.outcome_of(outcome), session.recording


def _write_files(rehearsal: Rehearsal, options: argparse.Namespace) -> None:
    if options.timeline is not None:
        _write_timeline(rehearsal, options.timeline)
    if options.snapshot is not None:
        with options.snapshot.open("wb") as file:
            pickle.dump(rehearsal.snapshot(), file)


def _write_timeline(rehearsal: Rehearsal, path: Path) -> None:
    columns, rows = ("event", "phase", "allocated", "reserved"), rehearsal.timeline_points(limit=None)
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".json":
            json.dump({"columns": columns, "rows": rows}, file)
        else:
            csv.writer(file).writerows([columns, *rows])


def _show(rehearsal: Rehearsal, recording: RecordingState, plan: Plan, *, as_json: bool) -> None:
    if as_json:
        shown = rehearsal.footprint().to_json() | {"recording": recording.path and str(recording.path)}
        print_json(shown)
    elif rehearsal.phases:
        print_rehearsal(rehearsal, title_of(plan))
        if recording.path:
            console().print(f"recording: {recording.path}", soft_wrap=True)


def print_rehearsal(rehearsal: Rehearsal, title: str) -> None:
    """Title, outcome, phases beside the prediction, what their peaks are made of, notes."""
    out = console()
    footprint = rehearsal.footprint()
    versions = rehearsal.environment.get("versions") or {}
    libraries = " and ".join(f"{name} {versions.get(name)}" for name in ("torch", "transformers"))
    out.print(f"[bold]{title}[/bold] · rehearsed with {libraries}, no GPU used", soft_wrap=True)
    out.print(str(rehearsal.outcome.get("text") or "The recording ends before the run did."), soft_wrap=True)
    out.print()
    out.print(_phases(rehearsal))
    for peak in rehearsal.peaks():
        _print_peak(peak)
    for note in footprint.notes:
        out.print(f"· {note}", soft_wrap=True)


def _phases(rehearsal: Rehearsal) -> Any:
    """Each meter of each phase, and by how much it differs from the prediction."""
    errors = rehearsal.error()
    headings = [heading for meter in METERS for heading in (meter, "vs predicted")]
    made = table(["phase", *headings], numeric=range(1, 1 + len(headings)))
    for step in rehearsal.phases:
        error = errors.get(step.name, {})
        cells = [cell for meter in METERS for cell in (format_bytes(step.meters[meter]), signed_percent(error.get(meter)))]
        made.add_row(step.name, *cells)
    return made


def _print_peak(peak: OpenedPeak) -> None:
    out = console()
    place = f"at {peak.module or 'the model'} ({peak.operator})" if peak.operator else "from the start"
    out.print(f"\n[bold]{peak.phase}[/bold]: {format_bytes(peak.allocated_bytes)} allocated, {place}", soft_wrap=True)
    made = table(["bytes", "tensors", "component", "made by", "in"], numeric=(0, 1))
    lines = peak.condensed()
    for group in lines[:PEAK_LINES]:
        made.add_row(format_bytes(group.bytes), f"{group.count}", group.component, group.operator, group.module)
    rest = lines[PEAK_LINES:]
    if rest:
        made.add_row(format_bytes(sum(group.bytes for group in rest)), f"{sum(group.count for group in rest)}", "the rest")
    out.print(made)
