"""Recordings of torch's real caching allocator: what was asked of it and what it held, to be replayed where there is no card.

    python tests/gpu/allocator.py FOLDER [--seeds 4] [--model NAME]

``random-N.json.gz`` are random storages that are born and die; ``NAME.json.gz`` is a whole run of a scenario of the battery, from
the history that torch keeps. Each holds ``steps`` (``["a", id, bytes]``, ``["f", id]``) and ``reserved`` after each of them; random
ones ``allocated`` too, and the ``segments`` in the end. :func:`mismatch` says where the simulated allocator does something else.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from planner.allocator import Alloc, AllocatorOptions, Free, replay
from tests.gpu.scenarios import SCENARIOS

Step = list[Any]
SIZES = (512, 3000, 2**20 - 5, 2**20 + 1, 5 * 2**20, 11 * 2**20, 37 * 2**20)
STEPS = 400
MODELS = ("smol-infer-b8-t512", "smol-train-b4-t512", "smol-train-ckpt-b8-t1024")
HISTORY = 2_000_000
"""Entries that torch keeps of a run; more than any of these has."""


def random_steps(seed: int, count: int = STEPS) -> list[Step]:
    """Storages of many sizes, born and dying in no order."""
    dice = random.Random(seed)
    held: list[int] = []
    steps: list[Step] = []
    for number in range(count):
        if held and dice.random() < 0.45:
            steps.append(["f", held.pop(dice.randrange(len(held)))])
        else:
            held.append(number)
            steps.append(["a", number, dice.choice([*SIZES, dice.randrange(1, 2**26)])])
    return steps


def trace_steps(entries: Iterable[Mapping[str, Any]]) -> tuple[list[Step], list[int]]:
    """Steps, and what was reserved after each, of torch's own trace (``_snapshot()["device_traces"]``).

    Of it ``alloc`` and ``free_completed`` are steps; ``segment_alloc``, ``segment_free`` (and those of mapped pages) come before
    the step that caused them.
    """
    steps: list[Step] = []
    after: list[int] = []
    ids: dict[int, int] = {}
    reserved = 0
    for entry in entries:
        action, size = entry["action"], int(entry["size"])
        if action in ("segment_alloc", "segment_map"):
            reserved += size
        elif action in ("segment_free", "segment_unmap"):
            reserved -= size
        elif action == "alloc":
            ids[entry["addr"]] = len(steps)
            steps.append(["a", len(steps), size])
            after.append(reserved)
        elif action == "free_completed" and entry["addr"] in ids:
            steps.append(["f", ids.pop(entry["addr"])])
            after.append(reserved)
    return steps, after


def mismatch(recorded: Mapping[str, Any]) -> str:
    """The first step at which the simulated allocator holds something else; empty when it does the same throughout."""
    steps = [Alloc(step[1], step[2]) if step[0] == "a" else Free(step[1]) for step in recorded["steps"]]
    capacity = recorded.get("capacity_bytes")
    timeline = replay(steps, AllocatorOptions(torch_version=recorded["torch"], capacity_bytes=capacity))
    for meter, mine in (("allocated", timeline.allocated_bytes), ("reserved", timeline.reserved_bytes)):
        for number, (real, ours) in enumerate(zip(recorded.get(meter) or (), mine, strict=False)):
            if real != ours:
                return f"step {number} ({recorded['steps'][number]}): {meter} {ours} in place of {real}"
    whole = sum(segment["total"] for segment in recorded.get("segments") or ())
    if whole and whole != timeline.reserved_bytes[-1]:
        return f"in the end: segments of {timeline.reserved_bytes[-1]} bytes in place of {whole}"
    return ""


def record_random(seed: int) -> dict[str, Any]:
    """Take the random steps on the card."""
    import torch

    from probes.worker.device import segments

    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() == 0
    steps, held = random_steps(seed), {}
    allocated, reserved = [], []
    for step in steps:
        if step[0] == "a":
            held[step[1]] = torch.empty(step[2], dtype=torch.uint8, device="cuda")
        else:
            del held[step[1]]
        allocated.append(torch.cuda.memory_allocated())
        reserved.append(torch.cuda.memory_reserved())
    told = segments(torch.cuda.memory_snapshot())
    held.clear()
    torch.cuda.empty_cache()
    return {**_card(), "steps": steps, "allocated": allocated, "reserved": reserved, "segments": told}


def record_model(name: str) -> dict[str, Any]:
    """Run a scenario of the battery in this process with torch's history on."""
    import torch

    from probes.worker.order import parse_order
    from probes.worker.run import run

    class Silent:
        def send(self, _event: str, **_fields: object) -> None:
            """Nobody listens."""

        close = send

    scenario = next(scenario for scenario in SCENARIOS if scenario.name == name)
    order = parse_order(json.loads(json.dumps(scenario.order("measure", "cuda:0"))))
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() == 0
    torch.cuda.memory._record_memory_history(context=None, max_entries=HISTORY)
    run(order, Silent())
    snapshot = torch.cuda.memory._snapshot()
    torch.cuda.memory._record_memory_history(enabled=None)
    steps, reserved = trace_steps(snapshot["device_traces"][0])
    return {**_card(), "scenario": name, "steps": steps, "reserved": reserved}


def read(path: Path) -> dict[str, Any]:
    """A recording."""
    recorded: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return recorded


def write(path: Path, recorded: Mapping[str, Any]) -> None:
    """Keep a recording, small and the same whenever it is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(recorded, separators=(",", ":")).encode(), mtime=0))


def _card() -> dict[str, Any]:
    import torch

    total = torch.cuda.mem_get_info()[1]
    return {"torch": torch.__version__.split("+")[0], "gpu": torch.cuda.get_device_name(), "capacity_bytes": total}


def main() -> int:
    """Record; the exit status is how many differ from the simulated allocator."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--model", action="append", choices=[scenario.name for scenario in SCENARIOS], help=f"default: {MODELS}")
    options = parser.parse_args()
    jobs = {f"random-{seed}": (record_random, seed) for seed in range(options.seeds)}
    jobs |= {name: (record_model, name) for name in options.model or MODELS}
    differ = 0
    for name, (record, argument) in jobs.items():
        recorded = record(argument)
        write(options.folder / f"{name}.json.gz", recorded)
        told = mismatch(recorded)
        differ += bool(told)
        print(f"{name:32} {len(recorded['steps']):8} steps  {told or 'the same throughout'}", flush=True)
    return differ


if __name__ == "__main__":
    sys.exit(main())
