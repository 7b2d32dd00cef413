"""Print the launch commands and config files that realise a plan, for its engine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cli import exits
from cli.inputs import ERRORS, plan_of, read_scenario, refuse
from cli.streams import print_json
from planner.commands import Command, commands_of
from planner.scenario import parse_scenario

COMMENT = {"shell": "#", "python": "#", "yaml": "#"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Scenario, form of the answer, and a folder for the files."""
    parser.add_argument("scenario", help="scenario file (JSON), or - for standard input")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write the files there; existing ones are left alone")


def run(options: argparse.Namespace) -> int:
    """Print (or write) every command; the plan is made first, so that a scenario that can't be is refused."""
    try:
        plan = plan_of(read_scenario(options.scenario))
        commands = commands_of(parse_scenario(plan.footprint.scenario), plan.architecture, plan.gpu)
        if options.write:
            return _write(commands, options.write)
    except ERRORS as error:
        return refuse(error)
    if options.json:
        print_json([command.to_json() for command in commands])
    else:
        sys.stdout.write("\n".join(map(_shown, commands)))
    return exits.DONE


def _shown(command: Command) -> str:
    """A command with its title above, as a comment where its language has them."""
    mark = COMMENT.get(command.language, "//")
    name = f" → {command.file}" if command.file else ""
    lines = [
        f"{mark} {command.title} ({command.engine} {command.version}){name}",
        *(f"{mark} note: {note}" for note in command.notes),
    ]
    return "\n".join((*lines, command.text))


def _write(commands: tuple[Command, ...], folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    for number, command in enumerate(commands, 1):
        path = folder / (command.file or f"{number:02d}-{command.engine}.sh")
        with path.open("x", encoding="utf-8") as file:
            file.write(command.text)
        sys.stdout.write(f"{path}\n")
    return exits.DONE
