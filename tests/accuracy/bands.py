"""Error bands of the predictions: ``python tests/accuracy/bands.py [--missing]``, which also writes ``planner/error_bands.py``.

Of each engine and component the 90th percentile of what predictions are off, over the recorded runs there are: reserved memory
of transformers against replays of whole models through the simulated allocator (``tests/data/reserved*.json``), serving engines
against published logs. ``--missing`` first rehearses the generations that have no figures yet.
"""

from __future__ import annotations

import json
import sys
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import reserved  # noqa: E402
import serving  # noqa: E402

from planner.footprint import Footprint  # noqa: E402
from planner.scenario import parse_scenario  # noqa: E402
from resources.plan import Plan, make_plan  # noqa: E402

KEPT = ROOT / "tests" / "data" / "reserved_generation.json"
WRITTEN = ROOT / "planner" / "error_bands.py"
PERCENTILE = 90
PERMILLE = 1000
MODELS = (
    "HuggingFaceTB/SmolLM2-135M", "Qwen/Qwen3-0.6B", "meta-llama/Llama-3.2-1B", "google/gemma-2-2b", "google/gemma-3-1b-it",
    "Qwen/Qwen2.5-7B", "meta-llama/Llama-3.1-8B", "openai-community/gpt2", "microsoft/phi-2", "mistralai/Mistral-7B-v0.1",
    "Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-V2-Lite", "openai/gpt-oss-20b", "Qwen/Qwen2.5-32B",
)  # fmt: skip
WORK: dict[str, dict[str, Any]] = {
    "1x512": {"batch": 1, "prompt_tokens": 512, "new_tokens": 8},
    "4x4096": {"batch": 4, "prompt_tokens": 4096, "new_tokens": 4},
    "16x900": {"batch": 16, "prompt_tokens": 900, "new_tokens": 4},
}
SERVED = {"weights": "weights", "activations": "activations", "kv memory": "kv memory"}
HEADER = '''"""How far predictions were off in recorded runs, made by ``tests/accuracy/bands.py``: rows, and the 90th percentile.

In thousandths of the predicted component; of transformers' reserved memory in thousandths of what is reserved beside the
weights. An engine that is missing has no recorded run that could be told apart.
"""

from __future__ import annotations

BANDS: dict[tuple[str, str], tuple[int, int]] = {
'''


def plan_of(model: str, work: str, **hardware: int) -> Plan:
    """The plan of one row."""
    hardware_asked = {"gpu": reserved.GPU, **hardware}
    document = {"version": 1, "model": model, "task": "inference", "weights": "bf16", "inference": WORK[work]}
    return make_plan(parse_scenario(document | {"hardware": hardware_asked}), network=False)


def rehearse(model: str, work: str) -> dict[str, int] | None:
    """Reserved by phase; None where the model is beyond the card."""
    from probes.rehearsal import Rehearsal
    from probes.rehearsal_order import rehearse_request
    from probes.worker.order import parse_order
    from probes.worker.run import run

    order = dict(rehearse_request(plan_of(model, work)).order)
    rehearsal = Rehearsal(order)
    run(parse_order(order), reserved.Wire(rehearsal))
    phases: dict[str, int] = {}
    for step in rehearsal.steps.values():
        phases[step.name] = max(phases.get(step.name, 0), step.meters["reserved"])
    return None if rehearsal.exhausted is not None else phases


def generations() -> reserved.Rows:
    """The rows of generation that are kept, completed."""
    rows: reserved.Rows = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for work in WORK if "--missing" in sys.argv else ():
        for model in MODELS:
            if model not in rows.setdefault(work, {}):
                found = rehearse(model, work)
                rows[work] |= {model: found} if found else {}
                KEPT.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
    return rows


def errors_beside(footprint: Footprint, truth: dict[str, int]) -> list[float]:
    """Of each phase after loading: what reserved is off, as a share of what is reserved beside the weights."""
    return [
        (phase.reserved - truth[phase.name]) / max(1, phase.reserved - phase.components["weights"])
        for phase in footprint.gpus[0].phases
        if phase.name != "load" and phase.name in truth
    ]  # fmt: skip


def collect() -> dict[tuple[str, str], list[float]]:
    """Signed errors by engine and component, a row for each run (of a replay its worst phase)."""
    found: dict[tuple[str, str], list[float]] = {}
    for task, rows, plan in (("generation", generations(), plan_of), ("training", reserved.update(), reserved.plan_of)):
        key = (f"transformers {task}", "reserved")
        for work, models in rows.items():
            for model, truth in models.items():
                errors = errors_beside(plan(model, work, capacity_bytes=2**50).footprint, truth)
                found.setdefault(key, []).append(max(errors, key=abs))
    for comparison in serving.evaluate():
        if comparison.component in SERVED and serving.OURS in comparison.predicted:
            error = 1 - comparison.measured / comparison.predicted[serving.OURS]
            found.setdefault((comparison.engine, comparison.component), []).append(error)
    return found


def percentile(errors: list[float]) -> float:
    """The smallest error that nine in ten do not exceed (nearest rank)."""
    sizes = sorted(map(abs, errors))
    return sizes[ceil(PERCENTILE / 100 * len(sizes)) - 1]


def write(found: dict[tuple[str, str], list[float]]) -> None:
    """The bands as data of the planner."""
    lines = [
        f"    {key!r}: ({len(errors)}, {ceil(PERMILLE * percentile(errors))}),".replace("'", '"') for key, errors in found.items()
    ]
    rows = '}\n"""(rows, thousandths) by engine and component."""\n'
    WRITTEN.write_text(HEADER + "\n".join(lines) + "\n" + rows)


def report(found: dict[tuple[str, str], list[float]]) -> str:
    """The table."""
    lines = ["Error bands: what nine in ten recorded runs stay within", ""]
    lines += [f"{'engine':26}{'component':14}{'rows':>5}{'median':>9}{'90th':>9}{'worst':>10}{'under':>8}"]
    for (engine, component), errors in found.items():
        worst, under = max(errors, key=abs), sum(error < 0 for error in errors) / len(errors)
        middle = median(map(abs, errors))
        lines.append(
            f"{engine:26}{component:14}{len(errors):>5}{middle:>9.2%}{percentile(errors):>9.2%}{worst:>+10.2%}{under:>8.0%}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    collected = collect()
    write(collected)
    print(report(collected))
