"""Scenarios that are one click away: what people ask first."""

from __future__ import annotations

from dataclasses import dataclass

from planner.scenario import Hardware, Inference, Lora, Parallel, Scenario, Training


@dataclass(frozen=True, slots=True)
class Example:
    """A scenario, what it is called, and what it shows."""

    name: str
    title: str
    tip: str
    scenario: Scenario


EXAMPLES: tuple[Example, ...] = (
    Example(
        "chat",
        "Chat on one GPU",
        "Qwen3-8B with one conversation of 8K tokens on a 24 GB card.",
        Scenario(
            "Qwen/Qwen3-8B", "inference",
            inference=Inference(batch=1, prompt_tokens=7168, new_tokens=1024), hardware=Hardware("GeForce RTX 4090"),
        ),
    ),
    Example(
        "documents",
        "Documents of 128K tokens",
        "Llama-3.1-8B reads one long document: the KV cache and the prefill grow with it.",
        Scenario(
            "meta-llama/Llama-3.1-8B", "inference",
            inference=Inference(batch=1, prompt_tokens=130048, new_tokens=1024), hardware=Hardware("H100 SXM5 80GB"),
        ),
    ),
    Example(
        "serve",
        "Serve 16 × 8K",
        "Llama-3.1-8B under vLLM with sixteen conversations of 8K tokens at once.",
        Scenario(
            "meta-llama/Llama-3.1-8B", "inference",
            inference=Inference("vllm", batch=16, prompt_tokens=7168, new_tokens=1024), hardware=Hardware("H100 SXM5 80GB"),
        ),
    ),
    Example(
        "lora",
        "LoRA on 24 GB",
        "Fine-tune Qwen3-8B with adapters of rank 16 and checkpointing on a 24 GB card.",
        Scenario(
            "Qwen/Qwen3-8B", "training",
            training=Training(method="lora", batch=1, sequence=2048, checkpointing="full", lora=Lora(rank=16)),
            hardware=Hardware("GeForce RTX 4090"),
        ),
    ),
    Example(
        "sharded",
        "Full fine-tune on 8 GPUs",
        "Train all of Llama-3.1-8B with its states sharded over eight 80 GB cards.",
        Scenario(
            "meta-llama/Llama-3.1-8B", "training",
            training=Training("fsdp", batch=1, sequence=4096, checkpointing="full"),
            hardware=Hardware("H100 SXM5 80GB", gpus=8), parallel=Parallel(data=8, sharding="fsdp"),
        ),
    ),
)  # fmt: skip
