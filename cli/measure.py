"""Measure a scenario: a short load in a child process, beside its prediction.

Without a scenario: a ramp of plain allocations (--load ramp), or a script or module of your own (--script FILE, --module NAME).
Or watch what is not Highwater's: a process that runs (--attach PID), or a command that is launched (-- COMMAND…), with what
its log says of memory, beside the plan if a scenario is given.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cli import exits
from cli.arguments import positive, whole
from cli.inputs import ERRORS, plan_of, read_scenario, refuse, require_layers
from cli.measuring import default_device, measured
from cli.predict import title_of
from cli.results import print_measurement
from cli.streams import console, print_json
from planner.units import MIB
from probes.monitor import who_holds
from probes.preflight import why_not
from probes.remote import place_of
from probes.request import request
from probes.session import Limits

TAKES_COMMAND = True


def add_options(parser: argparse.ArgumentParser) -> None:
    """Scenario, device, limits, recording; or whom to watch."""
    alone = "--load ramp | --script FILE | --module NAME"
    parser.usage = f"%(prog)s [options] SCENARIO | {alone} | [SCENARIO] --attach PID | [SCENARIO] -- CMD"
    parser.add_argument("scenario", nargs="?", help="scenario file (JSON), or - for standard input")
    parser.add_argument(
        "--device", metavar="WHERE",
        help="cuda:N or cpu (default: cuda:0 when a GPU is here, else cpu); ssh:HOST[:cuda:N|:cpu] measures on another machine",
    )  # fmt: skip
    parser.add_argument(
        "--python", default="python3", metavar="PROGRAM", help="with ssh:HOST: the Python that has torch there (default: python3)"
    )
    parser.add_argument(
        "--layers", metavar="N|A,B|auto",
        help="build only N layers; or measure with A and with B (auto: chosen) and tell the whole model from both",
    )  # fmt: skip
    parser.add_argument("--budget", type=positive, metavar="MIB", help="most memory the run may take, in MiB")
    parser.add_argument(
        "--time-limit", type=positive, default=Limits().time_s, metavar="S", help="end the run after this many seconds"
    )
    parser.add_argument("--load", choices=("ramp",), help="no scenario: allocate until no more is to be had, and say how much")
    parser.add_argument(
        "--script", type=Path, metavar="FILE", help="no scenario: run this Python script on torch's counters; -- ARGS"
    )
    parser.add_argument("--module", metavar="NAME", help="no scenario: the same for a Python module, as python -m does")
    parser.add_argument("--attach", type=whole, metavar="PID", help="watch a process that runs; it is never ended")
    parser.add_argument("--log", type=Path, metavar="FILE", help="with --attach: the file its output goes to")
    parser.add_argument("--snapshot", action="store_true", help="record the CUDA allocator's segments after the run")
    parser.add_argument("--record", type=Path, metavar="FILE", help="where to record (default: the recordings folder)")
    parser.add_argument("--json", action="store_true", help="print the whole result as JSON")


def run(options: argparse.Namespace) -> int:
    """Run the probe to its end and print predicted, measured and error."""
    if options.record is not None and options.record.exists():
        return exits.fail(exits.BAD_INPUT, f"--record: {options.record} exists already; name a new file")
    if options.load or options.script is not None or options.module is not None:
        from cli import loads  # noqa: PLC0415  only for those who have no model

        return loads.run(options)
    if options.attach is not None or options.command is not None:
        from cli import watching  # noqa: PLC0415  only for those who watch

        return watching.run(options)
    if options.scenario is None:
        return exits.fail(exits.BAD_INPUT, "name a scenario, or a process with --attach PID, or a command after --")
    return _measure(options)


def _measure(options: argparse.Namespace) -> int:
    try:
        remote, device = place_of(options.device or default_device(), options.python)
    except ValueError as error:
        return exits.fail(exits.BAD_INPUT, str(error))
    problem = "" if remote else why_not()
    if problem:
        return exits.fail(exits.NOT_DONE_HERE, problem)
    try:
        plan = plan_of(read_scenario(options.scenario))
        budget = None if options.budget is None else int(options.budget * MIB)
        if options.layers is not None and not options.layers.isdecimal():
            from cli import scaled  # noqa: PLC0415  only for those who scale

            return scaled.run(options, plan, device, budget, remote)
        layers = None if options.layers is None else int(options.layers)
        require_layers(plan, layers)
        asked = request(plan, device, layers, None, budget, elsewhere=remote is not None, snapshot=options.snapshot)
    except ERRORS as error:
        return refuse(error)
    except ValueError as error:
        return exits.fail(exits.BAD_INPUT, str(error))
    measurement, outcome, recording = measured(asked, options, options.record, remote)
    if options.json:
        shown = measurement.footprint().to_json() | {"recording": recording and str(recording)}
        print_json(shown)
    else:
        print_measurement(measurement, title_of(plan))
        if recording:
            console().print(f"recording: {recording}", soft_wrap=True)
    if outcome.exit_code:
        held = who_holds() if outcome.kind == "out_of_memory" and remote is None and device != "cpu" else []
        exits.fail(outcome.exit_code, outcome.text, *held)
    return outcome.exit_code
