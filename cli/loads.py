"""``measure --load ramp`` and ``measure --script FILE``: loads that need no model."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from cli import exits
from cli.ending import end_of
from cli.measuring import default_device, keep_run
from cli.results import print_measurement
from cli.streams import console, print_json
from planner.units import MIB, format_bytes
from probes.measurement import Measurement
from probes.orders import load_order
from probes.outcome import Outcome
from probes.preflight import why_not
from probes.remote import place_of
from probes.session import Limits, ProbeSession

_STOPPED_BY = {
    "out_of_memory": "no more was to be had",
    "budget": "the budget was reached",
    "machine": "a tenth of the system's memory was left",
}


def run(options: argparse.Namespace) -> int:
    """Run the load to its end and print what it took."""
    problem = _bad(options)
    if problem:
        return exits.fail(exits.BAD_INPUT, problem)
    try:
        remote, device = place_of(options.device or default_device(), options.python)
    except ValueError as error:
        return exits.fail(exits.BAD_INPUT, str(error))
    own = "--script" if options.script is not None else "--module" if options.module is not None else ""
    if remote and own:
        return exits.fail(exits.BAD_INPUT, f"{own}: what is yours is run on this machine only; copy it and run it there")
    problem = "" if remote else why_not()
    if problem:
        return exits.fail(exits.NOT_DONE_HERE, problem)
    try:
        budget = None if options.budget is None else int(options.budget * MIB)
        order = load_order("ramp" if options.load else "script", device, budget, **_more(options))
    except ValueError as error:
        return exits.fail(exits.BAD_INPUT, str(error))
    measurement = Measurement({"model": _title(options), "task": order["mode"]})
    with ProbeSession(order, measurement.add, limits=_limits(options), recording_path=options.record, remote=remote) as session:
        outcome = end_of(session)
    _show(measurement, outcome, options, str(session.recording.path or ""))
    keep_run(measurement, outcome, session.recording)
    if outcome.exit_code and outcome.stderr_tail and own:
        sys.stderr.write(outcome.stderr_tail.rstrip() + "\n")
    return exits.fail(outcome.exit_code, outcome.text) if outcome.exit_code else exits.DONE


def _bad(options: argparse.Namespace) -> str:
    kinds = [options.load, options.script, options.module]
    if options.scenario is not None or options.attach is not None or sum(kind is not None for kind in kinds) > 1:
        return "--load, --script and --module stand alone: neither with each other, nor with a scenario or --attach"
    if options.load and options.command is not None:
        return "--load takes no command"
    if options.script is not None and not options.script.is_file():
        return f"--script: there is no file {options.script}"
    return ""


def _more(options: argparse.Namespace) -> dict[str, object]:
    if options.load:
        return {}
    what = {"script": str(options.script.absolute())} if options.script is not None else {"module": options.module}
    return {**what, "arguments": options.command or []}


def _limits(options: argparse.Namespace) -> Limits:
    """A script may think for long without a word."""
    return Limits(time_s=options.time_limit, silence_s=Limits().silence_s if options.load else None)


def _title(options: argparse.Namespace) -> str:
    return "plain allocations" if options.load else str(options.script or options.module)


def _show(measurement: Measurement, outcome: Outcome, options: argparse.Namespace, recording: str) -> None:
    told: dict[str, Any] = {name: measurement.result.get(name) for name in ("available_bytes", "stopped_by")}
    if options.json:
        shown = measurement.footprint().to_json() | (told if options.load else {}) | {"recording": recording or None}
        print_json(shown)
        return
    if measurement.phases:
        print_measurement(measurement, _title(options))
    if options.load and outcome.kind == "completed":
        words = _STOPPED_BY.get(str(told["stopped_by"]), "")
        console().print(f"available: {format_bytes(told['available_bytes'])}; {words}", soft_wrap=True)
    if recording:
        console().print(f"recording: {recording}", soft_wrap=True)
