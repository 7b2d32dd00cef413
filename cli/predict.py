"""Predict the memory of a scenario, in closed form."""

from __future__ import annotations

import argparse

from cli import exits
from cli.inputs import ERRORS, plan_of, read_scenario, refuse
from cli.streams import print_json
from cli.tables import print_footprint
from resources.plan import Plan


def add_options(parser: argparse.ArgumentParser) -> None:
    """Scenario and form of the answer."""
    parser.add_argument("scenario", help="scenario file (JSON), or - for standard input")
    parser.add_argument("--json", action="store_true", help="print the whole footprint as JSON")


def run(options: argparse.Namespace) -> int:
    """Print the footprint; the status tells the verdict."""
    try:
        plan = plan_of(read_scenario(options.scenario))
    except ERRORS as error:
        return refuse(error)
    if options.json:
        print_json(plan.footprint.to_json())
    else:
        print_footprint(plan.footprint, title_of(plan))
    return exits.OF_VERDICT[plan.footprint.verdict]


def title_of(plan: Plan) -> str:
    """As the window's reports are called."""
    return plan.title
