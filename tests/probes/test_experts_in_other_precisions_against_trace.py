"""Experts in fp32 and under autocast against the real model's allocations, traced on fake tensors."""

from __future__ import annotations

import pytest

from planner.scenario import parse_scenario
from resources.plan import make_plan
from tests.probes.comparison import assert_allocated

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
"""PEFT 0.21 reads an attribute that transformers 5 renames."""
EXPERTS = {
    "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
    "vocab_size": 1200, "max_position_embeddings": 1024, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
    "moe_intermediate_size": 192, "num_experts": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
}  # fmt: skip
LATENT = EXPERTS | {
    "num_key_value_heads": 8, "n_routed_experts": 8, "n_shared_experts": 1, "n_group": 2, "topk_group": 1,
    "first_k_dense_replace": 1, "q_lora_rank": 64, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}  # fmt: skip
MODELS = {
    "mixtral": EXPERTS | {"model_type": "mixtral"},
    "qwen2_moe": EXPERTS | {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 512},
    "gpt_oss": EXPERTS | {"model_type": "gpt_oss", "head_dim": 32, "sliding_window": 128},
    "glm4_moe": EXPERTS | {"model_type": "glm4_moe", "n_routed_experts": 8, "first_k_dense_replace": 1, "head_dim": 32},
    "deepseek_v2": LATENT | {"model_type": "deepseek_v2", "q_lora_rank": None},
    "deepseek_v3": LATENT | {"model_type": "deepseek_v3"},
    "llama4_text": EXPERTS | {"model_type": "llama4_text", "intermediate_size_mlp": 704, "head_dim": 32},
}
SHARE = 0.005
SMALL_TENSORS_BYTES = 128 * 1024
"""Scores of a few experts for each token, groups of them, positions."""
LORA = {"method": "lora", "lora": {"targets": ["o_proj"]}}
AMP = {"precision": "amp-bf16"}


@pytest.mark.parametrize(
    ("model", "training"),
    [
        ("mixtral", {"precision": "fp32"}),
        ("mixtral", AMP | {"checkpointing": "full"}),
        ("mixtral", AMP | LORA),
        ("qwen2_moe", AMP),
        ("gpt_oss", AMP),
        ("gpt_oss", AMP | LORA),
        ("glm4_moe", AMP),
        ("deepseek_v2", {"precision": "fp32"}),
        ("deepseek_v2", AMP),
        ("deepseek_v3", AMP | {"checkpointing": "full"}),
        ("deepseek_v3", AMP | LORA),
        ("llama4_text", AMP),
    ],
    ids=str,
)
def test_experts_in_fp32_and_under_autocast_equal_the_trace(trace, model: str, training: dict) -> None:
    """The grouped product is on no list of autocast's: over fp32 weights experts stay in fp32, router and attention do not."""
    document = {"version": 1, "model": {"config": MODELS[model]}, "task": "training"}
    scenario = parse_scenario(document | {"training": {"batch": 2, "sequence": 300} | training})
    footprint = make_plan(scenario, network=False).footprint
    traced = trace(footprint.scenario, MODELS[model])
    assert_allocated(footprint, traced, SMALL_TENSORS_BYTES, SHARE)
