"""Measure the battery on this machine's GPU and keep small compressed recordings.

    python tests/gpu/battery.py FOLDER [--device cuda:0] [--only WORD] [--limit-s SECONDS]

Runs that are in the folder already are left out, so that it can be begun again. Needs torch and transformers alone; what
the driver holds is read with nvidia-smi.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.gpu.scenarios import SCENARIOS, Scenario
from tests.gpu.worker_process import Event, run_worker

KEPT_SAMPLES = 200
"""Of each series; peaks are kept whatever the number."""
MIB = 2**20


class DriverMemory(threading.Thread):
    """What the first GPU holds, from nvidia-smi, ten times a second; silent where there is none."""

    def __init__(self, events: list[Event]) -> None:
        super().__init__(daemon=True)
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0", "-lms", "100"]
        self._events = events
        self._origin = time.monotonic()
        try:
            self._child: subprocess.Popen[str] | None = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        except OSError:
            self._child = None

    def run(self) -> None:
        """Read until stopped."""
        before: int | None = None
        for line in self._child.stdout if self._child and self._child.stdout else ():
            if not line.strip().isdigit():
                continue
            used = int(line) * MIB
            before = used if before is None else before
            gpu = {"index": 0, "mig_index": None, "used": used, "free": None, "delta": used - before}
            self._events.append({"event": "sample", "t": round(time.monotonic() - self._origin, 6), "rss": None, "gpus": [gpu]})

    def stop(self) -> None:
        """End nvidia-smi."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()


def environment() -> dict[str, Any]:
    """System, driver and cards."""
    query = "name,driver_version,memory.total,pci.bus_id"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True, timeout=30, check=False
        )
        cards = done.stdout.strip().splitlines()
    except OSError:
        cards = []
    driver = cards[0].split(", ")[1] if cards else None
    return {"system": platform.platform(), "python": platform.python_version(), "driver": driver, "nvidia_smi": cards}


def thinned(events: list[Event]) -> list[Event]:
    """Every event but most samples: evenly chosen ones, and those at which a series was highest."""
    kept = [event for event in events if event["event"] not in ("memory", "sample", "progress")]
    for name, value in (("memory", lambda e: e["reserved"]), ("sample", lambda e: e["gpus"][0]["used"])):
        series = [event for event in events if event["event"] == name]
        step = max(1, len(series) // KEPT_SAMPLES)
        chosen = series[::step]
        if series and step > 1:
            chosen.append(max(series, key=value))
        kept += chosen
    return sorted(kept, key=lambda event: event["t"])


def measure(scenario: Scenario, device: str, limit_s: float, layers: int | None = None) -> tuple[dict[str, Any], list[Event]]:
    """One run, with ``layers`` in place of its own if given: header and events of its recording."""
    events: list[Event] = []
    driver = DriverMemory(events)
    driver.start()
    time.sleep(0.4 if device != "cpu" else 0.0)
    order = scenario.order("measure", device) | ({} if layers is None else {"layers": layers})
    told = environment()
    header = {
        "highwater_recording": 2, "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "scenario": order["scenario"], "config": order["config"], "prediction": None, "environment": told,
        "order": {key: value for key, value in order.items() if key not in ("scenario", "config")},
    }  # fmt: skip
    events.append({"event": "environment", "t": 0.0, **told})
    status = run_worker(order, events.append, limit_s)
    driver.stop()
    result = next((event for event in events if event["event"] == "result"), None)
    kind = "timed_out" if status is None else "failed" if result is None else result["outcome"]
    ended = max(event["t"] for event in events)
    events.append({"event": "outcome", "t": ended, "kind": kind, "after_s": ended, "text": kind, "exit_status": status})
    return header, thinned(events)


def main() -> int:
    """Run what is missing; the exit status is how many failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--only", default="", help="only scenarios whose name holds this")
    parser.add_argument("--layers", type=int, help="build only so many: a dry run")
    parser.add_argument("--limit-s", type=float, default=540.0, help="begin no run after so many seconds")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    begun, failed = time.monotonic(), 0
    for scenario in SCENARIOS:
        path = options.folder / f"{scenario.name}.jsonl.gz"
        if options.only not in scenario.name or path.exists():
            continue
        if time.monotonic() - begun > options.limit_s:
            print("the time is over; begin again for the rest")
            break
        header, events = measure(scenario, options.device, 240.0, options.layers)
        lines = [json.dumps(line, separators=(",", ":")) for line in (header, *events)]
        path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0))
        kind = events[-1]["kind"]
        failed += kind not in ("completed", "out_of_memory")
        peak = max((event.get("allocated") or 0 for event in events if event["event"] == "phase"), default=0)
        print(f"{scenario.name:44} {kind:14} {peak / 2**30:8.2f} GiB {time.monotonic() - begun:7.0f} s", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
