"""How llama.cpp's graphs of the families differ where the architecture alone does not say it.

One row a ``model_type``, read off the file of ``src/models/`` that builds its graph (llama.cpp 0.5.0-dev, ggml 0.25.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

Summand = Literal["attention", "channel", "residual"]
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
    shared_gate: Literal["none", "sigmoid", "silu ratio"] = "none"
    """How the shared expert's output is gated; the ratio silu(g) / g is the sigmoid, written so."""
    parallel_sum: tuple[Summand, Summand, Summand] = ("channel", "residual", "attention")
    """Order in which the outputs of mixers side by side are added."""
    norms_before_rows: bool = False
    """Whether a channel mixer's own norm, side by side, sees every token of the last layer too."""
    adds_positions: bool = False
    norms_embeddings: bool = False
    only_rms_norms: bool = False
    rotates_before_norm: bool = False
    scales_by_position: bool = False
    rotates_windows_only: bool = False
    """Whether layers with full attention go without rotary embeddings where others have windows."""
    positions_per_token: int = 1
    """Position ids of a token: rotary embeddings in sections have four."""
    norms_values: bool = False
    """Whether values are normed without a weight, and are the keys where a layer has no projection of its own for them."""
    norms_rotated: bool = False
    """Whether queries and keys that were rotated are normed without a weight."""
    scales_unrotated: bool = False
    """Whether queries that are not rotated are scaled by their position."""
    weighs_first: bool = False
    """Whether the experts' inputs are weighed instead of their outputs, and logits choose them."""
    merges_gate_up: bool = False
    """Whether the experts' gate and up projections are one matrix."""
    deepstacked: bool = False
    """Whether embeddings are as wide as the vision tower's layers beside them, which the first layers add."""
    rotary_factors: bool = False
    """Whether files hold a factor for every frequency of full attention's rotary embedding."""
    norms_mixed: bool = False
    """Whether the norm after a sequence mixer sees every token of the last layer, before rows without an output are dropped."""
    gates_attention: Literal["none", "sigmoid", "softplus"] = "none"
    """How a projection of its own gates what was attended to, before the output projection."""
    keeps_normed: bool = False
    """Whether what is added to a mixer's output, scaled, is the normed input."""
    rotates_latent: bool = True
    """Whether latent attention rotates the part of its keys that is shared by all heads."""
    scales_attended: bool = False
    """Whether the output of attention is scaled."""
    halves_experts: bool = False
    """Whether the sum of routed and shared experts is halved."""
    norms_states: bool = False
    """Whether Mamba's B, C and dt are normed without a weight."""


_LLAMA = Family("llama.cpp")
_QWEN2 = Family("qwen2.cpp")
_GEMMA3 = Family("gemma3.cpp", windows=True, scales_embedding=True, scales_queries=True)
_PHI3 = Family("phi3.cpp", scales_queries=True, residual_first=(False, True))
_GRANITE = Family("granite.cpp", scales_embedding=True, scales_residual=True, scales_logits=True)
_DEEPSEEK = Family("deepseek2.cpp", keeps_hidden=True)
_SIGMOID_EXPERTS = replace(_DEEPSEEK, gating="sigmoid", scales_weights=True)
_COHERE = Family("command-r.cpp", scales_logits=True)
_OLMO2 = Family("olmo2.cpp")
_QWEN3_NEXT = Family(
    "qwen3next.cpp", outputs_after="final norm", keeps_hidden=True, expands_norm=True, shared_gate="sigmoid"
)  # fmt: skip
_QWEN3_5 = replace(_QWEN3_NEXT, file="qwen35.cpp", positions_per_token=4)
_QWEN2_VL = Family("qwen2vl.cpp", positions_per_token=4)
_MISTRAL3 = Family("mistral3.cpp")
_QWEN3_VL = Family("qwen3vl.cpp", positions_per_token=4, deepstacked=True)
_LLAMA4 = Family(
    "llama4.cpp", windows=True, rotates_windows_only=True, norms_rotated=True, scales_unrotated=True, gating="sigmoid",
    normalises_weights=False, weighs_first=True,
)  # fmt: skip
_GEMMA4 = Family(
    "gemma4.cpp", windows=True, scales_embedding=True, norms_values=True, outputs_after="final norm", keeps_hidden=True,
    merges_gate_up=True, rotary_factors=True,
)  # fmt: skip
_GEMMA3N = Family("gemma3n.cpp", windows=True, scales_embedding=True, norms_values=True, outputs_after="layers")
_LFM2 = Family("lfm2.cpp", residual_first=(True, True), gating="sigmoid")

_LAGUNA = Family("laguna.cpp", windows=True, gating="sigmoid", scales_weights=True, gates_attention="softplus")

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "llama",
                "mistral",
                "mixtral",
                "llava",
                "llava_next",
                "vipllava",
                "internlm3",
                "iquestcoder",
                "idefics3",
                "smolvlm",
                "voxtral",
            ),
            _LLAMA,
        ),
        "afmoe": Family(
            "afmoe.cpp",
            windows=True,
            rotates_windows_only=True,
            scales_embedding=True,
            gating="sigmoid",
            scales_weights=True,
            norms_mixed=True,
            gates_attention="sigmoid",
        ),
        "apertus": Family("apertus.cpp"),
        "arcee": Family("arcee.cpp"),
        "bloom": Family("bloom.cpp", norms_embeddings=True),
        "cohere": _COHERE,
        "cohere2": replace(_COHERE, file="cohere2.cpp", windows=True, rotates_windows_only=True),
        "cohere2_moe": replace(
            _COHERE,
            file="cohere2moe.cpp",
            windows=True,
            rotates_windows_only=True,
            gating="sigmoid",
            halves_experts=True,
            outputs_after="final norm",
            keeps_hidden=True,
        ),
        "dbrx": Family("dbrx.cpp"),
        "deepseek_v2": replace(_DEEPSEEK, normalises_weights=False),
        "deepseek_v3": replace(_SIGMOID_EXPERTS, expert_groups=8),
        "deepseek_v32": replace(_SIGMOID_EXPERTS, file="deepseek32.cpp", expert_groups=8),
        "dots1": Family("dots1.cpp", gating="sigmoid", scales_weights=True),
        "ernie4_5": Family("ernie4-5.cpp"),
        "ernie4_5_moe": Family("ernie4-5-moe.cpp"),
        "exaone_moe": Family(
            "exaone-moe.cpp", windows=True, rotates_windows_only=True, gating="sigmoid", scales_weights=True, keeps_hidden=True
        ),
        "exaone4": Family("exaone4.cpp", windows=True, rotates_windows_only=True),
        "falcon": Family("falcon.cpp", parallel_sum=("channel", "attention", "residual"), norms_before_rows=True),
        "falcon_h1": Family("falcon-h1.cpp"),
        "falcon_mamba": Family("mamba.cpp", norms_states=True),
        "gemma": Family("gemma.cpp", scales_embedding=True, scales_queries=True),
        "gemma2": replace(_GEMMA3, file="gemma2.cpp"),
        **dict.fromkeys(("gemma3", "gemma3_text"), _GEMMA3),
        **dict.fromkeys(("gemma3n", "gemma3n_text"), _GEMMA3N),
        **dict.fromkeys(("gemma4", "gemma4_text"), _GEMMA4),
        "glm": Family("chatglm.cpp"),
        "glm4": Family("glm4.cpp"),
        "glm4_moe": Family("glm4-moe.cpp", keeps_hidden=True, gating="sigmoid", scales_weights=True),
        "solar_open": Family("glm4-moe.cpp", keeps_hidden=True, gating="sigmoid", scales_weights=True),
        **dict.fromkeys(("glm4v", "glm4v_text", "glm46v"), Family("glm4.cpp", positions_per_token=4)),
        **dict.fromkeys(
            ("glm4v_moe", "glm4v_moe_text"),
            Family("glm4-moe.cpp", keeps_hidden=True, gating="sigmoid", scales_weights=True, positions_per_token=4),
        ),
        "glm4_moe_lite": _SIGMOID_EXPERTS,
        "glm_moe_dsa": replace(_SIGMOID_EXPERTS, file="glm-dsa.cpp"),
        "gpt2": Family("gpt2.cpp", adds_positions=True),
        "gpt_bigcode": Family("starcoder.cpp", adds_positions=True),
        "gpt_neox": Family("gptneox.cpp"),
        "gpt_oss": Family(
            "openai-moe.cpp",
            windows=True,
            outputs_after="layers",
            keeps_hidden=True,
            gating="softmax of the chosen",
            normalises_weights=False,
        ),
        **dict.fromkeys(("granite", "granitemoe", "granitemoeshared"), _GRANITE),
        **dict.fromkeys(("granite_swa", "granitemoe_swa"), replace(_GRANITE, file="granite-swa.cpp", windows=True)),
        **dict.fromkeys(("granitemoehybrid", "bamba"), replace(_GRANITE, file="granite-hybrid.cpp")),
        "hy_v3": Family("hy-v3.cpp", outputs_after="final norm", keeps_hidden=True, gating="sigmoid", scales_weights=True),
        "hunyuan_v1_dense": Family("hunyuan-dense.cpp", rotates_before_norm=True),
        "hunyuan_v1_moe": Family("hunyuan-moe.cpp", rotates_before_norm=True),
        "jais2": Family("jais2.cpp"),
        "jamba": Family("jamba.cpp", residual_first=(True, True), normalises_weights=False),
        "kimi_k2": _SIGMOID_EXPERTS,
        "kimi_linear": Family("kimi-linear.cpp", expands_norm=True, gating="sigmoid", scales_weights=True, rotates_latent=False),
        "laguna": _LAGUNA,
        **dict.fromkeys(("lfm2", "lfm2_moe", "lfm2_vl"), _LFM2),
        **dict.fromkeys(("llama4", "llama4_text"), _LLAMA4),
        "mamba": Family("mamba.cpp"),
        "mamba2": Family("mamba.cpp"),
        "mellum": Family("mellum.cpp", windows=True),
        "mimo_v2_flash": Family("mimo2.cpp", windows=True, gating="sigmoid", scales_attended=True),
        "minimax": Family("minimax-01.cpp", keeps_normed=True),
        "minimax_m2": Family("minimax-m2.cpp", gating="sigmoid"),
        "mistral3": _MISTRAL3,
        "ministral3": replace(_MISTRAL3, scales_by_position=True),
        "mistral4": replace(_DEEPSEEK, file="mistral4.cpp", scales_by_position=True, merges_gate_up=True),
        "mpt": Family("mpt.cpp"),
        "nemotron": Family("nemotron.cpp"),
        "nemotron_h": Family(
            "nemotron-h.cpp", outputs_after="final norm", keeps_hidden=True, gating="sigmoid", scales_weights=True
        ),
        "nemotron-nas": Family("deci.cpp"),
        "olmo": Family("olmo.cpp"),
        "olmo2": _OLMO2,
        "olmo3": replace(_OLMO2, windows=True),
        "olmoe": Family("olmoe.cpp", normalises_weights=False),
        "phi": Family("phi2.cpp", scales_queries=True, parallel_sum=("attention", "channel", "residual")),
        "phi3": _PHI3,
        "phimoe": replace(_PHI3, only_rms_norms=True),
        **dict.fromkeys(("qwen2", "qwen2_audio"), _QWEN2),
        "qwen2_moe": Family("qwen2moe.cpp", normalises_weights=False, shared_gate="silu ratio"),
        **dict.fromkeys(("qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"), _QWEN2_VL),
        "qwen3": Family("qwen3.cpp"),
        "qwen3_moe": Family("qwen3moe.cpp"),
        "qwen3_next": _QWEN3_NEXT,
        **dict.fromkeys(("qwen3_5", "qwen3_5_text"), _QWEN3_5),
        **dict.fromkeys(("qwen3_5_moe", "qwen3_5_moe_text"), replace(_QWEN3_5, file="qwen35moe.cpp")),
        **dict.fromkeys(("qwen3_vl", "qwen3_vl_text"), _QWEN3_VL),
        **dict.fromkeys(("qwen3_vl_moe", "qwen3_vl_moe_text"), replace(_QWEN3_VL, file="qwen3vlmoe.cpp")),
        "seed_oss": Family("seed-oss.cpp"),
        "youtu": _DEEPSEEK,
        "smollm3": Family("smollm3.cpp"),
        "stablelm": Family("stablelm.cpp"),
        "starcoder2": Family("starcoder2.cpp"),
    }
)
"""Every family whose graph is derived, by ``model_type``; each was compared with what the program reserves."""

WRAPPERS = ("mistral3", "llava", "llava_next", "vipllava", "idefics3", "smolvlm")
"""Types whose decoder may be of several families; the converter goes by the decoder's."""
UNCONVERTED = frozenset(
    (
        "aria_text", "axk1", "axk2", "aya_vision", "bailing_hybrid", "bart", "beam", "biogpt", "blenderbot",
        "blenderbot-small", "codegen", "cohere2_vision", "ctrl", "cwm", "diffllama", "ernie", "flex_olmo", "flint", "fuyu",
        "gpt_neo", "gpt_neox_japanese", "gptj", "helium", "hyperclovax", "kolibri1", "lfm3", "longcat_flash", "m2m_100",
        "marian", "mbart", "minimax_m3_vl_text", "ministral", "mllama", "mllama_text_model", "nanochat", "olmo_hybrid",
        "openai-gpt", "opt", "paligemma", "pegasus", "persimmon", "plbart", "recurrent_gemma", "rwkv", "vaultgemma",
        "whisper", "xglm", "xlstm", "zamba", "zamba2",
    )
)  # fmt: skip
"""Types of whose classes none is registered in ``conversion/``: no GGUF file of them can be made."""
