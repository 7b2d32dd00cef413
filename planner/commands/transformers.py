"""Python that generates with transformers as the plan says: dtype or quantisation, cache, batch and lengths."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from planner.commands.command import Command, model_name, model_notes

if TYPE_CHECKING:
    from planner.scenario import Scenario

VERSION = "5.23"
DTYPES = {"bf16": "torch.bfloat16", "fp16": "torch.float16", "fp32": "torch.float32"}
BITSANDBYTES = {
    "int8": "BitsAndBytesConfig(load_in_8bit=True)",
    "nf4": 'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)',
    "nf4-dq": (
        "BitsAndBytesConfig(\n"
        '    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16\n'
        ")"
    ),
    "fp4": 'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_compute_dtype=torch.bfloat16)',
}
ATTENTION = {"sdpa": "sdpa", "flash": "flash_attention_2", "eager": "eager", "paged": "paged|sdpa"}


def loading(scenario: Scenario, attention: str, *, device_map: str | None = "cuda") -> tuple[list[str], list[str]]:
    """(imports, lines that load the model) for the weights a plan names."""
    imports, lines = ["AutoModelForCausalLM"], []
    arguments = [json.dumps(model_name(scenario), ensure_ascii=False)]
    if scenario.weights in BITSANDBYTES:
        imports.append("BitsAndBytesConfig")
        lines.append(f"quantization = {BITSANDBYTES[scenario.weights]}")
        arguments.append("quantization_config=quantization")
    compute = "torch.bfloat16" if scenario.weights in BITSANDBYTES else '"auto"'
    arguments.append(f"dtype={DTYPES.get(scenario.weights, compute)}")
    if attention in ATTENTION:
        arguments.append(f'attn_implementation="{ATTENTION[attention]}"')
    if scenario.task == "training" and scenario.parallel.tensor > 1:
        arguments.append('tp_plan="auto"')
    elif device_map:
        arguments.append(f'device_map="{device_map}"')
    joined = "".join(f"    {argument},\n" for argument in arguments)
    lines.append(f"model = AutoModelForCausalLM.from_pretrained(\n{joined})")
    return imports, lines


def generation(scenario: Scenario) -> tuple[Command, ...]:
    """``generate`` on prompts of the planned length, with the peak printed at the end to compare."""
    ask = scenario.inference
    spread = "auto" if scenario.hardware.gpus > 1 or scenario.offload.weights else "cuda"
    imports, load = loading(scenario, ask.attention, device_map=spread)
    cache = ask.engine_options.get("cache_implementation")
    new_tokens = ask.new_tokens or 256
    arguments = ["prompts", "attention_mask=torch.ones_like(prompts)", f"max_new_tokens={new_tokens}"]
    arguments += [f"min_new_tokens={new_tokens}", "do_sample=False"]
    if cache in ("static", "quantized"):
        arguments.append(f'cache_implementation="{cache}"')
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
    if scenario.weights.startswith("gguf:"):
        notes.append("weights: transformers dequantises GGUF while loading (gguf_file=…); the plan's bytes are those of llama.cpp")
    return (Command("Generate with transformers", "transformers", VERSION, "python", text, "generate.py", tuple(notes)),)
