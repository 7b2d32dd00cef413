"""How llama.cpp's graphs of the families differ where the architecture alone does not say it.

One row a ``model_type``, read off the file of ``src/models/`` that builds its graph (llama.cpp 0.5.0-dev, ggml 0.25.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

Gating = Literal["softmax", "sigmoid", "softmax of the chosen"]


@dataclass(frozen=True, slots=True)
class Family:
    """One graph's habits. ``file``: the source it was read off."""

    file: str
    windows: bool = False
    """Whether sliding windows get caches of their own; other graphs keep every cell."""
    scales_embedding: bool = False
    scales_queries: bool = False
    scales_residual: bool = False
    scales_logits: bool = False
    norms_keys_first: bool = False
    residual_first: tuple[bool, bool] = (False, False)
    """Whether the residual is the first summand, after the sequence mixer and after the channel mixer."""
    outputs_after: Literal["mixer", "layers", "final norm"] = "mixer"
    """Where rows without an output are dropped: in the last layer after its sequence mixer, or later."""
    keeps_hidden: bool = False
    """Whether the hidden states are an output of the graph too, never freed."""
    expands_norm: bool = False
    gating: Gating = "softmax"
    normalises_weights: bool = True
    scales_weights: bool = False
    expert_groups: int = 1
    gated_shared_experts: bool = False
    absorbs_latent: bool = True


_LLAMA = Family("llama.cpp")
_QWEN2 = Family("qwen2.cpp")
_GEMMA = Family("gemma3.cpp", windows=True, scales_embedding=True, scales_queries=True)
_PHI3 = Family("phi3.cpp", scales_queries=True, residual_first=(False, True))
_GRANITE = Family("granite.cpp", scales_embedding=True, scales_residual=True, scales_logits=True)
_DEEPSEEK = Family("deepseek2.cpp", keeps_hidden=True)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": _LLAMA,
        "mistral": _LLAMA,
        "mixtral": _LLAMA,
        "qwen2": _QWEN2,
        "qwen3": Family("qwen3.cpp"),
        "qwen3_moe": Family("qwen3moe.cpp"),
        "gemma2": replace(_GEMMA, file="gemma2.cpp"),
        "gemma3_text": _GEMMA,
        "phi3": _PHI3,
        "gpt_oss": Family(
            "openai-moe.cpp",
            windows=True,
            outputs_after="layers",
            keeps_hidden=True,
            gating="softmax of the chosen",
            normalises_weights=False,
        ),
        "deepseek_v2": replace(_DEEPSEEK, normalises_weights=False),
        "deepseek_v3": replace(_DEEPSEEK, gating="sigmoid", scales_weights=True, expert_groups=8),
        "mamba": Family("mamba.cpp"),
        "mamba2": Family("mamba.cpp"),
        "jamba": Family("jamba.cpp", residual_first=(True, True), normalises_weights=False),
        "granitemoehybrid": replace(_GRANITE, file="granite-hybrid.cpp"),
        "qwen3_next": Family(
            "qwen3next.cpp", outputs_after="final norm", keeps_hidden=True, expands_norm=True, gated_shared_experts=True
        ),
    }
)
"""Every family whose graph is derived, by ``model_type``."""
