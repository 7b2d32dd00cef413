"""How far serving engines' predictions are from published logs, row by row, beside public estimators on the same rows.

``python tests/accuracy/serving.py``. Rows that can't be mapped to a scenario are listed with their reason.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, median

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from planner.architecture import Architecture, parameter_count, read_config  # noqa: E402
from planner.architecture.layers import MixtureOfExperts  # noqa: E402
from planner.components.cache import cache_bytes  # noqa: E402
from planner.engines.served_weights import running  # noqa: E402
from planner.footprint import Footprint  # noqa: E402
from planner.formats import checkpoint_bytes, native_format, parse_format  # noqa: E402
from planner.machine import overheads  # noqa: E402
from planner.predict import predict  # noqa: E402
from planner.scenario import parse_scenario  # noqa: E402
from resources.catalog import catalog_model  # noqa: E402
from resources.gpus import gpu  # noqa: E402

GIB = 2**30
UNITS = {"GiB": GIB, "GB": GIB, "MiB": 2**20, "tokens": 1, "blocks of 16 tokens": 16}
"""SGLang prints GiB as GB."""
COMPONENTS = {
    "weights_loaded": "weights", "activation_peak_torch": "activations", "non_torch": "libraries", "kv_cache_bytes": "kv memory",
    "kv_k_size": "kv memory", "kv_v_size": "kv memory", "kv_tokens": "kv tokens", "kv_blocks": "kv tokens",
}  # fmt: skip
ORDER = ("weights", "activations", "libraries", "kv memory", "kv tokens", "max concurrency")
OURS = "highwater"
CAVEAT = """Memory of libraries is taken from such logs by release, not derived; all else follows the engines' sources, but
for the padding of MXFP4 experts on Hopper, part of which is inferred from their kernels' tiles.
"""


@dataclass(frozen=True)
class Comparison:
    """One published figure: ``predicted`` by each estimator that says anything about it."""

    row: str
    engine: str
    component: str
    measured: float
    predicted: dict[str, float]

    def error(self, who: str) -> float:
        """Relative and signed."""
        return self.predicted[who] / self.measured - 1


@cache
def rows() -> list[dict]:
    """Every published row of a serving engine."""
    return json.loads((ROOT / "tests" / "data" / "serving.json").read_text())


def config_of(plan: dict) -> dict:
    return ({} if plan["model"] is None else dict(catalog_model(plan["model"]).config)) | plan["edit"]


@cache
def _architecture(text: str) -> Architecture:
    return read_config(json.loads(text))


def architecture_of(plan: dict) -> Architecture:
    return _architecture(json.dumps(config_of(plan), sort_keys=True))


def capacity_of(plan: dict) -> int | None:
    """The card's memory as the run says it: in all, or what was free before loading and the context beside it."""
    if plan.get("free_before_gib"):
        return int(plan["free_before_gib"] * GIB) + overheads(gpu(plan["gpu"])).context_bytes
    return int(plan["capacity_gib"] * GIB) if plan["capacity_gib"] else None


def footprint_of(plan: dict) -> Footprint:
    """The engine's answer for a row's scenario."""
    ranks = plan["parallel"]["tensor"] * plan["parallel"]["pipeline"]
    document = {
        "version": 1, "task": "inference", "weights": plan["weights"], "model": plan["model"] or {"config": plan["edit"]},
        "inference": {
            "engine": plan["engine"], "prompt_tokens": 512, "new_tokens": 128, "max_model_len": plan["max_model_len"],
            "kv_cache": plan["kv_cache"], "engine_options": plan["options"],
        },
        "hardware": {"gpu": plan["gpu"], "gpus": ranks, "capacity_bytes": capacity_of(plan)},
        "parallel": plan["parallel"],
    }  # fmt: skip
    return predict(parse_scenario(document), architecture_of(plan), gpu(plan["gpu"]), native_format(config_of(plan)))


def ours(row: dict) -> float | None:  # noqa: PLR0911  one for each kind of row
    """The figure of our answer that a row measured, in the row's own unit times :data:`UNITS`."""
    plan = row["plan"]
    found = footprint_of(plan)
    figures = found.extra.get("engine")
    if figures is None:
        return float(found.weight_bytes or 0) if row["what"] == "weights_loaded" else None
    phases = {phase.name: phase for phase in found.gpus[0].phases}
    match row["what"]:
        case "weights_loaded":
            return figures["weights_bytes"]
        case "activation_peak_torch":
            return phases["prefill"].components["activations"]
        case "non_torch":
            return phases["prefill"].components["cuda_context"] - phases["load"].components["cuda_context"]
        case "kv_cache_bytes":
            return figures["kv_cache_bytes"]
        case "kv_k_size" | "kv_v_size":
            return figures["kv_cache_bytes"] / 2
        case "kv_tokens" | "kv_blocks":
            return figures["kv_tokens"]
    return None


# Public estimators. Each answers with (weights of one GPU, cache bytes of a token, bytes taken beside weights and cache).


@dataclass(frozen=True)
class Estimate:
    weights: float
    token_bytes: float | None
    beside: float | None


def _ranks(plan: dict) -> int:
    return plan["parallel"]["tensor"] * plan["parallel"]["pipeline"]


def _stored_bytes(plan: dict) -> int:
    fmt = native_format(config_of(plan)) if plan["weights"] == "native" else parse_format(plan["weights"])
    return checkpoint_bytes(running(architecture_of(plan)), fmt).total_bytes


def _cache_width(plan: dict) -> int:
    if plan["kv_cache"] == "fp8":
        return 1
    return 4 if plan["weights"] == "fp32" else 2


def hf_mem(plan: dict) -> Estimate | None:
    """hf-mem 0.5.6: bytes of the safetensors header, and its cache size of one sequence; it knows one device."""
    try:
        from hf_mem.safetensors import compute_safetensors_kv_cache_size
    except ImportError:
        return None
    config = config_of(plan)
    config = config.get("text_config", config)
    dtype = {1: "F8_E4M3", 2: "BF16", 4: "F32"}[_cache_width(plan)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            cache_size = compute_safetensors_kv_cache_size(config, dtype, plan["max_model_len"])
        except (KeyError, TypeError):
            return Estimate(_stored_bytes(plan) / _ranks(plan), None, 0)
    return Estimate(_stored_bytes(plan) / _ranks(plan), cache_size / plan["max_model_len"] / _ranks(plan), 0)


@cache
def _accelerate_bytes(text: str) -> float | None:
    """``accelerate estimate-memory``: the base model on the meta device, its parameters in bf16."""
    try:
        import torch
        from accelerate import init_empty_weights
        from accelerate.utils import calculate_maximum_sizes
        from transformers import AutoConfig, AutoModel
    except ImportError:
        return None
    values = json.loads(text)
    values.pop("quantization_config", None)
    try:
        config = AutoConfig.for_model(values.pop("model_type"), **values)
        with init_empty_weights():
            model = AutoModel.from_config(config, dtype=torch.bfloat16)
    except Exception:  # a config it can't build is an answer too
        return None
    return float(calculate_maximum_sizes(model)[0])


def accelerate(plan: dict) -> Estimate | None:
    """accelerate 1.15.0 ``estimate-memory``: the base model's parameters in the dtype asked for; no cache."""
    found = _accelerate_bytes(json.dumps(config_of(plan), sort_keys=True))
    if found is None:
        return None
    return Estimate(found * nominal_bytes(plan["weights"]) / 2 / _ranks(plan), None, 0)


def nominal_bytes(fmt: str) -> float:
    """Bytes of a parameter as calculators count them, by the format's name alone."""
    if fmt in ("nvfp4", "mxfp4") or "int4" in fmt:
        return 0.5
    return 4 if fmt == "fp32" else 1 if fmt.startswith("fp8") or "int8" in fmt else 2


def _parameter_bytes(plan: dict) -> float:
    fmt = native_format(config_of(plan)).name if plan["weights"] == "native" else plan["weights"]
    return parameter_count(architecture_of(plan)) * nominal_bytes(fmt)


def twenty_percent(plan: dict) -> Estimate:
    """Parameters · bytes · 1.2 (substratus.ai, "Calculating GPU memory for serving LLMs"; BentoML and others repeat it)."""
    return Estimate(_parameter_bytes(plan) * 1.2 / _ranks(plan), None, 0)


def vllm_blog(plan: dict) -> Estimate:
    """Parameters · bytes, and 2 · layers · hidden · bytes a token (Kwon et al. 2023, section 3: OPT-13B, 800 KB a token)."""
    architecture = architecture_of(plan)
    token = 2 * len(architecture.decoder.layers) * architecture.hidden_size * _cache_width(plan)
    return Estimate(_parameter_bytes(plan) / _ranks(plan), token / _ranks(plan), 0)


def llm_d_planner(plan: dict) -> Estimate:
    """llm-d-planner: stored bytes / GPUs, activations 5.5, 8.0 (experts) or 2.5 GiB (towers), 0.15 or 0.6 GiB beside."""
    architecture = architecture_of(plan)
    experts = any(isinstance(mixer, MixtureOfExperts) for layer in architecture.decoder.layers for mixer in layer.channel)
    activation = 2.5 if architecture.towers else 8.0 if experts else 5.5
    other = 0.15 if plan["parallel"]["tensor"] == 1 else 0.6
    token = cache_bytes(architecture, 1, 1, _cache_width(plan)).per_token_bytes
    return Estimate(_stored_bytes(plan) / _ranks(plan), token / _ranks(plan), (activation + other) * GIB)


ESTIMATORS: dict[str, Callable[[dict], Estimate | None]] = {
    "hf-mem": hf_mem,
    "accelerate": accelerate,
    "params x1.2": twenty_percent,
    "vllm paper": vllm_blog,
    "llm-d-planner": llm_d_planner,
}


def estimated(row: dict, estimate: Estimate) -> float | None:  # noqa: PLR0911  one for each kind of row
    """What an estimator's figures say of a row: its weights; utilisation · capacity less what it counts; tokens in that."""
    plan, what = row["plan"], row["what"]
    if what == "weights_loaded":
        return estimate.weights
    if estimate.beside is None:
        return None
    if what == "activation_peak_torch" and estimate.beside:
        return estimate.beside - (0.15 if plan["parallel"]["tensor"] == 1 else 0.6) * GIB
    if what not in ("kv_cache_bytes", "kv_tokens", "kv_k_size", "kv_v_size", "kv_blocks"):
        return None
    capacity = capacity_of(plan) or 0
    utilization = float(plan["options"].get("gpu_memory_utilization", 0.88 if plan["engine"] == "sglang" else 0.9))
    pool = plan["options"].get("kv_cache_memory_bytes") or utilization * capacity - estimate.weights - estimate.beside
    if what == "kv_cache_bytes":
        return pool
    if what in ("kv_k_size", "kv_v_size"):
        return pool / 2
    return pool / estimate.token_bytes if estimate.token_bytes else None


def evaluate() -> list[Comparison]:
    """Every mapped row; a row of tokens with its context also gives the maximum concurrency, tokens / context."""
    found: list[Comparison] = []
    for row in rows():
        if "plan" not in row:
            continue
        mine = ours(row)
        if mine is None:
            continue
        predicted = {OURS: float(mine)}
        for name, estimator in ESTIMATORS.items():
            estimate = estimator(row["plan"])
            value = None if estimate is None else estimated(row, estimate)
            if value is not None:
                predicted[name] = float(value)
        measured = row["value"] * UNITS[row["unit"]]
        found.append(Comparison(row["id"], row["engine"], COMPONENTS[row["what"]], measured, predicted))
        if row["what"] == "kv_tokens" and row["context"]:
            context = row["context"]
            shares = {name: value / context for name, value in predicted.items()}
            found.append(Comparison(row["id"], row["engine"], "max concurrency", measured / context, shares))
    return found


def summary_line(label: str, who: str, errors: list[float]) -> str:
    absolute = sorted(abs(error) for error in errors)
    return (
        f"{label:<34}{who:<15}{len(errors):>5}{median(absolute):>10.2%}{mean(absolute):>10.2%}"
        f"{absolute[int(0.95 * (len(absolute) - 1))]:>10.2%}{mean(errors):>+10.2%}{mean(error < 0 for error in errors):>8.0%}"
    )


def table(comparisons: list[Comparison]) -> str:
    """By engine, component and estimator: rows, median and mean absolute error, 95th percentile, bias, under-predictions."""
    lines = [f"{'engine, component':<34}{'estimator':<15}{'rows':>5}{'median':>10}{'mean':>10}{'p95':>10}{'bias':>10}{'under':>8}"]
    groups: dict[tuple[str, str], list[Comparison]] = defaultdict(list)
    for found in comparisons:
        groups[found.engine, found.component].append(found)
    for engine in dict.fromkeys(found.engine for found in comparisons):
        for component in ORDER:
            group = groups.get((engine, component), [])
            for who in (OURS, *ESTIMATORS):
                errors = [found.error(who) for found in group if who in found.predicted]
                if errors:
                    lines.append(summary_line(f"{engine}, {component}", who, errors))
    return "\n".join(lines)


def _shown(component: str, value: float) -> str:
    return (
        f"{value:,.1f}"
        if component == "max concurrency"
        else f"{value:,.0f}"
        if "tokens" in component
        else f"{value / GIB:.2f} GiB"
    )


def listing(comparisons: list[Comparison]) -> str:
    """Every row: measured and predicted, or why it can't be mapped."""
    by_id = {row["id"]: row for row in rows()}
    lines: list[str] = []
    for found in comparisons:
        row = by_id[found.row]
        layout = row["parallel"] or "TP1"
        what = f"{row['engine']} {row['release'] or '?'} {(row['model'] or '?').split('/')[-1]} {layout} {found.component}"
        measured, mine = (_shown(found.component, value) for value in (found.measured, found.predicted[OURS]))
        assumed = f"  assumed: {row['plan']['assumed']}" if "assumed" in row["plan"] else ""
        doubt = f"  {row['doubt']}" if "doubt" in row else ""
        lines.append(f"{found.row}  {what:<78}{measured:>14}{mine:>14}{found.error(OURS):>+9.2%}{assumed}{doubt}")
    lines += [f"{row['id']}  not mapped: {row['what']}: {row['unmapped']}" for row in rows() if "plan" not in row]
    return "\n".join(lines)


if __name__ == "__main__":
    compared = evaluate()
    print("Serving engines against published logs. Relative errors; under: share of predictions below the measured value.")
    print(CAVEAT)
    print(table(compared))
    missing = [name for name in ESTIMATORS if not any(name in found.predicted for found in compared)]
    for name in missing:
        print(f"{name}: not installed here, its column is missing")
    print("\nEstimators:")
    for name, estimator in ESTIMATORS.items():
        print(f"  {name}: {(estimator.__doc__ or '').splitlines()[0]}")
    print("\nEvery row: published, predicted, error")
    print(listing(compared))
