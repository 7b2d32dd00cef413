"""Runs the worker as a child and reads its events. Needs nothing but the standard library."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
Event = dict[str, Any]


def run_worker(order: dict[str, Any], on_event: Callable[[Event], object], limit_s: float = 300.0) -> int | None:
    """Every event, with ``t`` counted from the start; the exit status, None when it had to be ended at the limit."""
    child = subprocess.Popen(
        [sys.executable, "-m", "probes.worker"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    origin = time.monotonic()
    child.stdin.write(json.dumps(order).encode() + b"\n")
    child.stdin.close()
    child.stdin = None
    too_long = threading.Timer(limit_s, child.kill)
    too_long.start()
    errors = subprocess.Popen(["tail", "-c", "2000"], stdin=child.stderr, stdout=subprocess.PIPE)
    child.stderr.close()
    for line in child.stdout:
        if not line.endswith(b"\n"):
            break
        event = json.loads(line)
        event["t"] = round(event["t"] - origin, 6)
        on_event(event)
    child.stdout.close()
    status = child.wait()
    too_long.cancel()
    tail, _ = errors.communicate()
    if status not in (0, None):
        sys.stderr.write(tail.decode("utf-8", "replace"))
    return None if time.monotonic() - origin > limit_s else status


def result_of(events: list[Event]) -> Event:
    """The result; an assertion with the worker's own words where there is none."""
    results = [event for event in events if event["event"] == "result"]
    assert results, [event for event in events if event["event"] == "error"] or events[-1:]
    return results[0]
