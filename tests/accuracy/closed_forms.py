"""Closed forms against rehearsals: ``python tests/accuracy/closed_forms.py [MODEL ...]``.

Every model and workload of ``tests/data/rehearsed.json.gz`` (``rehearsals.py`` makes it) is predicted for the same card and dtype;
the report gives, by case and family, how far the allocated peak of each phase is off, whether weights and caches are the same to
the byte, and which models have no closed form, with the reason.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from planner.footprint import Footprint, Phase  # noqa: E402
from planner.scenario import parse_scenario  # noqa: E402
from resources.plan import make_plan  # noqa: E402
from tests.accuracy.rehearsals import CASES, catalog, read_kept  # noqa: E402

GPU = "H200 SXM 141GB"
STEADY_STEP = 2
STATES = ("gradients", "optimizer_state")
ROUNDING = 1e-4
FP32_BYTES = 4
"""Of an adapter's value."""
COUNTERS_BYTES = 4096
"""Of a layer: scalars beside its cache's tensors, 512 bytes each in the allocator."""


@dataclass
class Found:
    """One model under one workload: signed relative errors by phase, and whether what stays is exact.

    ``states_exact``: gradients and optimizer states.
    """

    model: str
    family: str
    errors: dict[str, float] = field(default_factory=dict)
    weights_exact: bool = True
    cache_exact: bool = True
    states_exact: bool = True
    unknown: str = ""


def predict(model: str, config: dict[str, Any], case: str) -> Footprint:
    """The closed form's answer to what was rehearsed."""
    task, workload = CASES[case]
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    document = {"version": 1, "model": {"config": plain}, "weights": "bf16", "task": task, task: workload, "hardware": {"gpu": GPU}}
    return make_plan(parse_scenario(document), network=False).footprint


def compare(model: str, config: dict[str, Any], case: str, rehearsed: dict[str, Any]) -> Found:
    """Lay one prediction beside its rehearsal."""
    footprint = predict(model, config, case)
    found = Found(model, str(config["model_type"]))
    if not footprint.gpus[0].phases:
        found.unknown = next((note for note in footprint.notes if note.startswith("unknown: ")), "unknown")
        return found
    loaded = footprint.gpus[0].phases[0].components
    adapters_bytes = FP32_BYTES * footprint.trainable_parameters if "adapters" in loaded else 0
    found.weights_exact = loaded["weights"] + adapters_bytes == rehearsed["weight_bytes"]
    for phase in footprint.gpus[0].phases:
        truth = _phase(rehearsed, phase)
        if truth is None:
            continue
        found.errors[phase.name] = phase.allocated / truth["allocated"] - 1
        if phase.name == "optimizer":
            found.states_exact = all(_near(phase.components, truth["components"], name) for name in STATES)
        if phase.name == "prefill":
            found.cache_exact = _same(phase.components, truth["components"], COUNTERS_BYTES * (rehearsed["layers"] or 1))
    return found


def _phase(rehearsed: dict[str, Any], phase: Phase) -> dict[str, Any] | None:
    """The rehearsed phase: of a training the steady step's, the load's only one."""
    named = [truth for truth in rehearsed["phases"] if truth["name"] == phase.name]
    steady = [truth for truth in named if truth["step"] == STEADY_STEP]
    return (steady or named or [None])[-1]


def _near(ours: dict[str, int], theirs: dict[str, int], name: str) -> bool:
    """Equal but for what rounding to 512 bytes each tensor adds on one side."""
    return abs(ours.get(name, 0) - theirs.get(name, 0)) <= ROUNDING * theirs.get(name, 0)


def _same(ours: dict[str, int], theirs: dict[str, int], tolerance: int) -> bool:
    names = ("kv_cache", "recurrent_state")
    return abs(sum(ours.get(name, 0) for name in names) - sum(theirs.get(name, 0) for name in names)) < tolerance


def report(models: list[str]) -> str:
    """The table: medians and worst by family and phase for every case, then what is unknown."""
    kept, known, lines = read_kept(), catalog(), []
    for case, results in sorted(kept["results"].items()):
        chosen = {model: row for model, row in results.items() if row["outcome"] == "completed" and (not models or model in models)}
        found = [compare(model, known[model]["config"], case, row) for model, row in sorted(chosen.items())]
        lines += _case_lines(case, found)
    versions = ", ".join(f"{name} {version}" for name, version in sorted(kept["versions"].items()))
    return "\n".join([f"Closed forms against rehearsals ({versions}), allocated peak, whole models in bf16 on {GPU}", "", *lines])


def _case_lines(case: str, found: list[Found]) -> list[str]:
    told = [row for row in found if not row.unknown]
    phases = list(dict.fromkeys(name for row in told for name in row.errors))
    families: dict[str, list[Found]] = defaultdict(list)
    for row in told:
        families[row.family].append(row)
    head = "".join(f"{name:>22}" for name in phases)
    lines = [
        f"{case}: {len(told)} of {len(found)} models",
        f"{'family':24}{'models':>7}  {'weights':8}{'caches':8}{'states':8}{head}",
    ]
    lines += [_row(family, rows, phases) for family, rows in sorted(families.items())]
    lines += [_row("all", told, phases), ""]
    lines += [f"  unknown {row.model}: {row.unknown.removeprefix('unknown: ')}" for row in found if row.unknown]
    worst = sorted(told, key=lambda row: -max(map(abs, row.errors.values())))[:5]
    lines += [f"  worst {row.model}: " + ", ".join(f"{name} {error:+.3%}" for name, error in row.errors.items()) for row in worst]
    return [*lines, ""]


def _row(name: str, rows: list[Found], phases: list[str]) -> str:
    cells = ""
    for phase in phases:
        errors = [abs(row.errors[phase]) for row in rows if phase in row.errors]
        cells += f"{median(errors):>12.3%} {max(errors):>8.3%} " if errors else f"{'':22}"
    weights = "exact" if all(row.weights_exact for row in rows) else "differ"
    caches = "exact" if all(row.cache_exact for row in rows) else "differ"
    states = "exact" if all(row.states_exact for row in rows) else "differ"
    return f"{name:24}{len(rows):>7}  {weights:8}{caches:8}{states:8}{cells}".rstrip()


if __name__ == "__main__":
    print(report(sys.argv[1:]))
