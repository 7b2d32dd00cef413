"""Replay a recording as if it were live, at any speed."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cli import exits
from cli.results import print_measurement
from planner.footprint import METERS
from planner.units import format_bytes
from probes.history import model_name
from probes.measurement import Measurement
from probes.playback import Playback
from probes.recording import Event, Recorded, RecordingError, read_recording

_TOLD = {"note": "message", "log": "line", "outcome": "text"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which recording, how fast."""
    parser.add_argument("recording", type=Path, help="recording file (.jsonl)")
    parser.add_argument("--speed", default="1", metavar="X", help="times as fast as it was, or max (default: 1)")
    parser.add_argument("--json", action="store_true", help="print every event as a line of JSON, at its time")


def run(options: argparse.Namespace) -> int:
    """Tell the events, then what they came to. The status is that of the replay, whatever the run came to."""
    try:
        speed = math.inf if options.speed == "max" else float(options.speed)
    except ValueError:
        return exits.fail(exits.BAD_INPUT, f"--speed: must be a number or max, got {options.speed!r}")
    try:
        recorded = read_recording(options.recording)
        playback = Playback(recorded, _json_line if options.json else _teller(), speed)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        told = str(error) if isinstance(error, RecordingError) or reason is None else f"{options.recording}: {reason}"
        return exits.fail(exits.BAD_INPUT, told)
    playback.run()
    if not options.json:
        _print_result(recorded)
    if recorded.skipped_lines:
        exits.fail(exits.DONE, f"{options.recording}: {recorded.skipped_lines} lines could not be read and were left out")
    return exits.DONE


def _json_line(event: Event) -> None:
    sys.stdout.write(json.dumps(event, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def _teller() -> Callable[[Event], None]:
    """Tells where phases begin and end, notes, and of the samples of each rank about one a second."""
    told_s: dict[object, float] = {}

    def tell(event: Event) -> None:
        words = _words(event)
        said = event["of"] if event["event"] == "rank" else event
        if said.get("event") in ("memory", "sample"):
            t = event.get("t", 0.0)
            if t - told_s.get(event.get("rank"), -math.inf) < 1.0 or not words:
                return
            told_s[event.get("rank")] = t
        if words:
            sys.stdout.write(f"{event.get('t') or 0.0:9.2f} s  {words}\n")
            sys.stdout.flush()

    return tell


def _words(event: Mapping[str, Any]) -> str:
    """An event as a person reads it; empty for those that are not told."""
    match event["event"]:
        case "memory":
            words = " · ".join(f"{meter} {format_bytes(event[meter])}" for meter in METERS if isinstance(event.get(meter), int))
        case "phase":
            words = f"{event.get('name')} {'begins' if event.get('state') == 'begin' else 'ends'}"
        case "sample":
            told = event.get("gpus")
            gpus = [gpu for gpu in told if isinstance(gpu, dict)] if isinstance(told, list) else []
            used = [(gpu.get("index"), gpu["used"]) for gpu in gpus if isinstance(gpu.get("used"), int) and gpu["used"]]
            words = " · ".join(f"GPU {index} {format_bytes(size)}" for index, size in used)
        case "rank":
            words = _words(event.get("of") or {"event": ""})
            words = f"rank {event.get('rank')}: {words}" if words else ""
        case other:
            words = str(event.get(_TOLD.get(other, ""), ""))
    return words


def _print_result(recorded: Recorded) -> None:
    order = recorded.header.get("order") or {}
    title = model_name((recorded.header.get("scenario") or {}).get("model"))
    if order.get("mode") == "rehearse":
        from cli.rehearse import print_rehearsal  # noqa: PLC0415  the simulated allocator is for those who need it
        from probes.rehearsal import Rehearsal  # noqa: PLC0415  likewise

        print_rehearsal(Rehearsal.of_recording(recorded), title)
    elif order.get("mode") == "watch":
        from cli.watching import print_watched  # noqa: PLC0415  likewise
        from probes.watched import Watched  # noqa: PLC0415  likewise

        print_watched(Watched.of_recording(recorded))
    elif order.get("mode", "measure") == "measure":
        print_measurement(Measurement.of_recording(recorded), title)
