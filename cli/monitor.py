"""Watch every GPU of this machine: memory, load, and the processes that hold it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.live import Live

from cli import exits
from cli.streams import console
from cli.tables import table
from planner.units import format_bytes
from probes.monitor import SORTS, Monitor, Snapshot, gpu_label, used_share
from probes.sampler import IDLE_INTERVAL_S

TRACE = 40
"""Readings of the past that are drawn."""
_BLOCKS = "▁▂▃▄▅▆▇█"


def add_options(parser: argparse.ArgumentParser) -> None:
    """How long, how often, in which form."""
    parser.add_argument("--once", action="store_true", help="read once and end")
    parser.add_argument("--json", action="store_true", help="print each reading as one line of JSON")
    parser.add_argument("--interval", type=float, default=IDLE_INTERVAL_S, metavar="S", help="seconds between two readings")
    parser.add_argument("--for", dest="seconds", type=float, metavar="S", help="end after so many seconds (default: Ctrl-C)")
    parser.add_argument("--sort", choices=SORTS, default="memory", help="order of the processes")
    parser.add_argument("--threshold", type=float, metavar="PERCENT", help="mark GPUs that use more of their memory")
    parser.add_argument(
        "--record", nargs="?", type=Path, const=True, metavar="FILE", help="record (default: the recordings folder)"
    )


def run(options: argparse.Namespace) -> int:
    """Read until the end; 3 with the reason and the remedy where no driver answers."""
    problem = _bad(options)
    if problem:
        return exits.fail(exits.BAD_INPUT, problem)
    monitor = Monitor(threshold=options.threshold and options.threshold / 100, sort=options.sort)
    try:
        first = monitor.read()
        if not first.state.available:
            if options.json:
                _print_json(first)
            return exits.fail(exits.NOT_DONE_HERE, str(first.state))
        if options.record is not None:
            monitor.record(None if options.record is True else options.record)
        _show(monitor, first, options)
    except KeyboardInterrupt:
        return _end(monitor, exits.DONE)
    finally:
        monitor.close()
    return _end(monitor, exits.DONE)


def _bad(options: argparse.Namespace) -> str:
    if options.threshold is not None and not 0 < options.threshold <= 100:
        return f"--threshold: must be above 0 and at most 100 %, got {options.threshold:g}"
    if not 0.02 <= options.interval <= 3600:
        return f"--interval: must be from 0.02 to 3600 s, got {options.interval:g}"
    if options.seconds is not None and not options.seconds > 0:
        return f"--for: must be above 0 s, got {options.seconds:g}"
    if options.record not in (None, True) and options.record.exists():
        return f"--record: {options.record} exists already; name a new file"
    return ""


def _end(monitor: Monitor, status: int) -> int:
    recording = monitor.recording
    if recording.trouble:
        exits.fail(status, recording.trouble)
    elif recording.path:
        sys.stderr.write(f"recording: {recording.path}\n")
    return status


def _show(monitor: Monitor, first: Snapshot, options: argparse.Namespace) -> None:
    out, past = console(), _Past()
    if options.json or options.once or not out.is_terminal:
        for snapshot in _readings(monitor, first, options):
            if options.json:
                _print_json(snapshot)
            else:
                out.print(past.picture(snapshot))
        return
    with Live(console=out, auto_refresh=False) as live:
        for snapshot in _readings(monitor, first, options):
            live.update(past.picture(snapshot), refresh=True)


def _readings(monitor: Monitor, first: Snapshot, options: argparse.Namespace) -> Iterator[Snapshot]:
    """The first reading and those that follow, on a grid that does not drift."""
    yield first
    due = begun = time.monotonic()
    while not options.once:
        due = max(due + options.interval, time.monotonic())
        if options.seconds is not None and due - begun > options.seconds:
            return
        time.sleep(max(0.0, due - time.monotonic()))
        yield monitor.read()


def _print_json(snapshot: Snapshot) -> None:
    sys.stdout.write(json.dumps(snapshot.to_json()) + "\n")
    sys.stdout.flush()


class _Past:
    """The last readings of each GPU, and the picture they make."""

    def __init__(self) -> None:
        self._shares: dict[str, deque[float | None]] = {}

    def picture(self, snapshot: Snapshot) -> RenderableType:
        """GPUs, and below them their processes."""
        for gpu in snapshot.gpus:
            self._shares.setdefault(gpu_label(gpu), deque(maxlen=TRACE)).append(used_share(gpu))
        parts: list[RenderableType] = [_gpus(snapshot, self._shares)]
        if snapshot.holders:
            parts += ["", _processes(snapshot)]
        if not snapshot.state.available:
            parts.append(str(snapshot.state))
        return Group(*parts)


def _gpus(snapshot: Snapshot, shares: Mapping[str, Sequence[float | None]]) -> RenderableType:
    made = table(["GPU", "name", "used", "of", "%", "busy", "power", "temperature", "memory over time"], numeric=range(2, 8))
    for gpu in snapshot.gpus:
        label, share = gpu_label(gpu), used_share(gpu)
        mark = "▲ " if label in snapshot.over else ""
        made.add_row(
            label, gpu.trouble or gpu.name, _bytes(gpu.memory.used_bytes), _bytes(gpu.memory.total_bytes),
            "N/A" if share is None else f"{mark}{100 * share:.0f} %", _number(gpu.utilization_percent, "%"),
            _number(gpu.power_watts, "W"), _number(gpu.temperature_celsius, "°C"), sparkline(shares[label]),
        )  # fmt: skip
    return made


def _processes(snapshot: Snapshot) -> RenderableType:
    made = table(["GPU", "pid", "GPU memory", "host memory", "user", "process"], numeric=(1, 2, 3))
    for holder in snapshot.holders:
        name = holder.name or "N/A"
        made.add_row(holder.gpu, str(holder.pid), _bytes(holder.used_bytes), _bytes(holder.rss_bytes), holder.user, name)
    return made


def sparkline(shares: Sequence[float | None]) -> str:
    """``▁▂█``: a character for each share from 0 to 1, a space for N/A."""
    return "".join(" " if share is None else _BLOCKS[min(7, max(0, int(8 * share)))] for share in shares)


def _bytes(size: int | None) -> str:
    return "N/A" if size is None else format_bytes(size)


def _number(value: float, unit: str) -> str:
    return "N/A" if value != value else f"{value:.0f} {unit}"  # noqa: PLR0124  NaN
