"""Write the plan of a scenario as a report: Markdown (its charts beside it) or HTML (all in one)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cli import exits
from cli.advise import advice_for
from cli.inputs import ERRORS, plan_of, read_scenario, refuse
from cli.predict import title_of
from planner.report.content import Levels, report_of
from planner.report.write import markdown
from probes.measurement import Measurement
from probes.recording import read_recording
from resources.report_files import SUFFIXES, write_report


def add_options(parser: argparse.ArgumentParser) -> None:
    """Scenario, where to, and a measurement to stand beside the prediction."""
    parser.add_argument("scenario", help="scenario file (JSON), or - for standard input")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="report.md or report.html; without it Markdown is printed"
    )
    parser.add_argument("--recording", type=Path, metavar="FILE", help="a measured run (.jsonl) to hold against the plan")


def run(options: argparse.Namespace) -> int:
    """Write the report; the status tells the verdict."""
    output: Path | None = options.output
    if output is not None and output.suffix.lower() not in SUFFIXES:
        return exits.fail(exits.BAD_INPUT, f"--output: must end in {' or '.join(SUFFIXES)}, got {output.name}")
    try:
        plan = plan_of(read_scenario(options.scenario))
        measured = measured_levels(options.recording) if options.recording else None
        parts = report_of(plan.footprint, title_of(plan), measured, advice_for(plan))
        if output is None:
            sys.stdout.write(markdown(parts))
        else:
            write_report(parts, output, title_of(plan))
    except (*ERRORS, ValueError) as error:
        return refuse(error, [options.recording]) if isinstance(error, ERRORS) else exits.fail(exits.BAD_INPUT, str(error))
    return exits.OF_VERDICT[plan.footprint.verdict]


def measured_levels(recording: Path) -> Levels:
    """Bytes by phase and meter of a recorded run. Raises ValueError or OSError for a file that is none."""
    measurement = Measurement.of_recording(read_recording(recording))
    return {step.name: dict(step.meters) for step in measurement.phases}
