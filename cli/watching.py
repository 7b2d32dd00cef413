"""``measure --attach PID`` and ``measure -- COMMAND…``: watch what is not ours, beside a plan."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from cli import exits
from cli.ending import end_of
from cli.inputs import ERRORS, plan_of, read_scenario, refuse
from cli.streams import console, print_json
from cli.tables import signed_percent, table
from planner.footprint import COMPONENTS
from planner.units import format_bytes
from probes.log_lines import on_host
from probes.watch import Attach, Launch, Watch
from probes.watched import Watched
from resources.history import History, HistoryError
from resources.plan import Plan


def run(options: argparse.Namespace) -> int:
    """Watch to the end, then print what was measured beside the plan. What a launched command prints is passed on."""
    problem = _bad(options)
    if problem:
        return exits.fail(exits.BAD_INPUT, problem)
    try:
        plan = None if options.scenario is None else plan_of(read_scenario(options.scenario))
    except ERRORS as error:
        return refuse(error)
    watched = Watched(*_asked(plan))
    target = Launch(options.command) if options.command is not None else Attach(options.attach, options.log)
    with Watch(
        target, watched.add, scenario=watched.scenario, prediction=watched.prediction, time_s=options.time_limit,
        recording_path=options.record, on_output=_pass_on,
    ) as watch:  # fmt: skip
        ending = end_of(watch)
        recording = watch.recording
    path = "" if recording.path is None else str(recording.path.absolute())
    trouble = _keep(watched, path) if ending.kind != "could_not_start" else ""
    if options.json:
        print_json(watched.to_json() | {"recording": path or None})
    elif ending.kind != "could_not_start":
        print_watched(watched, path)
    exits.fail(ending.exit_code, *filter(None, (recording.trouble, trouble)))
    return exits.fail(ending.exit_code, ending.text) if ending.exit_code else exits.DONE


def _bad(options: argparse.Namespace) -> str:
    if options.attach is not None and options.command is not None:
        return "either --attach PID or a command after --, not both"
    if options.command is not None and not options.command:
        return "name the command after --"
    strange = [word for word, given in _of_a_run(options).items() if given]
    if strange:
        return f"{', '.join(strange)}: a process that is watched runs as it likes; this is for what Highwater runs itself"
    if options.log is not None and options.attach is None:
        return "--log goes with --attach; what a launched command prints is read anyhow"
    if options.log is not None and not options.log.is_file():
        return f"--log: {options.log} is not a file"
    return ""


def _of_a_run(options: argparse.Namespace) -> Mapping[str, bool]:
    """What says how a run of our own is to be, and whether it is given."""
    return {
        "--device": options.device is not None, "--layers": options.layers is not None, "--budget": options.budget is not None,
        "--snapshot": options.snapshot,
    }  # fmt: skip


def _asked(plan: Plan | None) -> tuple[Mapping[str, object] | None, Mapping[str, Any] | None]:
    return (None, None) if plan is None else (plan.footprint.scenario, plan.footprint.to_json())


def _pass_on(data: bytes) -> None:
    """Standard error, so that standard output holds the result alone."""
    sys.stderr.buffer.write(data)
    sys.stderr.buffer.flush()


def _keep(watched: Watched, recording: str) -> str:
    history = History()
    try:
        history.add(watched.run(recording))
    except HistoryError as error:
        return f"The watch is not in the history: {error}"
    return history.trouble


def print_watched(watched: Watched, path: str = "") -> None:
    """The ending, the peaks, and what the log said, beside the plan."""
    out = console()
    out.print(str(watched.outcome.get("text") or "The recording ends before the watch did."), soft_wrap=True)
    out.print(_peaks(watched))
    if watched.log.components:
        out.print()
        out.print(_components(watched))
    for name, value in watched.log.facts.items():
        out.print(f"{name.replace('_', ' ')}: {value:,g}", soft_wrap=True)
    for note in watched.notes:
        out.print(f"· {note}", soft_wrap=True)
    if path:
        out.print(f"recording: {path}", soft_wrap=True)


def _peaks(watched: Watched) -> Any:
    made = table(["highest of", "bytes", "vs plan"], numeric=(1, 2))
    for name, size in watched.peaks.items():
        words = {"rss": "host memory (RSS, with children)", "pss": "host memory (PSS, shared pages divided)"}
        made.add_row(words.get(name, name), format_bytes(size), "")
    if watched.device_bytes is not None:
        made.add_row("device", format_bytes(watched.device_bytes), signed_percent(watched.error().get("device")))
    return made


def _components(watched: Watched) -> Any:
    """What the log said, by device; the error stands beside the device that is compared."""
    errors, compared = watched.error(), watched.log.on_devices()
    made = table(["component", "on", "from the log", "±", "vs plan"], numeric=(2, 3, 4))
    for device, sizes in watched.log.components.items():
        for component in COMPONENTS:
            if component in sizes:
                size = sizes[component]
                beside = not on_host(device) and compared.get(component) == size
                band = format_bytes(watched.log.resolution_bytes(device, component))
                error = signed_percent(errors.get(component)) if beside else ""
                made.add_row(component, device or "each GPU", format_bytes(size), band, error)
    return made
