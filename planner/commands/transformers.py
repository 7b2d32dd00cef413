"""Python that generates with transformers as the plan says: dtype or quantisation, cache, batch and lengths."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from planner.commands.command import Command, model_name, model_notes

if TYPE_CHECKING:
    from planner.architecture.layers import Architecture
    from planner.scenario import Scenario

VERSION = "5.23"
DTYPES = {"bf16": "torch.bfloat16", "fp16": "torch.float16", "fp32": "torch.float32"}
_FOUR_BITS = ("load_in_4bit=True", 'bnb_4bit_quant_type="nf4"', "bnb_4bit_compute_dtype=torch.bfloat16")
BITSANDBYTES = {
    "int8": ("load_in_8bit=True",),
    "nf4": _FOUR_BITS,
    "nf4-dq": (*_FOUR_BITS, "bnb_4bit_use_double_quant=True"),
    "fp4": ("load_in_4bit=True", 'bnb_4bit_quant_type="fp4"', "bnb_4bit_compute_dtype=torch.bfloat16"),
}
"""Arguments of ``BitsAndBytesConfig``."""
ATTENTION = {"sdpa": "sdpa", "flash": "flash_attention_2", "eager": "eager", "paged": "paged|sdpa"}


OFFLOAD_MAP = "device_map"
"""The variable of :func:`host_map`'s lines."""


def loading(scenario: Scenario, attention: str, *, device_map: str | None = "cuda") -> tuple[list[str], list[str]]:
    """(imports, lines that load the model) for the weights a plan names."""
    imports, lines = ["AutoModelForCausalLM"], []
    arguments = [json.dumps(model_name(scenario), ensure_ascii=False)]
    if scenario.weights in BITSANDBYTES:
        imports.append("BitsAndBytesConfig")
        told = "".join(f"    {argument},\n" for argument in _quantising(scenario))
        lines.append(f"quantization = BitsAndBytesConfig(\n{told})")
        arguments.append("quantization_config=quantization")
    compute = "torch.bfloat16" if scenario.weights in BITSANDBYTES else '"auto"'
    arguments.append(f"dtype={DTYPES.get(scenario.weights, compute)}")
    if attention in ATTENTION:
        arguments.append(f'attn_implementation="{ATTENTION[attention]}"')
    if scenario.task == "training" and scenario.parallel.tensor > 1:
        arguments.append('tp_plan="auto"')
    elif device_map:
        arguments.append(f"device_map={OFFLOAD_MAP}" if device_map == OFFLOAD_MAP else f'device_map="{device_map}"')
        if scenario.offload.weights and scenario.offload.to != "cpu":
            arguments.append('offload_folder="offload"')
    joined = "".join(f"    {argument},\n" for argument in arguments)
    lines.append(f"model = AutoModelForCausalLM.from_pretrained(\n{joined})")
    return imports, lines


def _quantising(scenario: Scenario) -> list[str]:
    """bitsandbytes' arguments. FSDP cuts values that are stored in the dtype of the rest; modules may be left as they are."""
    arguments = list(BITSANDBYTES[scenario.weights])
    if scenario.task == "training" and scenario.parallel.sharding == "fsdp" and scenario.weights != "int8":
        arguments.append("bnb_4bit_quant_storage=torch.bfloat16")
    plain = scenario.training.engine_options.get("quant_skip_modules") if scenario.task == "training" else None
    if plain:
        arguments.append(f"llm_int8_skip_modules={json.dumps([name.strip() for name in str(plain).split(',')])}")
    return arguments


def host_map(scenario: Scenario, architecture: Architecture | None) -> list[str]:
    """Lines of the ``device_map`` whose modules lie where the prediction lays them; none where it lays none on the host.

    The modules from the first on stay on the GPU; what makes cosines and sines does too, so that the GPU computes.
    """
    from planner.engines.transformers_spread import lays_on_host, makes_rotary, share_beside_host  # noqa: PLC0415  loaded for those who ask

    dtype_bytes = lays_on_host(scenario, architecture)
    if architecture is None or dtype_bytes is None:
        return []
    share = share_beside_host(scenario, architecture, dtype_bytes)
    host = '"cpu"' if scenario.offload.to == "cpu" else '"disk"'
    layers, stop = architecture.decoder.name, share.layers.stop
    embeddings = [_module(weight.name) for weight in architecture.embeddings]
    ends = {name: index in share.embeddings for index, name in enumerate(embeddings)}
    ends |= {_module(weight.name): share.norm for weight in (architecture.final_norm.weights if architecture.final_norm else ())}
    if makes_rotary(architecture):
        ends[f"{_module(layers)}.rotary_emb"] = True
    ends[_module(architecture.head[0].name) if architecture.head else "lm_head"] = (
        share.head if architecture.head else bool(share.embeddings)
    )
    lines = [f"    {json.dumps(name)}: {0 if kept else host},\n" for name, kept in ends.items()]
    lines += [_run(layers, 0, stop, "0"), _run(layers, stop, len(architecture.decoder.layers), host)]
    return [f"{OFFLOAD_MAP} = {{\n{''.join(lines)}}}"]


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _run(layers: str, start: int, stop: int, place: str) -> str:
    """Neighbouring layers in one place, as a line of a dictionary."""
    return f'    **{{f"{layers}.{{layer}}": {place} for layer in range({start}, {stop})}},\n' if stop > start else ""


def _quantised_cache(scenario: Scenario) -> list[str]:
    """Arguments of ``generate`` for a quantised cache; none for another one."""
    from planner.components.quantised_cache import settings_of  # noqa: PLC0415  loaded for those who ask

    found = settings_of(scenario)
    return [] if found is None else ['cache_implementation="quantized"', f"cache_config={json.dumps(found)}"]


def generation(scenario: Scenario, architecture: Architecture | None = None) -> tuple[Command, ...]:
    """``generate`` on prompts of the planned length, with the peak printed at the end to compare.

    ``architecture``: the model's, which names the modules that lie on the host.
    """
    ask = scenario.inference
    placed = host_map(scenario, architecture) if scenario.offload.weights else []
    spread = "auto" if scenario.hardware.gpus > 1 or scenario.offload.weights else "cuda"
    imports, load = loading(scenario, ask.attention, device_map=OFFLOAD_MAP if placed else spread)
    load = [*placed, *load]
    cache = ask.engine_options.get("cache_implementation")
    new_tokens = ask.new_tokens or 256
    arguments = ["prompts", "attention_mask=torch.ones_like(prompts)", f"max_new_tokens={new_tokens}"]
    arguments += [f"min_new_tokens={new_tokens}", "do_sample=False"]
    if cache == "static":
        arguments.append('cache_implementation="static"')
    arguments += _quantised_cache(scenario)
    called = "".join(f"    {argument},\n" for argument in arguments)
    shape = f"({ask.batch}, {ask.prompt_tokens or 512})"
    text = "\n".join(
        (
            "import torch",
            f"from transformers import {', '.join(imports)}",
            "",
            *load,
            f"prompts = torch.randint(model.config.get_text_config().vocab_size, {shape}, device=model.device)",
            f"model.generate(\n{called})",
            'print(f"peak allocated {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")',
            "",
        )
    )
    notes = list(model_notes(scenario))
    if scenario.offload.weights and not placed:
        notes.append("offload.weights: device_map auto fills the GPU first, whatever fraction is planned for the host")
    if placed and ": 0" not in placed[0]:
        notes.append("offload.weights: with every module on the host accelerate computes there; leave one on the GPU")
    if scenario.weights.startswith("gguf:"):
        notes.append("weights: transformers dequantises GGUF while loading (gguf_file=…); the plan's bytes are those of llama.cpp")
    return (Command("Generate with transformers", "transformers", VERSION, "python", text, "generate.py", tuple(notes)),)
