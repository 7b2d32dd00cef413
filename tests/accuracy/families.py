"""Every model type that is read, in configs nobody wrote: ``python tests/accuracy/families.py [TYPE ...]``.

For each type: parameters of its default config (in full, and with what differs from the defaults alone), of random small
ones, and of every class with a head, against the model that transformers builds from it; then the allocated peaks of a
generation and of a training step of a small model against its trace on fake tensors. A right number, or unknown with a reason.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import random
import re
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import transformers  # noqa: E402
from transformers.models.auto import modeling_auto  # noqa: E402
from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402

from planner.architecture import UnknownArchitecture, parameter_count, read_config  # noqa: E402
from planner.architecture.families import FAMILIES  # noqa: E402
from planner.faults import Faults  # noqa: E402
from planner.scenario import parse_scenario  # noqa: E402
from probes.worker.order import parse_order  # noqa: E402
from probes.worker.run import run  # noqa: E402
from resources.plan import make_plan  # noqa: E402
from tests.planner.architecture.framework import build  # noqa: E402
from tests.planner.architecture.generate_defaults import READ_AS  # noqa: E402
from tests.planner.architecture.variations import vary  # noqa: E402

WORK: dict[str, dict[str, Any]] = {
    "generation": {"task": "inference", "inference": {"batch": 2, "prompt_tokens": 700, "new_tokens": 4}},
    "training": {"task": "training", "training": {"batch": 2, "sequence": 192}},
    "checkpointed": {"task": "training", "training": {"sequence": 512, "checkpointing": "full"}},
    "LoRA": {"task": "training", "training": {"batch": 2, "sequence": 192, "method": "lora", "lora": {"targets": ["all-linear"]}}},
}
SEEDS = (100, 101)
PROCESSES = 2
TOLERANCE = 0.01
SMALL_TENSORS_BYTES = 256 * 1024
"""Positions and scalars, which do not shrink with the model."""
RECURRENT = ("mamba", "ssm", "linear_", "conv", "lru_width", "block_types", "head_size", "lightning")
"""Keys of state-space and linear mixers, whose widths must agree with one another: left as they are."""
DELTA_NET = {"linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 64, "linear_value_head_dim": 64}
ONE_GROUP = {"n_group": 1, "topk_group": 1}
"""Of experts: a token chooses among all of them."""
WIDE_HEADS = {"head_dim": 128}
"""Which the default parts of GLM-4V's rotary positions fill."""
NAMED_CLASS = re.compile(r"^\w*(For[A-Z]\w+|Model): ")
Told = tuple[str, str]


def settings_of(model_type: str) -> Any:
    """The configuration class."""
    return CONFIG_MAPPING[READ_AS.get(model_type, model_type)]


def classes(model_type: str) -> list[str]:
    """Every class that transformers maps to the type."""
    tables = [getattr(modeling_auto, name) for name in dir(modeling_auto) if name.endswith("MAPPING_NAMES")]
    found = [table[model_type] for table in tables if isinstance(table, dict) and model_type in table]
    flat = [name for names in found for name in ([names] if isinstance(names, str) else names)]
    return sorted({name for name in flat if name and hasattr(transformers, name) and "For" in name})


def forms(model_type: str) -> Iterator[dict[str, Any]]:
    """Configs as checkpoints hold them: in full, what differs from the defaults, hand-written, and for other classes."""
    made = settings_of(model_type)
    for config in (None, *(vary(model_type, seed, small=True) for seed in SEEDS)):
        if config is not None:
            yield config
        try:
            settings = made() if config is None else made.from_dict(copy.deepcopy(config))
        except Exception:
            continue
        for written in (settings.to_dict(), settings.to_diff_dict()):
            yield json.loads(json.dumps(written, default=str)) | {"model_type": model_type}
    for name in classes(model_type):
        yield vary(model_type, SEEDS[0], small=True) | {"architectures": [name]}


def count(config: dict[str, Any]) -> Told:
    """Parameters of one config against those of the model built from it."""
    try:
        found = read_config(config)
    except (Faults, UnknownArchitecture) as error:
        return "unknown", str(error)
    try:
        model = build(config, found.model_class)
    except Exception as error:
        return "not built", f"{type(error).__name__}: {error}"
    built = sum(value.numel() for value in dict.fromkeys(model.parameters()))
    return ("right", "") if parameter_count(found) == built else ("wrong", f"{found.model_class} {parameter_count(found)}, {built}")


def realistic(model_type: str, seed: int) -> dict[str, Any]:
    """A config with widths in the proportions of real models, in bf16, for the class the reader names."""
    random_ = random.Random(f"{model_type} {seed}")
    config = vary(model_type, seed, 0.25, small=True)
    hidden, heads = (1024, 8) if model_type.startswith(("qwen2_vl", "qwen2_5_vl")) else random_.choice(((768, 12), (1024, 16)))
    sizes = {
        ("hidden_size", "d_model", "n_embd", "dim", "word_embed_proj_dim"): hidden,
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads"): heads,
        ("num_key_value_heads", "num_kv_heads", "num_global_key_value_heads"): random_.choice((2, 4)),
        ("head_dim", "global_head_dim", "d_kv", "qk_nope_head_dim", "v_head_dim"): 64,
        ("intermediate_size", "ffn_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim", "n_inner", "dff"): 3 * hidden,
        ("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"): hidden // 2,
        ("max_position_embeddings", "n_positions", "max_seq_len"): 2048,
        ("sliding_window",): random_.choice((128, 1024)), ("index_head_dim",): 64,
        ("q_lora_rank",): 256, ("kv_lora_rank",): 128, ("qk_rope_head_dim", "rotary_dim"): 32,
        ("vocab_size",): 16000,
    }  # fmt: skip
    rows = {key: size for keys, size in sizes.items() for key in keys}
    for part in (config, *(value for key, value in config.items() if isinstance(value, dict) and "text" in key)):
        part.update(DELTA_NET if any(key in part for key in DELTA_NET) else {})
        part.update(ONE_GROUP if "n_routed_experts" in part else {})
        latent, fixed = "kv_lora_rank" in part, any(word in key for key in part if key not in DELTA_NET for word in RECURRENT)
        kept = ("vocab_size", "max_position_embeddings") if fixed else tuple(rows)
        for key in [key for key in kept if type(part.get(key)) is int]:
            part[key] = heads if latent and key == "num_key_value_heads" else rows[key]
        part.update(WIDE_HEADS if model_type.startswith("glm4v_moe") and "hidden_size" in part else {})
        for key in ("is_decoder", "add_cross_attention"):
            part.update({key: False} if key in part else {})
    config["torch_dtype"] = "bfloat16"
    return config | {"architectures": [read_config(config).model_class]}


class Heard:
    """The result of a trace."""

    def __init__(self) -> None:
        self.phases: dict[str, int] = {}

    def send(self, event: str, **fields: Any) -> None:
        """One event of the worker."""
        if event == "result":
            self.phases = {phase["name"]: phase["allocated"] for phase in fields["phases"]}

    close = send


def trace(scenario: Any, config: dict[str, Any]) -> dict[str, int]:
    """Allocated peaks by phase of the model itself on fake tensors, as CUDA allocates."""
    heard = Heard()
    order = {
        "version": 1, "mode": "rehearse", "scenario": dict(scenario), "config": config, "device": "cpu", "layers": None,
        "budget_bytes": None, "personality": "cuda", "compute_capability": [9, 0],
    }  # fmt: skip
    run(parse_order(json.loads(json.dumps(order))), heard)
    return heard.phases


def phases(model_type: str, work: str) -> Told:
    """The closed form of one workload against the trace: the worst phase's error, or why there is none."""
    try:
        config = realistic(model_type, SEEDS[0])
        document = {"version": 1, "model": {"config": config}, "hardware": {"gpu": "H200 SXM 141GB"}} | WORK[work]
        footprint = make_plan(parse_scenario(document), network=False, device="cuda").footprint
    except (Faults, UnknownArchitecture) as error:
        return "unknown", str(error)
    if not footprint.gpus[0].phases:
        return "unknown", next((note for note in footprint.notes if note.startswith("unknown: ")), "")
    try:
        traced = trace(footprint.scenario, config)
    except Exception as error:
        return "not built", f"{type(error).__name__}: {error}"
    predicted = {phase.name: phase.allocated for phase in footprint.gpus[0].phases}
    errors = {name: predicted[name] - truth for name, truth in traced.items() if name in predicted}
    told = ", ".join(f"{name} {error / traced[name]:+.2%}" for name, error in errors.items())
    right = all(abs(error) <= TOLERANCE * traced[name] + SMALL_TENSORS_BYTES for name, error in errors.items())
    return "right" if right else "wrong", told


Found = tuple[list[Told], dict[str, Told]]


def of_type(name: str) -> Found:
    """One type's configs, and its small model under every workload."""
    found = [count(config) for config in forms(name)], {work: phases(name, work) for work in WORK}
    print(name, Counter(kind for kind, _ in found[0]), found[1], file=sys.stderr, flush=True)
    return found


def of_types(model_types: list[str]) -> dict[str, Found]:
    """Every type that is read, or those named."""
    names = model_types or sorted(name for name in FAMILIES if READ_AS.get(name, name) in CONFIG_MAPPING)
    with ProcessPoolExecutor(PROCESSES) as pool:
        return dict(zip(names, pool.map(of_type, names), strict=True))


def report(found: dict[str, Found]) -> str:
    """The sums, a line for each type, why peaks are unknown, then what was wrong."""
    sums: dict[str, Counter[str]] = {"parameters": Counter(), **{work: Counter() for work in WORK}}
    lines, wrong = [], []
    for name, (counts, told) in found.items():
        sums["parameters"].update(kind for kind, _ in counts)
        for work, (kind, _) in told.items():
            sums[work][kind] += 1
        kinds = Counter(kind for kind, _ in counts)
        read = ", ".join(f"{kinds[kind]} {kind}" for kind in sorted(kinds))
        lines.append(f"{name:22}{read:42}" + "".join(f"{kind:13}" for kind, _ in told.values()).rstrip())
        wrong += [f"  {name}: {why}" for kind, why in counts if kind == "wrong"]
        wrong += [f"  {name}, {work}: {why}" for work, (kind, why) in told.items() if kind == "wrong"]
    totals = [f"{what}: " + ", ".join(f"{sums[what][kind]} {kind}" for kind in sorted(sums[what])) for what in sums]
    head = f"{'type':22}{'parameters, configs':42}" + "".join(f"{work:13}" for work in WORK).rstrip()
    title = f"Model types against transformers {transformers.__version__}: parameters to the last, peaks within {TOLERANCE:.0%}"
    return "\n".join([title, "", *totals, "", head, *lines, "", "unknown:", *reasons(found), "", "wrong:", *(wrong or ["  none"])])


def reasons(found: dict[str, Found]) -> list[str]:
    """Why peaks are unknown: each reason once, without the class it names first, and the types and workloads it holds for."""
    of: dict[str, dict[str, list[str]]] = {}
    for name, (_, told) in found.items():
        for work, (kind, why) in told.items():
            if kind == "unknown":
                reason = NAMED_CLASS.sub("", why.removeprefix("unknown: "))
                of.setdefault(reason, {}).setdefault(name, []).append(work)
    lines = []
    for reason, types in sorted(of.items(), key=lambda item: (-len(item[1]), item[0])):
        named = [name + ("" if len(works) == len(WORK) else f" ({', '.join(works)})") for name, works in types.items()]
        lines += textwrap.wrap(f"{reason}: {', '.join(named)}", 130, initial_indent="  ", subsequent_indent="    ")
    return lines or ["  none"]


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    print(report(of_types(sys.argv[1:])))
