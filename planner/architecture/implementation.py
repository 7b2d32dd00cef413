"""How transformers 5.23 writes each family: the facts that decide which tensors live when, and change no parameter.

Sizes follow from the config; the order of operators does not. What is said here was read from ``modeling_*.py``. A family
that is not listed has no closed form of its activations.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from planner.architecture.layers import Architecture
from planner.record import record

NormVariant = Literal["cast", "wide", "added", "nested", "none", "kernel", "centred", "narrow"]
RotaryStyle = Literal[
    "halves", "joined", "pairs", "pairs_whole", "pairs_inline", "pairs_in_fp32",
    "pairs_late", "wide", "pairs_wide", "chunks", "complex", "none",
]  # fmt: skip
AttentionCode = Literal["sdpa", "eager", "eager_wide", "alibi", "biased", "bounded", "into_zeros"]
Placement = Literal["pre", "post", "after", "sandwich", "normed_residual"]


@record
class Implementation:
    """One family's way of writing its blocks.

    ``norm`` (and ``qk_norm`` where it is another): see :mod:`planner.components.norms`; ``placement``: norms before a mixer,
    after it, after the sum with the residual (``after``), both, or before it with the norm's result as the residual
    (``recurrent_placement``: in layers with a recurrent mixer, where that is another);
    ``norms_first``: a parallel layer computes both norms before its mixers; ``normed_after_rotation``: queries and keys are
    normed after they are rotated; ``norms_values``: values are normed too, without a weight.

    ``rotary``: see :mod:`planner.components.rotary` (``indexer_rotary``: in the indexer of sparse attention);
    ``table_for_windows``: windowed layers have cosines and sines of their own; ``rotates_each``: queries are rotated before
    keys are projected; ``joins``: what is rotated is laid with the rest of a head also where there is no rest.

    ``attention``: what the class runs when nothing else is asked; ``eager_upcasts``: its eager softmax is in fp32; ``sinks``:
    those that a mixer has are a column beside its scores, or scale what it attended to by their log-sum-exp;
    ``subtracts_largest``: eager scores lose their largest before the softmax, sinks or not; ``gate``: of
    attention's output, by a linear of the layer's input, where there is one; ``scales_values``: values are multiplied before
    they are cached; ``projects_first``: queries, keys and values are projected before any is normed; ``masked``:
    it passes a mask even where ``is_causal`` would do; ``repeats_keys``: keys are copied for every query head under a mask;
    ``skips_shared``: layers that read other layers' caches see only the tokens whose logits are kept.

    ``router``: how experts are chosen; ``routing``: dtype of their weights; ``experts``: how they are computed; ``combines``:
    dtype in which shared experts are added to them.

    ``copies_parts``: queries, keys and values are copied out of one projection, which stays.

    ``sums_in_place``: a parallel layer adds one mixer's output into the other's. What a variable keeps alive longer than
    needed: ``keeps_attention``, the attention's output during the feed-forward block; ``keeps_norm``, the norm it read;
    ``keeps_unrotated``, queries and keys before they are rotated, and what is rotated of them, during the attention;
    ``keeps_probabilities``, a layer's attention probabilities during the next layer; ``keeps_positions``, position embeddings
    during the whole forward (``positions_by_row``: those of every sequence, else one row for all). ``computes_positions``: they
    are rows of a table that does not train, gone when they are added; ``narrows_positions``: of an fp32 table, which the first
    forward casts to the embeddings' dtype for good.
    ``drops_norm``: a feed-forward block's norm goes as soon as the first linear has read it.
    ``wide_logits``: the head's result is turned to fp32 at once, and the narrow one gone before the loss.
    ``scales_embeddings``: the layers read a multiple of the embeddings; ``scales_branches``: a multiple of each mixer's output
    is added to the residual; ``norms_embeddings``: an RMS norm without a weight stands before the layers;
    ``copies_embeddings``: a copy of them serves the layers.
    ``shared_first``: shared experts compute before the router and the others.
    ``own_linears``: its linears are a class of its own, which quantisers that look for ``nn.Linear`` pass over.
    ``rotates_always``: how the family computes without a rotary embedding (Falcon's ALiBi) was not read.
    ``checkpoints``: whether ``gradient_checkpointing_enable`` is heard.
    ``triangles``: a boolean mask of all positions by all positions is a buffer of the model, or of each layer.
    """

    norm: NormVariant = "cast"
    qk_norm: NormVariant | None = None
    normed_after_rotation: bool = False
    placement: Placement = "pre"
    recurrent_placement: Placement | None = None
    rotary: RotaryStyle = "halves"
    attention: AttentionCode = "sdpa"
    indexer_rotary: RotaryStyle = "halves"
    table_for_windows: bool = False
    eager_upcasts: bool = True
    sinks: Literal["column", "scale"] = "column"
    subtracts_largest: bool = False
    scales_values: bool = False
    gate: Literal["sigmoid", "softplus"] = "sigmoid"
    projects_first: bool = False
    masked: bool = False
    repeats_keys: bool = True
    norms_first: bool = False
    sums_in_place: bool = False
    copies_parts: bool = False
    joins: bool = False
    router: Literal["softmax", "softmax_fp32", "sigmoid_fp32", "sigmoid", "topk", "softplus"] = "softmax"
    routing: Literal["fp32", "model"] = "model"
    experts: Literal["grouped", "dense"] = "grouped"
    combines: Literal["fp32", "model"] = "model"
    rotates_each: bool = False
    norms_values: bool = False
    skips_shared: bool = False
    drops_norm: bool = False
    keeps_attention: bool = False
    keeps_norm: bool = False
    keeps_unrotated: bool = False
    keeps_probabilities: bool = False
    keeps_positions: bool = False
    positions_by_row: bool = False
    computes_positions: bool = False
    narrows_positions: bool = False
    wide_logits: bool = False
    own_linears: bool = False
    rotates_always: bool = False
    scales_embeddings: bool = False
    scales_branches: bool = False
    norms_embeddings: bool = False
    copies_embeddings: bool = False
    shared_first: bool = False
    checkpoints: bool = True
    triangles: Literal["none", "model", "layers"] = "none"


LLAMA = Implementation()
GEMMA = Implementation(norm="added", placement="sandwich", table_for_windows=True)
GEMMA4 = Implementation(
    norm="added", placement="sandwich", routing="fp32", rotates_each=True, norms_values=True, skips_shared=True,
    table_for_windows=True,
)  # fmt: skip
LLAMA4 = Implementation(
    norm="nested", qk_norm="none", normed_after_rotation=True, rotary="complex", experts="dense", keeps_attention=True
)
DEEPSEEK = Implementation(rotary="chunks", router="sigmoid_fp32", routing="fp32")

AFMOE = Implementation(norm="wide", placement="sandwich", router="sigmoid", routing="fp32", projects_first=True, shared_first=True)

LIKE_LLAMA = (
    "llama mistral ministral ministral3 qwen2 qwen3 qwen2_5_vl_text arcee cwm hunyuan_v1_dense smollm3 "
    "starcoder2 nemotron-nas qwen3_moe olmoe aria_text phimoe mllama_text_model "
    "jamba lfm2 seed_oss internlm3 iquestcoder qwen2_vl_text qwen3_vl_text qwen3_vl_moe_text qwen2_moe jais2 "
    "minicpm3 mellum lfm2_moe bitnet diffllama"
)
MULTIPLIED = "granite granitemoe granitemoeshared granitemoehybrid"
"""As Llama, with the embeddings multiplied first, and each mixer's output."""

SCORED_BY_SIGMOID = "dots1 solar_open exaone_moe"

WRITTEN: dict[str, Implementation] = {
    **dict.fromkeys(LIKE_LLAMA.split(), LLAMA),
    **dict.fromkeys(MULTIPLIED.split(), Implementation(scales_embeddings=True, scales_branches=True)),
    **dict.fromkeys(
        ("granite_swa", "granitemoe_swa"),
        Implementation(scales_embeddings=True, scales_branches=True, attention="eager", sinks="scale"),
    ),
    "falcon_h1": Implementation(scales_embeddings=True),
    **dict.fromkeys(("mamba", "falcon_mamba", "mamba2"), Implementation(wide_logits=True)),
    "nemotron_h": Implementation(norm="wide", wide_logits=True),
    "gemma": Implementation(norm="added"),
    **dict.fromkeys(("phi", "persimmon"), Implementation(keeps_unrotated=True)),
    "stablelm": Implementation(keeps_attention=True, keeps_norm=True, keeps_unrotated=True),
    "hyperclovax": Implementation(scales_embeddings=True, scales_branches=True),
    "hyperclovax_normed_after": Implementation(placement="sandwich", scales_embeddings=True, scales_branches=True),
    "nanochat": Implementation(norm="none", normed_after_rotation=True, norms_embeddings=True),
    "vaultgemma": Implementation(norm="added", attention="eager"),
    "mistral4": Implementation(rotary="chunks"),
    "ernie4_5_moe": Implementation(rotary="pairs_late", router="softmax_fp32", shared_first=True),
    **dict.fromkeys(("gpt_neox", "bamba"), Implementation(joins=True)),
    "nemotron": Implementation(norm="added", joins=True),
    "hunyuan_v1_dense": Implementation(normed_after_rotation=True),
    "exaone4": Implementation(placement="post"),
    "biogpt": Implementation(drops_norm=True, keeps_positions=True),
    "xglm": Implementation(attention="bounded", computes_positions=True, scales_embeddings=True),
    "gpt_neox_japanese": Implementation(joins=True, attention="into_zeros", keeps_probabilities=True, checkpoints=False),
    "opt": Implementation(drops_norm=True, keeps_positions=True, positions_by_row=True),
    **dict.fromkeys(("gpt2", "gpt-sw3"), Implementation(eager_upcasts=False, keeps_attention=True, keeps_positions=True)),
    "gpt_bigcode": Implementation(keeps_attention=True, keeps_positions=True, triangles="model"),
    "ctrl": Implementation(
        eager_upcasts=False, keeps_attention=True, keeps_norm=True, keeps_positions=True, narrows_positions=True, checkpoints=False
    ),
    "opt_normed_after": Implementation(placement="after", keeps_positions=True, positions_by_row=True),
    "phi3": Implementation(rotary="joined"),
    "apertus": LLAMA,
    "helium": Implementation(norm="wide", rotary="pairs_whole"),
    "hy_v3": Implementation(router="sigmoid_fp32", routing="fp32", combines="fp32"),
    "hy_v3_narrow": Implementation(router="sigmoid_fp32", routing="fp32"),
    "glm": Implementation(rotary="pairs"),
    **dict.fromkeys(("glm4", "glm4v_text", "glm_ocr_text"), Implementation(rotary="pairs", placement="sandwich")),
    "hunyuan_v1_moe": Implementation(normed_after_rotation=True, routing="fp32", shared_first=True),
    "youtu": Implementation(rotary="chunks"),
    "ernie4_5": Implementation(rotary="pairs_late"),
    "gpt_neo": Implementation(
        attention="eager_wide", keeps_attention=True, keeps_positions=True, keeps_probabilities=True, triangles="layers"
    ),
    "gptj": Implementation(rotary="pairs_inline", attention="eager_wide", keeps_probabilities=True),
    "codegen": Implementation(rotary="pairs_in_fp32", attention="eager_wide", keeps_probabilities=True, copies_parts=True),
    "mpt": Implementation(attention="biased", keeps_attention=True, keeps_probabilities=True),
    "bloom": Implementation(attention="alibi", keeps_probabilities=True),
    "falcon": Implementation(
        masked=True, repeats_keys=False, norms_first=True, sums_in_place=True, own_linears=True, rotates_always=True
    ),
    "cohere": Implementation(norm="centred", rotary="pairs_wide"),
    **dict.fromkeys(("cohere2", "cohere2_moe"), Implementation(norm="centred", rotary="pairs_wide")),
    "olmo": Implementation(norm="wide"),
    "olmo_hybrid": Implementation(norm="wide", placement="post", recurrent_placement="pre", rotary="wide"),
    "gemma2": Implementation(norm="added", placement="sandwich", attention="eager"),
    "gemma3_text": GEMMA,
    **dict.fromkeys(("gemma4_text", "gemma4_unified_text"), GEMMA4),
    **dict.fromkeys(("olmo2", "flex_olmo"), Implementation(norm="wide", placement="post", rotary="wide")),
    "olmo3": Implementation(norm="wide", placement="post", rotary="wide", table_for_windows=True),
    "afmoe": AFMOE,
    "afmoe_scaled": replace(AFMOE, scales_embeddings=True),
    "mimo_v2_flash": Implementation(
        attention="eager",
        router="sigmoid_fp32",
        routing="fp32",
        joins=True,
        table_for_windows=True,
        subtracts_largest=True,
        scales_values=True,
    ),
    "kolibri1": Implementation(placement="sandwich", router="sigmoid_fp32", routing="fp32"),
    "laguna": Implementation(
        router="sigmoid", joins=True, table_for_windows=True, projects_first=True, shared_first=True, gate="softplus"
    ),
    "lfm3": Implementation(placement="sandwich", rotary="wide", table_for_windows=True),
    "lfm3_normed_before": Implementation(rotary="wide", table_for_windows=True),
    "mixtral": Implementation(routing="fp32"),
    **dict.fromkeys(SCORED_BY_SIGMOID.split(), Implementation(router="sigmoid_fp32", routing="fp32")),
    **dict.fromkeys(("glm4_moe", "glm4v_moe_text"), Implementation(router="sigmoid_fp32", routing="fp32", joins=True)),
    "minimax_m2": Implementation(router="sigmoid", routing="fp32", joins=True),
    "gpt_oss": Implementation(norm="wide", rotary="chunks", attention="eager", router="topk"),
    "deepseek_v2": Implementation(rotary="complex", router="softmax_fp32", routing="fp32"),
    "deepseek_v3": DEEPSEEK,
    "deepseek_v4": Implementation(norm="wide", attention="eager", router="softplus"),
    "kimi_k2": DEEPSEEK,
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), Implementation(norm="added", joins=True)),
    "minimax": Implementation(placement="normed_residual", routing="fp32"),
    "zamba2": Implementation(copies_embeddings=True),
    "kimi_linear": Implementation(rotary="none", router="sigmoid_fp32", routing="fp32"),
    "bailing_hybrid": DEEPSEEK,
    **dict.fromkeys(("glm4_moe_lite", "axk1"), DEEPSEEK),
    "deepseek_v32": DEEPSEEK,
    "glm_moe_dsa": Implementation(rotary="chunks", indexer_rotary="chunks", router="sigmoid_fp32", routing="fp32"),
    "llama4_text": LLAMA4,
    **dict.fromkeys(("t5", "mt5"), Implementation(norm="narrow")),
}


WRAPPED_OTHERWISE = frozenset(("qwen2_audio",))
"""Composites whose own forward holds other tensors than their decoder's class: merged masks, the loss."""


def implementation_of(architecture: Architecture) -> Implementation | None:
    """How the family of the decoder is written; None when nobody has read it."""
    if architecture.model_type in WRAPPED_OTHERWISE:
        return None
    return WRITTEN.get(architecture.decoder_type or architecture.model_type)
