"""Reserved memory of training against replays: ``python tests/accuracy/reserved.py [--missing]``.

Whole models are rehearsed and their allocations replayed through the simulated caching allocator; of each phase of the steady step
what is reserved at most is kept in ``tests/data/reserved.json``. The report lays the closed rule (planner/reserve.py) beside it:
by workload and over all, median, 95th percentile and worst. ``--missing`` first rehearses what has no figures yet.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from planner.footprint import TRAINING_PHASES, Footprint  # noqa: E402
from planner.scenario import parse_scenario  # noqa: E402
from resources.plan import Plan, make_plan  # noqa: E402

KEPT = ROOT / "tests" / "data" / "reserved.json"
GPU = "H200 SXM 141GB"
STEADY_STEP = 2
MODELS = (
    "HuggingFaceTB/SmolLM2-135M", "Qwen/Qwen3-0.6B", "meta-llama/Llama-3.2-1B", "google/gemma-2-2b", "Qwen/Qwen2.5-7B",
    "meta-llama/Llama-3.1-8B", "openai-community/gpt2", "microsoft/phi-2", "mistralai/Mistral-7B-v0.1", "Qwen/Qwen2.5-0.5B",
    "HuggingFaceTB/SmolLM2-1.7B", "facebook/opt-1.3b",
)  # fmt: skip
WORK: dict[str, dict[str, Any]] = {
    "1x2048 fused": {"batch": 1, "sequence": 2048, "optimizer": "adamw_fused"},
    "2x4096 checkpointed foreach": {"batch": 2, "sequence": 4096, "optimizer": "adamw_foreach", "checkpointing": "full"},
    "4x512 foreach": {"batch": 4, "sequence": 512, "optimizer": "adamw_foreach"},
    "1x512 checkpointed fused": {"batch": 1, "sequence": 512, "optimizer": "adamw_fused", "checkpointing": "full"},
    "1x1024 accumulated": {"batch": 1, "sequence": 1024, "optimizer": "adamw_fused", "gradient_accumulation": 2},
    "1x1024 checkpointed fp32": {
        "batch": 1, "sequence": 1024, "optimizer": "adamw_fused", "checkpointing": "full", "precision": "fp32",
    },
    "1x2048 checkpointed adafactor": {"batch": 1, "sequence": 2048, "optimizer": "adafactor", "checkpointing": "full"},
    "2x1024 checkpointed 8-bit": {"batch": 2, "sequence": 1024, "optimizer": "adamw_8bit", "checkpointing": "full"},
    "8x1024 foreach": {"batch": 8, "sequence": 1024, "optimizer": "adamw_foreach"},
}  # fmt: skip
ADAPTED_MODELS = (
    "HuggingFaceTB/SmolLM2-135M", "Qwen/Qwen3-0.6B", "meta-llama/Llama-3.2-1B", "mistralai/Mistral-7B-v0.1",
)  # fmt: skip
LORA: dict[str, Any] = {"rank": 16, "targets": ["q_proj", "k_proj", "v_proj", "o_proj"]}
LONG: dict[str, Any] = {
    "batch": 4, "sequence": 4096, "checkpointing": "full", "attention": "flash", "optimizer": "adamw_foreach",
    "method": "lora", "lora": {**LORA, "alpha": 16, "dropout": 0.1},
}  # fmt: skip
SHORT: dict[str, Any] = {"method": "lora", "lora": LORA, "optimizer": "adamw_foreach"}
ADAPTED: dict[str, dict[str, Any]] = {
    "4x4096 checkpointed lora": LONG,
    "4x4096 checkpointed lora amp": {**LONG, "precision": "amp-bf16"},
    "4x4096 checkpointed lora fused": {**LONG, "loss": "fused"},
    "2x2048 checkpointed lora": {**SHORT, "batch": 2, "sequence": 2048, "checkpointing": "full"},
    "4x1024 lora": {**SHORT, "batch": 4, "sequence": 1024},
    "4x4096 checkpointed qlora": {**LONG, "method": "qlora"},
    "4x4096 checkpointed qlora amp": {
        **LONG, "method": "qlora", "precision": "amp-bf16", "engine_options": {"prepare_for_kbit_training": True},
    },
}  # fmt: skip
"""Adapters beside frozen weights, where the activations and the logits are most of what is reserved."""
Rows = dict[str, dict[str, dict[str, int]]]


class Wire:
    """Hands the worker's events to a rehearsal of this process."""

    def __init__(self, rehearsal: Any) -> None:
        self._rehearsal = rehearsal

    def send(self, event: str, **fields: Any) -> None:
        """One event."""
        self._rehearsal.add({"event": event, "t": 0.0, **fields})

    close = send


def plan_of(model: str, work: str, **hardware: int) -> Plan:
    """The plan of one row."""
    training = WORK.get(work) or ADAPTED[work]
    weights = "nf4-dq" if training.get("method") == "qlora" else "bf16"
    document = {
        "version": 1, "model": model, "task": "training", "weights": weights, "training": training,
        "hardware": {"gpu": GPU, **hardware},
    }  # fmt: skip
    return make_plan(parse_scenario(document), network=False)


def rehearse(model: str, work: str) -> dict[str, int] | None:
    """Reserved by phase of the steady step; None where the model is beyond the card."""
    from probes.rehearsal import Rehearsal
    from probes.rehearsal_order import rehearse_request
    from probes.worker.order import parse_order
    from probes.worker.run import run

    order = dict(rehearse_request(plan_of(model, work)).order)
    rehearsal = Rehearsal(order)
    run(parse_order(order), Wire(rehearsal))
    steady = {step.name: step.meters["reserved"] for step in rehearsal.steps.values() if step.step in (0, STEADY_STEP)}
    return None if rehearsal.exhausted is not None else steady


def update() -> Rows:
    """The rows that are kept, completed."""
    rows: Rows = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    if "--missing" in sys.argv:
        for work in (*WORK, *ADAPTED):
            for model in MODELS if work in WORK else ADAPTED_MODELS:
                if model not in rows.setdefault(work, {}):
                    found = rehearse(model, work)
                    rows[work] |= {model: found} if found else {}
        KEPT.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
    return rows


def errors_of(footprint: Footprint, truth: dict[str, int]) -> dict[str, float]:
    """Signed relative errors of reserved by phase."""
    return {phase.name: phase.reserved / truth[phase.name] - 1 for phase in footprint.gpus[0].phases}


def report(rows: Rows) -> str:
    """The table."""
    every: dict[str, list[float]] = defaultdict(list)
    head = "".join(f"{name:>28}" for name in TRAINING_PHASES)
    lines = ["Reserved of training against replays: median, 95th percentile, worst", f"{'workload':32}{'models':>7}{head}"]
    for work, models in rows.items():
        found: dict[str, list[float]] = defaultdict(list)
        for model, truth in models.items():
            for name, error in errors_of(plan_of(model, work, capacity_bytes=2**50).footprint, truth).items():
                found[name].append(error)
                every[name].append(error)
        lines.append(_row(work, found))
    return "\n".join([*lines, _row("all", every)])


def _row(name: str, found: dict[str, list[float]]) -> str:
    cells = ""
    for phase in TRAINING_PHASES:
        sizes = sorted(map(abs, found[phase]))
        worst = max(found[phase], key=abs)
        cells += f"{median(sizes):>10.2%}{sizes[int(0.95 * (len(sizes) - 1))]:>9.2%}{worst:>+9.2%}"
    return f"{name:32}{len(found['load']):>7}{cells}"


if __name__ == "__main__":
    print(report(update()))
