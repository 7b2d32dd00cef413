"""How far predictions of transformers' ``generate`` are from published measurements, beside public estimators.

``python tests/accuracy/generation.py``. Rows that can't be mapped to a scenario are listed with their reason.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from statistics import mean, median

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from serving import ESTIMATORS, GIB, OURS, Comparison, architecture_of, config_of, summary_line  # noqa: E402

from planner.formats import native_format  # noqa: E402
from planner.predict import predict  # noqa: E402
from planner.scenario import parse_scenario  # noqa: E402
from resources.gpus import gpu  # noqa: E402

UNITS = {"MB (MiB)": 2**20, "GB (GiB)": GIB}
"""The tables print MiB and GiB as MB and GB: weights and cache alone add up only so."""
CAVEAT = """Measured with transformers 4.46 and 4.51 on one GPU, batch 1; predicted as transformers 5.23 allocates. Where rows miss:
FP8 of models with a tied head held a head of its own (the difference is vocabulary x hidden x 2 bytes, to 2 MiB of 0.6B, 4 MiB
of 1.7B and 21 MiB of 4B); AWQ ran AutoAWQ's modules, which kept more with every token; some runs of one prompt token ended
before 2,048 new ones.
"""
CARDS = {"H20 96GB": "H20 96GB", "A100 80GB": "A100 SXM4 80GB"}


@cache
def rows() -> list[dict]:
    """Every published inference of transformers, and of what is near it."""
    return json.loads((ROOT / "tests" / "data" / "generation.json").read_text())


def ours(row: dict) -> float | None:
    """Peak of all phases; after ``generate`` what stays: weights, the cache of all tokens, the matrix library's workspace."""
    plan = row["plan"]
    work = {name: plan[name] for name in ("batch", "prompt_tokens", "new_tokens")}
    document = {
        "version": 1, "task": "inference", "model": plan["model"] or {"config": plan["edit"]}, "weights": plan["weights"],
        "inference": {"engine": "transformers", "attention": "flash", **work}, "hardware": {"gpu": CARDS[row["gpu"]]},
    }  # fmt: skip
    architecture = architecture_of(plan)
    found = predict(parse_scenario(document), architecture, gpu(CARDS[row["gpu"]]), native_format(config_of(plan)))
    phases = {phase.name: phase for phase in found.gpus[0].phases}
    if not phases:
        return None
    if row["what"] == "peak_memory":
        return max(phase.allocated for phase in phases.values())
    library = next(term.bytes for term in found.terms if term.formula.startswith("cuBLAS workspace"))
    return phases["load"].allocated + phases["decode"].components["kv_cache"] + library


def as_serving(row: dict) -> dict:
    """The row's plan in the words the estimators take."""
    plan = row["plan"]
    tokens = plan["prompt_tokens"] + plan["new_tokens"]
    return {**plan, "kv_cache": "auto", "parallel": {"tensor": 1, "pipeline": 1}, "max_model_len": tokens, "options": {}}


def evaluate() -> list[Comparison]:
    """Every mapped row; an estimator that knows no cache answers with the weights."""
    found: list[Comparison] = []
    for row in rows():
        mine = ours(row) if "plan" in row else None
        if mine is None:
            continue
        plan = as_serving(row)
        predicted = {OURS: float(mine)}
        for name, estimator in ESTIMATORS.items():
            estimate = estimator(plan)
            if estimate is not None:
                predicted[name] = estimate.weights + (estimate.token_bytes or 0) * plan["max_model_len"] * plan["batch"]
        kind = "after generate" if row["what"] == "memory_after_generate" else "peak"
        component = f"{kind}, {row['plan']['weights']}"
        found.append(Comparison(row["id"], "transformers", component, row["value"] * UNITS[row["unit"]], predicted))
    return found


def table(comparisons: list[Comparison]) -> str:
    """By meter and format, then all together: the columns of the serving report."""
    lines = [f"{'meter, weights':<34}{'estimator':<15}{'rows':>5}{'median':>10}{'mean':>10}{'p95':>10}{'bias':>10}{'under':>8}"]
    for component in (*sorted({found.component for found in comparisons}), "all"):
        group = [found for found in comparisons if component in (found.component, "all")]
        for who in (OURS, *ESTIMATORS):
            errors = [found.error(who) for found in group if who in found.predicted]
            if errors:
                lines.append(summary_line(component, who, errors))
    return "\n".join(lines)


def listing(comparisons: list[Comparison]) -> str:
    """Every row: measured, predicted and error, or why it can't be mapped."""
    by_id = {found.row: found for found in comparisons}
    lines = []
    for row in rows():
        found = by_id.get(row["id"])
        if found is None:
            reason = row.get("unmapped") or "no closed form for this choice"
            lines.append(f"{row['id']}  not mapped: {row['model'] or '-'}, {row['what']}: {reason}")
            continue
        plan = row["plan"]
        what = f"{row['model']} {found.component} {plan['prompt_tokens']}+{plan['new_tokens']}"
        mine = found.predicted[OURS]
        lines.append(f"{row['id']}  {what:<70}{found.measured / GIB:>9.3f}{mine / GIB:>9.3f} GiB{found.error(OURS):>+9.2%}")
    return "\n".join(lines)


if __name__ == "__main__":
    compared = evaluate()
    print(
        "Generation with transformers against published measurements. Relative errors; under: predictions below the measured value."
    )
    print(CAVEAT)
    print(table(compared))
    print("\nEstimators:")
    for name, estimator in ESTIMATORS.items():
        print(f"  {name}: {(estimator.__doc__ or '').splitlines()[0]}")
    ahead = [abs(found.error(OURS)) for found in compared]
    print(f"\nAll rows: median {median(ahead):.2%}, mean {mean(ahead):.2%}. Every row: published, predicted, error")
    print(listing(compared))
