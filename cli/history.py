"""List, show, export and delete the runs that were measured, rehearsed or watched here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cli import exits
from cli.arguments import whole
from cli.streams import console, print_json
from cli.tables import signed_percent, table
from planner.units import format_bytes
from resources.history import History, HistoryError, Run

ACTIONS = ("list", "show", "export", "delete")


def add_options(parser: argparse.ArgumentParser) -> None:
    """What to do with which runs."""
    parser.add_argument("action", nargs="?", choices=ACTIONS, default="list", help="default: list")
    parser.add_argument(
        "arguments", nargs="*", metavar="WORD|ID|FILE",
        help="list: words to search for; show, delete: ids; export: a file ending in .json or .csv, then ids (default: all)",
    )  # fmt: skip
    parser.add_argument("--limit", type=whole, default=30, help="list at most so many (default: 30)")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(options: argparse.Namespace) -> int:
    """Do it; what happened to a broken history is told on standard error."""
    history = History()
    try:
        status = {"list": _list, "show": _show, "export": _export, "delete": _delete}[options.action](history, options)
    except HistoryError as error:
        return exits.fail(exits.NOT_DONE_HERE if error.__cause__ else exits.BAD_INPUT, str(error))
    except ValueError as error:
        return exits.fail(exits.BAD_INPUT, str(error))
    if history.trouble:
        exits.fail(status, history.trouble)
    return status


def _list(history: History, options: argparse.Namespace) -> int:
    runs = history.runs(" ".join(options.arguments), options.limit)
    if options.json:
        print_json([found.to_json() for found in runs])
        return exits.DONE
    if not runs:
        console().print("no run found" if options.arguments else "no run yet: measure or rehearse a scenario", soft_wrap=True)
        return exits.DONE
    headings = ["id", "when (UTC)", "level", "model", "task", "on", "outcome", "phase", "allocated", "error", "device"]
    made = table(headings, numeric=(0, 8, 9, 10))
    for found in runs:
        made.add_row(*_cells(found))
    console().print(made)
    return exits.DONE


def _cells(found: Run) -> list[str]:
    on = found.gpu if found.level == "rehearse" else found.device
    sizes = ["N/A" if size is None else format_bytes(size) for size in (found.allocated_bytes, found.device_bytes)]
    when = found.created[:16].replace("T", " ")
    about = [str(found.id), when, found.level, found.model, found.task, on, found.outcome, found.phase]
    return [*about, sizes[0], signed_percent(found.error), sizes[1]]


def _show(history: History, options: argparse.Namespace) -> int:
    found = [history.run(number) for number in _numbers(options.arguments)]
    if options.json:
        print_json([one.to_json() for one in found])
        return exits.DONE
    for one in found:
        made = table(["", f"run {one.id}"])
        for name, value in one.to_json().items():
            if name not in ("result", "id", "error") and value not in ("", None):
                made.add_row(name.removesuffix("_bytes"), format_bytes(value) if name.endswith("_bytes") else str(value))
        made.add_row("text", str(one.result.get("outcome_text") or ""))
        console().print(made)
    return exits.DONE


def _export(history: History, options: argparse.Namespace) -> int:
    if not options.arguments:
        raise ValueError("export: name a file that ends in .json or .csv")
    path, numbers = Path(options.arguments[0]), _numbers(options.arguments[1:], needed=False)
    makers = {".json": history.export_json, ".csv": history.export_csv}
    if path.suffix not in makers:
        raise ValueError(f"export: {path} must end in .json or .csv")
    pieces = makers[path.suffix](numbers)
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            file.writelines(pieces)
    except OSError as error:
        return exits.fail(exits.BAD_INPUT, f"{path}: can't be written: {error.strerror or error}")
    return exits.DONE


def _delete(history: History, options: argparse.Namespace) -> int:
    numbers = _numbers(options.arguments)
    for number in numbers:
        history.run(number)
    console().print(f"{history.delete(numbers)} deleted; their recordings stay", soft_wrap=True)
    return exits.DONE


def _numbers(words: Sequence[str], *, needed: bool = True) -> list[int]:
    if needed and not words:
        raise ValueError("name a run by its id; `history` lists them")
    wrong = [word for word in words if not (word.isascii() and word.isdigit() and len(word) < 19)]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is not the id of a run; `history` lists them")
    return [int(word) for word in words]
