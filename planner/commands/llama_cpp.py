"""``llama-server``: the options of llama.cpp's ``common/arg.cpp``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.commands.command import Command, model_name, model_notes, shell_line
from planner.scenario import ModelPath

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.scenario import Scenario, Speculation

VERSION = "0.5.0-dev (0c1e57098)"
"""The release whose buffers are predicted."""
EVERY_LAYER = 999
"""More than any model has: releases differ in how they spell all."""
VALUED = {
    "n_batch": "--batch-size", "n_ubatch": "--ubatch-size", "type_k": "--cache-type-k", "type_v": "--cache-type-v",
    "n_gpu_layers": "--n-gpu-layers", "n_cpu_moe": "--n-cpu-moe", "split_mode": "--split-mode", "tensor_split": "--tensor-split",
    "main_gpu": "--main-gpu", "override_tensor": "--override-tensor",
}  # fmt: skip
DRAFT_VALUED = {
    "n_gpu_layers_draft": "--n-gpu-layers-draft", "type_k_draft": "--cache-type-k-draft", "type_v_draft": "--cache-type-v-draft",
}  # fmt: skip
SWITCHES = {"swa_full": "--swa-full", "cpu_moe": "--cpu-moe", "use_mlock": "--mlock"}
SWITCHES_OFF = {"offload_kqv": "--no-kv-offload", "use_mmap": "--no-mmap"}
SPECULATIONS = {"ngram": "ngram-simple", "mtp": "draft-mtp", "eagle": "draft-eagle3"}


def llama_cpp(scenario: Scenario) -> tuple[Command, ...]:
    """``llama-server``; its context is that of all slots together."""
    ask, given = scenario.inference, dict(scenario.inference.engine_options)
    notes = list(model_notes(scenario))
    slots = int(str(given.get("n_seq_max", ask.batch)))
    options: list[tuple[str, object]] = [_model(scenario, notes), ("--ctx-size", given.get("n_ctx", _cells(scenario, slots)))]
    options += [("--parallel", slots)]
    options += [(option, given[name]) for name, option in VALUED.items() if name in given and given[name] != -1]
    cache = {"auto": None, "bf16": "bf16", "fp16": "f16", "fp32": "f32"}.get(ask.kv_cache, ask.kv_cache)
    if cache and "type_k" not in given and "type_v" not in given:
        options += [("--cache-type-k", cache), ("--cache-type-v", cache)]
    if given.get("n_gpu_layers", -1) == -1:
        options.append(("--n-gpu-layers", EVERY_LAYER))
    if "flash_attn" in given or ask.attention == "eager":
        options.append(("--flash-attn", "on" if given.get("flash_attn", ask.attention != "eager") else "off"))
    if "kv_unified" in given:
        options.append(("--kv-unified" if given["kv_unified"] else "--no-kv-unified", True))
    options += [(option, True) for name, option in SWITCHES.items() if given.get(name)]
    if scenario.offload.kv_cache:
        given.setdefault("offload_kqv", False)
    options += [(option, True) for name, option in SWITCHES_OFF.items() if given.get(name) is False]
    options += _speculation(ask.speculation, given, notes)
    if "n_outputs_max" in given:
        notes.append("n_outputs_max: llama-server sets it by itself, one token a slot and those proposed")
    version = str(given.get("version") or VERSION)
    return (
        Command("llama-server", "llama.cpp", version, "shell", shell_line(("llama-server",), options) + "\n", notes=tuple(notes)),
    )


def _speculation(speculation: Speculation, given: Mapping[str, object], notes: list[str]) -> list[tuple[str, object]]:
    """What proposes tokens, and how many of them."""
    if speculation.method == "none":
        return []
    options: list[tuple[str, object]] = []
    if speculation.method in SPECULATIONS:
        options.append(("--spec-type", SPECULATIONS[speculation.method]))
    if speculation.method in ("draft", "eagle"):
        options.append(("--model-draft", "PATH/TO/DRAFT.gguf"))
        notes.append("put the GGUF file of the draft model for PATH/TO/DRAFT.gguf")
        options += [(option, given[name]) for name, option in DRAFT_VALUED.items() if name in given and given[name] != -1]
        if given.get("n_gpu_layers_draft", -1) == -1:
            options.append(("--n-gpu-layers-draft", EVERY_LAYER))
    return [*options, ("--draft-max", speculation.tokens or None)]


def _model(scenario: Scenario, notes: list[str]) -> tuple[str, object]:
    """A file at hand, else a repository of GGUF files with the mix."""
    if isinstance(scenario.model, ModelPath):
        return "--model", scenario.model.path
    mix = scenario.weights.removeprefix("gguf:") if scenario.weights.startswith("gguf:") else ""
    name = model_name(scenario)
    if ":" not in name:
        notes.append("name a repository that holds GGUF files of this model, or a file with --model")
    return "--hf-repo", f"{name}:{mix}" if mix and ":" not in name else name


def _cells(scenario: Scenario, slots: int) -> int | None:
    ask = scenario.inference
    longest = ask.max_model_len or ask.context_tokens or None
    return longest * slots if longest else None
