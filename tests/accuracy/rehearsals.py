"""Rehearse every model of the catalog: ``python tests/accuracy/rehearsals.py [--all | --missing] [MODEL ...]``.

Each case runs the whole model in bf16 in a process of its own with a time limit, on the CUDA personality (compute capability 9.0).
What came of it is kept in ``tests/data/rehearsed.json.gz``. The table is printed from what is kept; before, ``--missing`` runs the
cases that have no result yet, ``--all`` every case, and a model's name that model's cases.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import resource
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
CATALOG = ROOT / "resources" / "data" / "models.json"
KEPT = ROOT / "tests" / "data" / "rehearsed.json.gz"
TIME_LIMIT_S = 300
LORA = {"method": "lora", "lora": {"rank": 16, "targets": ["all-linear"]}}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "inference 2x512": ("inference", {"batch": 2, "prompt_tokens": 512, "new_tokens": 4}),
    "inference 4x4096": ("inference", {"batch": 4, "prompt_tokens": 4096, "new_tokens": 4}),
    "training 1x2048": ("training", {"batch": 1, "sequence": 2048, "optimizer": "adamw_fused"}),
    "training 2x4096 checkpointed, foreach": (
        "training", {"batch": 2, "sequence": 4096, "optimizer": "adamw_foreach", "checkpointing": "full"}
    ),
    "lora 1x2048": ("training", {"batch": 1, "sequence": 2048, "optimizer": "adamw_fused", **LORA}),
    "lora 2x4096 checkpointed, foreach": (
        "training", {"batch": 2, "sequence": 4096, "optimizer": "adamw_foreach", "checkpointing": "full", **LORA}
    ),
}  # fmt: skip
OF_EVERY_MODEL = ("inference 2x512", "inference 4x4096", "training 1x2048")
"""The other cases are rehearsed for the smallest model of each family."""
SHOWN_PHASES = (("prefill", 0), ("decode", 0), ("forward", 2), ("backward", 2), ("optimizer", 2))
Results = dict[str, dict[str, Any]]


class Result(list):  # type: ignore[type-arg]
    """A wire that keeps the result only."""

    fields: dict[str, Any]

    def send(self, event: str, **fields: Any) -> None:
        """Pass over what is not the result."""

    def close(self, event: str, **fields: Any) -> None:
        """Keep the result."""
        self.fields = fields


def order_of(config: dict[str, Any], case: str) -> dict[str, Any]:
    """The worker's order for a case."""
    task, workload = CASES[case]
    scenario = {"version": 1, "weights": "bf16", "task": task, task: workload}
    return {"version": 1, "mode": "rehearse", "scenario": scenario, "config": config, "compute_capability": [9, 0]}


def rehearse(config: dict[str, Any], case: str, answer: Connection) -> None:
    """Run a case in this process and send what came of it."""
    from probes.worker.errors import WorkerError
    from probes.worker.order import parse_order
    from probes.worker.run import run

    wire = Result()
    try:
        run(parse_order(order_of(config, case)), wire)  # type: ignore[arg-type]
    except WorkerError as error:
        answer.send({"outcome": error.kind, "reason": error.message})
    except Exception as error:
        answer.send({"outcome": "internal", "reason": f"{type(error).__name__}: {error}"[:300]})
    else:
        answer.send(_kept(wire.fields))


def _kept(fields: dict[str, Any]) -> dict[str, Any]:
    figures = ("outcome", "parameters", "weight_bytes", "layers", "model_class", "attention", "notes")
    phases = [{key: phase[key] for key in ("name", "step", "allocated", "components")} for phase in fields["phases"]]
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {key: fields[key] for key in figures} | {"phases": phases, "resident_bytes": peak_bytes}


def run_case(config: dict[str, Any], case: str) -> dict[str, Any]:
    """Run a case in a process of its own. The imports are this process's."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    child = context.Process(target=rehearse, args=(config, case, writer), daemon=True)
    began = time.monotonic()
    child.start()
    writer.close()
    try:
        result = reader.recv() if reader.poll(TIME_LIMIT_S) else {"outcome": "timeout", "reason": f"after {TIME_LIMIT_S} s"}
    except EOFError:
        result = {"outcome": "died", "reason": f"exit status {child.exitcode}"}
    child.kill()
    child.join()
    return result | {"seconds": round(time.monotonic() - began, 1)}


def catalog() -> dict[str, Any]:
    """The bundled models by name."""
    return dict(json.loads(CATALOG.read_text()))


def smallest_of_families(known: dict[str, Any]) -> set[str]:
    """Of each model type the model with the fewest parameters among those that train."""
    trained = read_kept()["results"].get("training 1x2048", {})
    families: dict[str, list[tuple[int, str]]] = {}
    for model, entry in known.items():
        if trained.get(model, {}).get("outcome") == "completed":
            families.setdefault(entry["config"]["model_type"], []).append((trained[model]["parameters"], model))
    return {min(members)[1] for members in families.values()}


def read_kept() -> dict[str, Any]:
    """What was kept: ``versions`` and ``results`` by case and model."""
    if not KEPT.exists():
        return {"versions": {}, "results": {}}
    return dict(json.loads(gzip.decompress(KEPT.read_bytes())))


def write_kept(kept: dict[str, Any]) -> None:
    """Keep it, the same bytes for the same results."""
    text = json.dumps(kept, separators=(",", ":"), sort_keys=True)
    written = KEPT.with_suffix(f".{os.getpid()}")
    written.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    written.replace(KEPT)


def update(models: list[str], cases: list[str], *, again: bool) -> None:
    """Run the cases of the models that have no result, or all ``again``."""
    import torch
    import transformers

    import probes.worker.run  # noqa: F401
    from probes.worker.run import versions

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    known = catalog()
    chosen = smallest_of_families(known)
    for case in cases:
        for model in models:
            left_out = case not in OF_EVERY_MODEL and model not in chosen
            if not again and (left_out or model in read_kept()["results"].get(case, {})):
                continue
            result = run_case(known[model]["config"], case)
            kept = read_kept()
            kept["results"].setdefault(case, {})[model] = result
            kept["versions"] = {name: versions()[name] for name in ("torch", "transformers")}
            write_kept(kept)
            print(f"{case} {model}: {result['outcome']} {result['seconds']} s", file=sys.stderr, flush=True)


def table(kept: dict[str, Any]) -> str:
    """The report."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(kept["versions"].items()))
    lines = [f"Rehearsals of the catalog, whole models in bf16 on compute capability 9.0 ({versions})", ""]
    for case in CASES:
        results: Results = kept["results"].get(case, {})
        done = sum(result["outcome"] == "completed" for result in results.values())
        lines += [f"{case}: {done} of {len(results)} rehearsed", ""]
        lines += [_row(model, result) for model, result in sorted(results.items(), key=lambda item: item[0].lower())]
        lines.append("")
    return "\n".join(lines)


def _row(model: str, result: dict[str, Any]) -> str:
    head = f"  {model:<48}{result['seconds']:>7.1f} s  "
    if result["outcome"] != "completed":
        return f"{head}{result['outcome']}: {result['reason']}"
    peaks = {(phase["name"], phase["step"]): phase["allocated"] for phase in result["phases"]}
    return head + "  ".join(f"{name} {peaks[name, step]:>17,}" for name, step in SHOWN_PHASES if (name, step) in peaks)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="models of the catalog")
    parser.add_argument("--case", choices=CASES, action="append", help="only this case")
    parser.add_argument("--all", action="store_true", help="run every case again")
    parser.add_argument("--missing", action="store_true", help="run the cases without a result")
    options = parser.parse_args()
    if options.all or options.missing or options.models:
        again = options.all or not options.missing
        update(options.models or sorted(catalog()), options.case or list(CASES), again=again)
    print(table(read_kept()))


if __name__ == "__main__":
    main()
