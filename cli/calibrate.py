"""Calibrate this machine: measure what it adds outside the tensors, and let predictions use what proves itself.

``run`` goes through a battery of under five minutes and then fits; ``fit`` goes by the recordings that are there, all or the files
named; ``show``, ``undo``, ``reset`` and ``export`` are for what is kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cli import exits
from cli.inputs import ERRORS, refuse
from cli.measuring import default_device
from cli.streams import console
from cli.tables import table
from planner.units import format_bytes
from probes.battery import Battery, Progress
from probes.calibration import Fit, fit, gather, recordings
from probes.outcome import Outcome
from probes.preflight import why_not
from probes.recording import RecordingError
from resources import calibration as store

ACTIONS = ("run", "fit", "show", "undo", "reset", "export")


def add_options(parser: argparse.ArgumentParser) -> None:
    """What to do."""
    parser.add_argument("action", nargs="?", choices=ACTIONS, default="run", help="what to do (default: run)")
    parser.add_argument("files", nargs="*", metavar="FILE|CARD", help="fit: recordings; undo, reset: a card; export: a file")
    parser.add_argument("--device", help="run: cuda:N or cpu (default: cuda:0 when a GPU is here, else cpu)")
    parser.add_argument("--dry-run", action="store_true", help="run, fit: show what it comes to, and keep nothing")


def run(options: argparse.Namespace) -> int:
    """Do it."""
    try:
        return {"run": _run, "fit": _fit, "show": _show, "undo": _undo, "reset": _reset, "export": _export}[options.action](options)
    except store.CalibrationError as error:
        return exits.fail(exits.NOT_DONE_HERE, str(error))
    except (ValueError, RecordingError) as error:
        return exits.fail(exits.BAD_INPUT, str(error))
    except ERRORS as error:
        return refuse(error, options.files)


# The battery.


def _run(options: argparse.Namespace) -> int:
    problem = why_not()
    if problem:
        return exits.fail(exits.NOT_DONE_HERE, problem)
    device = options.device or default_device()
    told = 0

    def tell(progress: Progress) -> None:
        nonlocal told
        for note in progress.notes[told:]:
            sys.stderr.write(f"{note}\n")
        told = len(progress.notes)
        sys.stderr.write(f"{progress.done + 1} of {progress.total}: {progress.title} …\n")
        sys.stderr.flush()

    battery = Battery(device, tell)
    outcome = _until_its_end(battery)
    exits.fail(0, *battery.notes[told:])
    if outcome.kind != "completed":
        return exits.fail(outcome.exit_code, outcome.text)
    if device == "cpu":
        _print_cpu(battery.figures)
        return exits.DONE
    options.files = []
    return _fit(options)


def _until_its_end(battery: Battery) -> Outcome:
    """On a thread of its own, so that Ctrl-C stops the run under way and is an outcome."""
    with ThreadPoolExecutor(1, thread_name_prefix="battery") as pool:
        running = pool.submit(battery.run)
        while True:
            try:
                return running.result()
            except KeyboardInterrupt:
                battery.stop()


def _print_cpu(told: Mapping[str, Any]) -> None:
    out = console()
    out.print(f"memory bandwidth of a copy: {told.get('bandwidth_bytes_per_s', 0) / 1e9:.1f} GB/s", soft_wrap=True)
    for dtype, rate in (told.get("flops_per_s") or {}).items():
        out.print(f"matrix products in {dtype}: {rate / 1e9:.1f} GFLOP/s", soft_wrap=True)
    out.print("A CPU has no context and no caching allocator to calibrate: nothing is kept.", soft_wrap=True)


# The fit.


def _fit(options: argparse.Namespace) -> int:
    found = gather(recordings([Path(name) for name in options.files]))
    if not found:
        return exits.fail(exits.NOT_DONE_HERE, "no recording of a run on a GPU was found; measure some first, or `calibrate run`")
    for evidence in found.values():
        fitted = fit(evidence)
        _print_fit(fitted)
        if fitted.is_better and not options.dry_run:
            store.save(fitted.card, fitted.calibration)
            console().print("Predictions for this card use it from now on; `calibrate undo` takes it back.", soft_wrap=True)
        elif not fitted.is_better:
            console().print("Nothing proved itself: predictions stay as they are.", soft_wrap=True)
    return exits.DONE


def _print_fit(fitted: Fit) -> None:
    out = console()
    out.print(f"[bold]{fitted.card}[/bold] · {fitted.calibration.source}", soft_wrap=True)
    made = table(["figure", "measured", "±", "runs", "held-out error", "with it", ""], numeric=range(1, 6))
    for figure in fitted.figures:
        errors = [_percent(figure.error_before), _percent(figure.error_after)]
        mark = "✔" if figure.accepted else "–"
        made.add_row(figure.name, *figure.told(format_bytes), str(figure.runs), *errors, f"{mark} {figure.why}")
    out.print(made)
    if fitted.error_before is not None:
        told = f"{_percent(fitted.error_before)} without, {_percent(fitted.error_after)} with it"
        out.print(f"device figure of runs that it was not fitted on: {told}", soft_wrap=True)


def _percent(error: float | None) -> str:
    return "N/A" if error is None else f"{100 * error:.2f} %"


# What is kept.


def _show(_options: argparse.Namespace) -> int:
    cards = store.cards()
    if not cards:
        console().print("nothing is calibrated here: predictions use the catalog's typical values", soft_wrap=True)
    for card in cards:
        held = store.history_of(card)
        console().print(f"[bold]{card}[/bold] · {held[-1].source} · {len(held)} kept", soft_wrap=True)
        for name, value in vars(held[-1]).items():
            if value not in (None, 0, 0.0, (), "") and name != "source":
                console().print(f"  {name}: {value}", soft_wrap=True)
    return exits.DONE


def _undo(options: argparse.Namespace) -> int:
    cards = store.cards()
    card = options.files[0] if options.files else cards[0] if len(cards) == 1 else ""
    _known(card, "undo")
    store.undo(card)
    left = len(store.history_of(card))
    console().print(f"{card}: taken back; {left} before it" if left else f"{card}: back to the catalog's values", soft_wrap=True)
    return exits.DONE


def _known(card: str, action: str) -> None:
    cards = store.cards()
    if card not in cards:
        raise ValueError(f"{action}: name a card that is calibrated ({', '.join(cards) or 'none'})")


def _reset(options: argparse.Namespace) -> int:
    for card in options.files:
        _known(card, "reset")
    count = sum(map(store.reset, options.files or [None]))
    console().print(f"{count} cards are back to the catalog's values", soft_wrap=True)
    return exits.DONE


def _export(options: argparse.Namespace) -> int:
    if len(options.files) != 1:
        raise ValueError("export: name one file")
    try:
        Path(options.files[0]).write_text(store.export(), encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{options.files[0]}: can't be written: {error.strerror or error}") from error
    return exits.DONE
