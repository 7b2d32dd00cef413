"""The battery: small enough for one card and ten minutes, wide enough to meet every kind of run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODELS = Path(__file__).parents[2] / "resources" / "data" / "models.json"


@dataclass(frozen=True)
class Scenario:
    """One run: a model of the catalog, cut to some layers, and its workload."""

    name: str
    model: str
    task: str
    workload: tuple[tuple[str, Any], ...]
    layers: int | None = None
    weights: str = "bf16"

    def document(self) -> dict[str, Any]:
        """The scenario as the program takes it."""
        workload = dict(self.workload)
        if "lora" in workload:
            workload["lora"] = {"rank": workload["lora"], "targets": ["q_proj", "v_proj"]}
        return {"version": 1, "model": self.model, "weights": self.weights, "task": self.task, self.task: workload}

    def order(self, mode: str, device: str = "cpu", **more: Any) -> dict[str, Any]:
        """What the worker takes."""
        order = {"version": 1, "mode": mode, "scenario": self.document(), "config": config_of(self.model), "device": device}
        return {**order, "layers": self.layers, "budget_bytes": None, **more}


def config_of(model: str) -> dict[str, Any]:
    """The bundled config of a catalog model."""
    config: dict[str, Any] = json.loads(MODELS.read_text(encoding="utf-8"))[model]["config"]
    return config


def _inference(name: str, model: str, batch: int, prompt: int, layers: int | None = None, **more: Any) -> Scenario:
    work = {"batch": batch, "prompt_tokens": prompt, "new_tokens": 8, **more}
    return Scenario(f"{name}-infer-b{batch}-t{prompt}", model, "inference", tuple(work.items()), layers)


def _training(name: str, model: str, batch: int, tokens: int, layers: int | None = None, kind: str = "", **more: Any) -> Scenario:
    work = {"batch": batch, "sequence": tokens, **more}
    return Scenario(f"{name}-train{kind}-b{batch}-t{tokens}", model, "training", tuple(work.items()), layers)


_SMOL, _QWEN, _LLAMA = "HuggingFaceTB/SmolLM2-135M", "Qwen/Qwen3-0.6B", "meta-llama/Llama-3.1-8B"
_GEMMA, _MISTRAL, _PHI = "google/gemma-3-1b-it", "mistralai/Mistral-7B-v0.1", "microsoft/phi-4"
_MIXTRAL, _DEEPSEEK = "mistralai/Mixtral-8x7B-v0.1", "deepseek-ai/DeepSeek-V2-Lite"

SCENARIOS: tuple[Scenario, ...] = (
    *(_inference("smol", _SMOL, batch, prompt) for batch, prompt in ((1, 512), (8, 512), (8, 2048), (32, 1024))),
    *(_inference("qwen3", _QWEN, batch, prompt) for batch, prompt in ((1, 1024), (8, 1024), (4, 4096))),
    *(_inference("llama", _LLAMA, batch, prompt, 8) for batch, prompt in ((1, 2048), (4, 2048), (2, 8192))),
    _inference("llama-whole", _LLAMA, 2, 2048),
    _inference("llama-eager", _LLAMA, 2, 1024, 4, attention="eager"),
    *(_inference("gemma3", _GEMMA, batch, prompt) for batch, prompt in ((1, 1024), (4, 4096))),
    *(_inference("mistral", _MISTRAL, batch, prompt, 6) for batch, prompt in ((1, 2048), (4, 6144))),
    _inference("phi4", _PHI, 2, 2048, 6),
    *(_inference("mixtral", _MIXTRAL, batch, prompt, 2) for batch, prompt in ((1, 1024), (4, 1024))),
    _inference("deepseek", _DEEPSEEK, 2, 2048, 4),
    *(_training("smol", _SMOL, batch, tokens) for batch, tokens in ((1, 512), (4, 512), (8, 1024))),
    _training("smol", _SMOL, 4, 512, kind="-foreach", optimizer="adamw_foreach"),
    _training("smol", _SMOL, 4, 512, kind="-sgd", optimizer="sgd_momentum"),
    _training("smol", _SMOL, 4, 512, kind="-lion", optimizer="lion"),
    _training("smol", _SMOL, 4, 512, kind="-fp32", precision="fp32"),
    _training("smol", _SMOL, 4, 512, kind="-amp", precision="amp-bf16"),
    _training("smol", _SMOL, 2, 512, kind="-accum4", gradient_accumulation=4),
    _training("smol", _SMOL, 8, 1024, kind="-ckpt", checkpointing="full"),
    *(_training("qwen3", _QWEN, batch, tokens) for batch, tokens in ((1, 1024), (4, 512))),
    _training("qwen3", _QWEN, 4, 1024, kind="-ckpt", checkpointing="full"),
    _training("qwen3", _QWEN, 2, 1024, kind="-lora8", method="lora", lora=8),
    _training("qwen3", _QWEN, 2, 1024, kind="-lora64", method="lora", lora=64),
    *(_training("llama", _LLAMA, batch, tokens, 2) for batch, tokens in ((1, 1024), (2, 2048), (4, 512))),
    _training("llama", _LLAMA, 2, 2048, 4, kind="-ckpt", checkpointing="full"),
    _training("llama", _LLAMA, 2, 1024, 8, kind="-lora16", method="lora", lora=16),
    _training("llama", _LLAMA, 4, 2048, 8, kind="-lora16-ckpt", method="lora", lora=16, checkpointing="full"),
    _training("llama", _LLAMA, 1, 1024, 2, kind="-adafactor", optimizer="adafactor"),
    _training("gemma3", _GEMMA, 1, 1024),
    _training("mistral", _MISTRAL, 1, 1024, 2),
    _training("phi4", _PHI, 1, 1024, 2),
    _training("mixtral", _MIXTRAL, 1, 512, 1),
)
