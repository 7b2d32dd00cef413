"""``llama-server``: the options of llama.cpp's ``common/arg.cpp``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.commands.command import Command, model_name, model_notes, shell_line
from planner.scenario import ModelPath

if TYPE_CHECKING:
    from planner.scenario import Scenario

VERSION = "b6700"
EVERY_LAYER = 999
"""More than any model has: releases differ in how they spell all."""
FILE_OPTIONS = {
    "n_batch": "--batch-size", "n_ubatch": "--ubatch-size", "type_k": "--cache-type-k", "type_v": "--cache-type-v",
    "n_gpu_layers": "--n-gpu-layers", "n_cpu_moe": "--n-cpu-moe",
}  # fmt: skip


def llama_cpp(scenario: Scenario) -> tuple[Command, ...]:
    """``llama-server``; its context is that of all slots together."""
    ask, given = scenario.inference, dict(scenario.inference.engine_options)
    notes = list(model_notes(scenario))
    slots = given.get("n_seq_max", ask.batch)
    options: list[tuple[str, object]] = [_model(scenario, notes), ("--ctx-size", given.get("n_ctx", _cells(scenario)))]
    options += [("--parallel", slots)]
    options += [(option, given[name]) for name, option in FILE_OPTIONS.items() if name in given and given[name] != -1]
    cache = {"auto": None, "bf16": "bf16", "fp16": "f16", "fp32": "f32"}.get(ask.kv_cache, ask.kv_cache)
    if cache and "type_k" not in given and "type_v" not in given:
        options += [("--cache-type-k", cache), ("--cache-type-v", cache)]
    if given.get("n_gpu_layers", -1) == -1:
        options.append(("--n-gpu-layers", EVERY_LAYER))
    if "flash_attn" in given or ask.attention == "eager":
        options.append(("--flash-attn", "on" if given.get("flash_attn", ask.attention != "eager") else "off"))
    if "kv_unified" in given:
        options.append(("--kv-unified" if given["kv_unified"] else "--no-kv-unified", True))
    options.append(("--swa-full", given.get("swa_full")))
    version = str(given.get("version") or VERSION)
    return (
        Command("llama-server", "llama.cpp", version, "shell", shell_line(("llama-server",), options) + "\n", notes=tuple(notes)),
    )


def _model(scenario: Scenario, notes: list[str]) -> tuple[str, object]:
    """A file at hand, else a repository of GGUF files with the mix."""
    if isinstance(scenario.model, ModelPath):
        return "--model", scenario.model.path
    mix = scenario.weights.removeprefix("gguf:") if scenario.weights.startswith("gguf:") else ""
    name = model_name(scenario)
    if ":" not in name:
        notes.append("name a repository that holds GGUF files of this model, or a file with --model")
    return "--hf-repo", f"{name}:{mix}" if mix and ":" not in name else name


def _cells(scenario: Scenario) -> int | None:
    ask = scenario.inference
    longest = ask.max_model_len or ((ask.prompt_tokens or 0) + (ask.new_tokens or 0)) or None
    return longest * ask.batch if longest else None
