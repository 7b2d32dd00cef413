"""How long a rehearsal takes: the worker as a whole, and its trace from the wire to the footprint (``make bench``)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from probes.rehearsal import Rehearsal
from probes.wire import decode_event

ROOT = Path(__file__).parents[2]
CATALOG = ROOT / "resources" / "data" / "models.json"
GENERATION = {"task": "inference", "inference": {"batch": 2, "prompt_tokens": 512, "new_tokens": 16}}
FINE_TUNING = {"task": "training", "training": {"batch": 1, "sequence": 2048, "optimizer": "adamw_fused"}}
WORKERS = [
    ("meta-llama/Llama-3.1-8B", FINE_TUNING, 10),
    ("meta-llama/Llama-3.1-405B", GENERATION, 60),
    ("deepseek-ai/DeepSeek-V3", GENERATION, 60),
    ("ai21labs/AI21-Jamba-Mini-1.5", GENERATION, 60),
]
MAX_RESIDENT_BYTES = 3 * 10**9

LAYERS = 50
BIRTHS_PER_LAYER = 25
ROUNDS = 40
EVENTS = 2 * LAYERS * BIRTHS_PER_LAYER * ROUNDS
BATCH = 4096
SIZES = (8192, 33_554_432, 4_194_304, 58_720_256, 16_777_216)
ORDER = {"scenario": {}, "card": {"capacity_bytes": 80 * 2**30, "outside_bytes": 2**28, "torch_version": "2.13.0"}}


def wire() -> list[bytes]:
    """Rounds of a forward that saves for a backward: the sizes of a layer recur, births outlive their layer."""
    entries: list[list[Any]] = [["p", 1, "begin", 1]]
    ident = 0
    for _ in range(ROUNDS):
        idents = range(ident, ident + LAYERS * BIRTHS_PER_LAYER)
        entries += [["a", one, SIZES[one % len(SIZES)], 0, 3 + one // BIRTHS_PER_LAYER % LAYERS, 2] for one in idents]
        entries += [["f", one] for one in reversed(idents)]
        ident = idents.stop
    entries.append(["p", 1, "end", 1])
    strings = ["activations", "forward", "mm", *(f"model.layers.{layer}" for layer in range(LAYERS))]
    batches = [entries[start : start + BATCH] for start in range(0, len(entries), BATCH)]
    events: list[dict[str, Any]] = [{"event": "phase", "t": 0, "name": "forward", "state": "begin", "step": 1}]
    events += [{"event": "storage", "t": 0, "strings": [] if number else strings, "batch": b} for number, b in enumerate(batches)]
    events.append({"event": "phase", "t": 1, "name": "forward", "state": "end", "step": 1})
    return [json.dumps(event, separators=(",", ":")).encode() for event in events]


def fold(lines: list[bytes]) -> Rehearsal:
    rehearsal = Rehearsal(ORDER)
    for line in lines:
        event = decode_event(line)
        assert event is not None
        rehearsal.add(event)
    return rehearsal


@pytest.mark.benchmark(group="rehearsal")
def test_from_the_wire_through_the_allocator(benchmark: Any) -> None:
    rehearsal = benchmark.pedantic(fold, (wire(),), rounds=3)
    assert EVENTS == len(rehearsal.timeline_points(limit=None)) == 100_000
    assert rehearsal.trace.faults == 0


@pytest.mark.benchmark(group="rehearsal")
def test_from_the_trace_to_the_footprint(benchmark: Any) -> None:
    rehearsal = fold(wire())
    footprint = benchmark.pedantic(rehearsal.footprint, rounds=3)
    assert footprint.gpus[0].phases[0].name == "forward"


def rehearse(model: str, scenario: dict[str, Any]) -> tuple[float, int]:
    """Run the worker in a process of its own: the processor's seconds and the most bytes it held."""
    config = json.loads(CATALOG.read_text())[model]["config"]
    order = {"version": 1, "mode": "rehearse", "scenario": {"version": 1, "weights": "bf16", **scenario}, "config": config}
    command = [sys.executable, "-m", "probes.worker"]
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert child.stdin is not None
    child.stdin.write(json.dumps(order).encode() + b"\n")
    child.stdin.close()
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="processor time of a child is read with wait4")
@pytest.mark.benchmark(group="worker")
@pytest.mark.parametrize(("model", "scenario", "limit_s"), WORKERS, ids=[model for model, _, _ in WORKERS])
def test_the_worker_with_its_imports(benchmark: Any, model: str, scenario: dict[str, Any], limit_s: float) -> None:
    processor_s, resident_bytes = benchmark.pedantic(rehearse, (model, scenario), rounds=1)
    assert processor_s < limit_s
    assert resident_bytes < MAX_RESIDENT_BYTES
