"""Decoders whose blocks hold what no other family's do: the closed form against the trace on CUDA."""

from __future__ import annotations

import pytest

from planner.scenario import parse_scenario
from resources.plan import make_plan
from tests.probes.comparison import assert_allocated

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*did not match any targeted module:RuntimeWarning"),
]
"""PEFT 0.21 reads an attribute that transformers 5 renames, and looks for parameters' patterns among modules alone."""

SMALL = {
    "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
    "vocab_size": 1200, "max_position_embeddings": 1024, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
    "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 96, "num_experts": 8, "num_experts_per_tok": 2}
WINDOWS = {"sliding_window": 200, "layer_types": ["full_attention", "sliding_attention"]}
OLDER = SMALL | {"d_model": 256, "num_layers": 2, "attention_heads": 8}
TWO_KINDS = {"layer_types": ["linear_attention", "full_attention"], "num_key_value_heads": 8}
KIMI = {
    "moe_intermediate_size": 96, "linear_num_heads": 4, "linear_head_dim": 32, "num_local_experts": 8, "num_experts_per_tok": 2,
    "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 32,
}  # fmt: skip
SHARED_BLOCK = {
    "layers_block_type": ["mamba", "hybrid", "hybrid"], "num_hidden_layers": 3, "num_key_value_heads": 8, "n_mamba_heads": 8,
    "mamba_expand": 2, "adapter_rank": 8,
}  # fmt: skip
MODELS = {
    "bitnet, norms inside the mixers": ("full", SMALL | {"model_type": "bitnet"}),
    "granite_swa, sinks that scale": ("full", SMALL | WINDOWS | {"model_type": "granite_swa", "layer_rope_theta": [10000, 0]}),
    "afmoe, a gate beside the projections": (
        "lora",
        SMALL | WINDOWS | EXPERTS
        | {"model_type": "afmoe", "head_dim": 32, "global_attn_every_n_layers": 2, "mup_enabled": True},
    ),
    "mimo_v2_flash, scores less their largest": (
        "long",
        SMALL | WINDOWS | EXPERTS
        | {"model_type": "mimo_v2_flash", "head_dim": 48, "v_head_dim": 32, "n_routed_experts": 8},
    ),
    "xglm, bounded scores": ("long", OLDER | {"model_type": "xglm", "ffn_dim": 704}),
    "xglm, trained": ("full", OLDER | {"model_type": "xglm", "ffn_dim": 704}),
    "ctrl, positions cast by the first forward": (
        "long", SMALL | {"model_type": "ctrl", "n_embd": 256, "n_layer": 2, "n_head": 8, "n_positions": 1024, "dff": 704},
    ),
    "gpt_neox_japanese, products added to zeros": ("full", SMALL | {"model_type": "gpt_neox_japanese"}),
    "olmo_hybrid, delta nets with projections of their own": ("full", SMALL | TWO_KINDS | {"model_type": "olmo_hybrid"}),
    "diffllama, one half of the heads less another": ("full", SMALL | {"model_type": "diffllama"}),
    "kimi_linear, a decay of each channel": ("long", SMALL | TWO_KINDS | KIMI | {"model_type": "kimi_linear"}),
    "zamba2, a block that serves several layers": ("long", SMALL | SHARED_BLOCK | {"model_type": "zamba2"}),
    "laguna, a gate of each head by softplus": (
        "full", SMALL | WINDOWS | EXPERTS | {"model_type": "laguna", "head_dim": 32, "shared_expert_intermediate_size": 96},
    ),
    "lfm3, a gate of each head by a sigmoid": (
        "lora", SMALL | {"model_type": "lfm3", "head_dim": 32, "layer_types": ["conv", "full_attention"]},
    ),
    "kolibri1, positions in windows alone": (
        "long", SMALL | WINDOWS | EXPERTS | {"model_type": "kolibri1", "head_dim": 32, "shared_expert_intermediate_size": 96},
    ),
    "hunyuan_v1_moe, a router that is a linear": (
        "lora", SMALL | EXPERTS | {"model_type": "hunyuan_v1_moe", "head_dim": 32, "moe_topk": 2},
    ),
}  # fmt: skip
WORK = {
    "long": {"task": "inference", "inference": {"batch": 2, "prompt_tokens": 700, "new_tokens": 4}},
    "full": {"task": "training", "training": {"batch": 2, "sequence": 300}},
    "lora": {
        "task": "training",
        "training": {"batch": 2, "sequence": 300, "method": "lora", "lora": {"targets": ["all-linear"]}, "checkpointing": "full"},
    },
}
TRAINED_UNKNOWN = {
    "zamba2": SMALL | SHARED_BLOCK | {"model_type": "zamba2"},
    "kimi_linear": SMALL | TWO_KINDS | KIMI | {"model_type": "kimi_linear"},
    "gpt_neox_japanese, checkpointed": SMALL | {"model_type": "gpt_neox_japanese"},
    "olmo_hybrid, in two precisions": SMALL | TWO_KINDS | {"model_type": "olmo_hybrid"},
    "granite_swa, in two precisions": SMALL | WINDOWS | {"model_type": "granite_swa"},
}
SMALL_TENSORS_BYTES = 256 * 1024


@pytest.mark.parametrize("model", MODELS)
def test_a_family_equals_its_trace(trace, model: str) -> None:
    """Allocated of every phase: within 0.5 % and the bytes of the smallest tensors."""
    work, config = MODELS[model]
    scenario = parse_scenario({"version": 1, "model": {"config": config}, "hardware": {"gpu": "H200 SXM 141GB"}} | WORK[work])
    footprint = make_plan(scenario, network=False, device="cuda").footprint
    traced = trace(footprint.scenario, config)
    assert_allocated(footprint, traced, SMALL_TENSORS_BYTES, 0.005)


@pytest.mark.parametrize("model", TRAINED_UNKNOWN)
def test_training_that_nobody_derived_is_unknown(model: str) -> None:
    """No number, and the reason."""
    training = {"precision": "amp-bf16"} if model.endswith("precisions") else {"checkpointing": "full"}
    document = {"version": 1, "model": {"config": TRAINED_UNKNOWN[model]}, "task": "training", "training": training}
    footprint = make_plan(parse_scenario(document), network=False, device="cuda").footprint
    assert not footprint.gpus[0].phases
    assert any(note.startswith("unknown: ") for note in footprint.notes)
