"""Propose changes that make a plan fit or give it room, each predicted anew."""

from __future__ import annotations

import argparse

from cli import exits
from cli.inputs import ERRORS, plan_of, read_scenario, refuse
from cli.streams import console, print_json
from cli.tables import table
from planner.advise import Advice, advise
from planner.scenario import parse_scenario
from planner.units import format_bytes
from resources.family import answer_for, smaller_models
from resources.plan import Plan


def add_options(parser: argparse.ArgumentParser) -> None:
    """Scenario and form of the answer."""
    parser.add_argument("scenario", help="scenario file (JSON), or - for standard input")
    parser.add_argument("--json", action="store_true", help="print as JSON, each proposal with its scenario")


def run(options: argparse.Namespace) -> int:
    """Print the proposals; the status tells whether the plan fits as it is."""
    try:
        plan = plan_of(read_scenario(options.scenario))
        found = advice_for(plan)
    except ERRORS as error:
        return refuse(error)
    if options.json:
        print_json([advice.to_json() for advice in found])
    else:
        _print(found, plan.footprint.verdict)
    return exits.OF_VERDICT[plan.footprint.verdict]


def advice_for(plan: Plan) -> tuple[Advice, ...]:
    """Proposals for a plan, best first."""
    settled = parse_scenario(plan.footprint.scenario)
    return advise(settled, plan.architecture, answer_for(plan), smaller_models(plan))


def _print(found: tuple[Advice, ...], verdict: str) -> None:
    words = verdict.replace("_", " ")
    if not found:
        console().print(f"the plan: {words}; no change is known that would take less")
        return
    console().print(f"the plan: {words}; what would take less, best first")
    made = table(["change", "saves", "then", "cost"], numeric=(1,))
    for advice in found:
        made.add_row(advice.title, format_bytes(advice.gain_bytes), advice.verdict.replace("_", " "), advice.cost)
    console().print(made)
