"""How far the llama.cpp engine is from what llama.cpp allocated, row by row: ``python tests/accuracy/llama_cpp.py``."""

from __future__ import annotations

import gzip
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean, median

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from planner.architecture import Architecture, parameter_count, read_config  # noqa: E402
from planner.architecture.layers import LatentAttention, MixtureOfExperts, Recurrent  # noqa: E402
from planner.engines.llama_cpp import LOOPBACK, LlamaCppFootprint, llama_cpp_footprint  # noqa: E402
from planner.formats import GGML_TYPES, parse_format  # noqa: E402
from planner.scenario import parse_scenario  # noqa: E402

COMPONENTS = ("weights", "kv_cache", "recurrent_state", "logits", "workspace")
OPTIONS = ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "kv_unified", "flash_attn", "type_k", "type_v", "swa_full", "n_outputs_max")


@dataclass(frozen=True)
class Comparison:
    """One buffer of one run: ``holder`` is a device's number, "host" or "all"."""

    row: int
    family: str
    component: str
    holder: str
    predicted: int
    measured: int

    @property
    def error(self) -> float:
        """Relative and signed; a buffer that should be empty is wrong by all it has."""
        if self.measured:
            return self.predicted / self.measured - 1
        return float(self.predicted > 0)


@dataclass(frozen=True)
class Summary:
    """What the comparisons of one kind say together."""

    rows: int
    exact: float
    median_absolute: float
    mean_absolute: float
    percentile_95: float
    bias: float
    under: float


@cache
def runs() -> dict:
    """The recorded runs: models by name, rows by column."""
    return json.loads(gzip.decompress((ROOT / "tests" / "data" / "llamacpp.json.gz").read_bytes()))


@cache
def architecture_of(model: str) -> Architecture:
    return replace(read_config(runs()["models"][model]), rope_factor_values=runs()["rope_factor_values"].get(model, 0))


def family_of(model: str) -> str:
    """Dense, MoE, MLA, Mamba or hybrid."""
    layers = architecture_of(model).decoder.layers
    mixers = [mixer for layer in layers for mixer in layer.sequence]
    recurrent = sum(isinstance(mixer, Recurrent) for mixer in mixers)
    if recurrent:
        return "Mamba" if recurrent == len(mixers) else "hybrid"
    if any(isinstance(mixer, LatentAttention) for mixer in mixers):
        return "MLA"
    return "MoE" if any(isinstance(mixer, MixtureOfExperts) for layer in layers for mixer in layer.channel) else "dense"


def footprint_of(row: dict) -> LlamaCppFootprint:
    """The engine's answer for a recorded run's scenario."""
    weights = f"gguf:{row['file_type']}"
    options = {name: row[name] for name in OPTIONS} | {"n_gpu_layers": row["gpu_layers"]}
    document = {
        "version": 1,
        "model": row["model"],
        "task": "inference",
        "weights": weights,
        "inference": {"engine": "llama.cpp", "engine_options": options},
    }
    return llama_cpp_footprint(
        architecture_of(row["model"]),
        parse_scenario(document),
        parse_format(weights),
        row["devices"],
        kind=LOOPBACK,
    )


def rows() -> list[dict]:
    """Every recorded run by column name."""
    return [dict(zip(runs()["columns"], row, strict=True)) for row in runs()["rows"]]


def evaluate(step: int = 1) -> list[Comparison]:
    """Predicted against measured bytes: weights and compute buffers of every holder, the rest of all together."""
    found: list[Comparison] = []
    for number, row in list(enumerate(rows()))[::step]:
        answer = footprint_of(row)
        holders = [*((str(index), device) for index, device in enumerate(answer.devices)), ("host", answer.host)]
        family = family_of(row["model"])
        for component, measured in (("weights", row["model_bytes"]), ("workspace", row["compute_bytes"])):
            for (holder, buffers), size in zip(holders, measured, strict=True):
                found.append(Comparison(number, family, component, holder, getattr(buffers, component), size))
        for component, column in (("kv_cache", "kv_bytes"), ("recurrent_state", "recurrent_bytes"), ("logits", "output_bytes")):
            predicted = sum(getattr(buffers, component) for _, buffers in holders)
            found.append(Comparison(number, family, component, "all", predicted, row[column]))
    return found


def summarise(comparisons: list[Comparison]) -> Summary:
    errors = [found.error for found in comparisons]
    absolute = sorted(abs(error) for error in errors)
    return Summary(
        rows=len({found.row for found in comparisons}),
        exact=mean(found.predicted == found.measured for found in comparisons),
        median_absolute=median(absolute),
        mean_absolute=mean(absolute),
        percentile_95=absolute[int(0.95 * (len(absolute) - 1))],
        bias=mean(errors),
        under=mean(error < 0 for error in errors),
    )


def table(comparisons: list[Comparison]) -> str:
    """By component and family: rows, share exact, median and mean absolute error, 95th percentile, bias, under-predictions."""
    groups: dict[tuple[str, str], list[Comparison]] = defaultdict(list)
    for found in comparisons:
        groups[found.component, found.family].append(found)
        groups[found.component, "all"].append(found)
    lines = [f"{'component':<16}{'family':<8}{'rows':>6}{'exact':>8}{'median':>9}{'mean':>9}{'p95':>9}{'bias':>9}{'under':>8}"]
    for component in COMPONENTS:
        for family in ("dense", "MoE", "MLA", "Mamba", "hybrid", "all"):
            if (component, family) in groups:
                one = summarise(groups[component, family])
                lines.append(
                    f"{component:<16}{family:<8}{one.rows:>6}{one.exact:>8.1%}{one.median_absolute:>9.3%}{one.mean_absolute:>9.3%}"
                    f"{one.percentile_95:>9.3%}{one.bias:>+9.3%}{one.under:>8.1%}"
                )
    return "\n".join(lines)


def _bits(file_type: str) -> float:
    """Bits of a value by the type's name alone, as calculators take them (Q4_K_M: 4.5 in most of them)."""
    digits = next((int(letter) for letter in file_type if letter.isdigit()), 16)
    return digits if file_type.startswith(("F", "BF")) else digits + 0.5


def _type_bytes(name: str) -> float:
    kind = GGML_TYPES[name.upper()]
    return kind.block_bytes / kind.block_values


def _weights(row: dict, factor: float = 1.0) -> float:
    """Parameters · bits / 8."""
    bits = 16 if row["file_type"] in ("F16", "BF16") else 32 if row["file_type"] == "F32" else _bits(row["file_type"])
    return parameter_count(architecture_of(row["model"])) * bits / 8 * factor


def _cache(row: dict, *, grouped: bool) -> float:
    """2 · layers · width · cells · bytes: with every head, or with key-value heads alone."""
    architecture = architecture_of(row["model"])
    config = runs()["models"][row["model"]]
    heads, kv_heads = (config.get(name) for name in ("num_attention_heads", "num_key_value_heads"))
    share = kv_heads / heads if grouped and isinstance(heads, int) and isinstance(kv_heads, int) and heads else 1.0
    width = architecture.hidden_size * share
    cells = row["n_ctx"]
    return len(architecture.decoder.layers) * width * cells * (_type_bytes(row["type_k"]) + _type_bytes(row["type_v"]))


ESTIMATORS: dict[str, dict[str, Callable[[dict], float]]] = {
    "weights": {
        "params x bits": _weights,  # llama.cpp's own README, "memory/disk requirements"; hf-mem and others for GGUF names
        "params x bits x1.2": lambda row: _weights(row, 1.2),  # substratus.ai, "Calculating GPU memory for serving LLMs"
        "params x bits x1.1": lambda row: _weights(row, 1.1),  # web calculators that add a tenth
        "params x 2": lambda row: 2.0 * parameter_count(architecture_of(row["model"])),  # accelerate estimate-memory in bf16
    },
    "kv_cache": {
        "2 l h n b": lambda row: _cache(row, grouped=False),  # Kwon et al. 2023, section 3
        "2 l h_kv n b": lambda row: _cache(row, grouped=True),  # hf-mem, llm-d-planner: one size for all layers
        "2 l h n 2": lambda row: 4.0 * len(architecture_of(row["model"]).decoder.layers) * architecture_of(row["model"]).hidden_size
        * row["n_ctx"],
        "2 l h_kv n 2": lambda row: _cache(row | {"type_k": "f16", "type_v": "f16"}, grouped=True),
    },
}  # fmt: skip


def beside() -> str:
    """Public estimators on the same rows, all devices together; the columns of :func:`table`."""
    lines = [f"{'component':<12}{'estimator':<22}{'rows':>6}{'median':>10}{'mean':>10}{'p95':>11}{'bias':>11}{'under':>8}"]
    for component, estimators in ESTIMATORS.items():
        measured = [sum(row["model_bytes"]) if component == "weights" else row["kv_bytes"] for row in rows()]
        ours = {"highwater": lambda row, component=component: _ours(row, component)}
        for name, estimator in (ours | estimators).items():
            errors = [estimator(row) / size - 1 for row, size in zip(rows(), measured, strict=True) if size]
            absolute = sorted(abs(error) for error in errors)
            high, under = absolute[int(0.95 * (len(absolute) - 1))], mean(error < 0 for error in errors)
            lines.append(
                f"{component:<12}{name:<22}{len(errors):>6}{median(absolute):>10.3%}{mean(absolute):>10.3%}"
                f"{high:>11.3%}{mean(errors):>+11.3%}{under:>8.1%}"
            )
    return "\n".join(lines)


def _ours(row: dict, component: str) -> float:
    answer = footprint_of(row)
    return sum(getattr(holder, component) for holder in (*answer.devices, answer.host))


if __name__ == "__main__":
    print(table(evaluate()))
    print(
        "\nPublic estimators on the same rows (l: layers, h: hidden size, h_kv: width of the key-value heads, n: cells, b: bytes)"
    )
    print(beside())
