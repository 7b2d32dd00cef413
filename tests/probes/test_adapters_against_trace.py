"""Closed forms of adapters on experts, hybrids and encoders against PEFT's own on the real models, traced on fake tensors."""

from __future__ import annotations

import pytest

from planner.components.targets import TURNED
from planner.scenario import parse_scenario
from resources.plan import make_plan
from tests.probes.comparison import assert_allocated, assert_trained

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*did not match any targeted module:RuntimeWarning"),
]
"""PEFT 0.21 reads an attribute that transformers 5 renames, and looks for parameters' patterns among modules alone."""
SMALL = {
    "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
    "vocab_size": 1200, "max_position_embeddings": 600, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 192, "shared_expert_intermediate_size": 384}
LATENT = {
    "n_routed_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 192, "n_shared_experts": 1, "n_group": 4,
    "topk_group": 2, "q_lora_rank": 96, "kv_lora_rank": 64, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32,
    "first_k_dense_replace": 1, "num_key_value_heads": 8, "num_hidden_layers": 3,
}  # fmt: skip
MAMBA = {
    "mamba_n_heads": 16, "mamba_d_head": 32, "mamba_d_state": 32, "mamba_expand": 2, "mamba_chunk_size": 64,
    "num_local_experts": 8, "num_experts_per_tok": 2, "shared_intermediate_size": 320, "layer_types": ["mamba", "attention"],
    "position_embedding_type": "nope",
}  # fmt: skip
ENCODER = {name: value for name, value in SMALL.items() if name not in ("num_key_value_heads", "tie_word_embeddings")}
T5 = {
    "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "d_model": 256, "d_ff": 768, "d_kv": 32, "num_heads": 8,
    "num_layers": 2, "num_decoder_layers": 2, "vocab_size": 1200, "torch_dtype": "bfloat16", "decoder_start_token_id": 0,
}  # fmt: skip
MODELS = {
    "qwen2_moe": SMALL | EXPERTS | {"model_type": "qwen2_moe"},
    "deepseek_v3": SMALL | LATENT | {"model_type": "deepseek_v3"},
    "mixtral": SMALL | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2},
    "granitemoehybrid": SMALL | MAMBA | {"model_type": "granitemoehybrid"},
    "mamba2": SMALL
    | {
        "model_type": "mamba2",
        "architectures": ["Mamba2ForCausalLM"],
        "num_heads": 16,
        "head_dim": 32,
        "state_size": 32,
        "n_groups": 1,
        "chunk_size": 64,
        "expand": 2,
    },
    "roberta": ENCODER | {"model_type": "roberta", "architectures": ["RobertaForMaskedLM"]},
    "t5": T5 | {"feed_forward_proj": "relu"},
}
EVERY = {"method": "lora", "lora": {"rank": 16, "targets": ["all-linear"]}}
CHECKPOINTED = {"checkpointing": "full", "optimizer": "adamw_foreach"}
CASES = {
    "shared experts' gate": ("qwen2_moe", EVERY),
    "experts and an fp32 router, checkpointed": ("deepseek_v3", EVERY | CHECKPOINTED),
    "16 bit, accumulated": (
        "qwen2_moe", EVERY | {"engine_options": {"autocast_adapter_dtype": False}, "gradient_accumulation": 2},
    ),
    "experts' last product alone": ("mixtral", {"method": "lora", "lora": {"rank": 8, "targets": ["w2"]}}),
    "state space": ("granitemoehybrid", EVERY),
    "state space, one chunk": ("granitemoehybrid", EVERY | CHECKPOINTED | {"method": "dora", "batch": 1, "sequence": 48}),
    "state space, one chunk of either sequence": ("granitemoehybrid", EVERY | {"sequence": 48}),
    "state space, residual in fp32 under autocast, checkpointed": (
        "mamba2", EVERY | CHECKPOINTED | {"lora": {"targets": ["in_proj"]}, "precision": "amp-bf16"},
    ),
    "encoder": ("roberta", EVERY),
    "encoder-decoder": ("t5", EVERY),
    "encoder-decoder, checkpointed": ("t5", EVERY | CHECKPOINTED),
}  # fmt: skip
SMALL_TENSORS_BYTES = 96 * 1024
"""Orders of tokens, positions, scalars and rows of a few KiB."""


@pytest.mark.parametrize("case", CASES)
def test_adapters_equal_the_trace(trace, case: str) -> None:
    """States are the same; allocated of every phase is within the bytes of the smallest tensors."""
    model, training = CASES[case]
    document = {"version": 1, "model": {"config": MODELS[model]}, "task": "training", "weights": "native"}
    scenario = parse_scenario(document | {"training": {"batch": 2, "sequence": 80} | training})
    footprint = make_plan(scenario, network=False).footprint
    traced = trace(footprint.scenario, MODELS[model])
    assert_allocated(footprint, traced, SMALL_TENSORS_BYTES)
    assert_trained(footprint, traced)


def test_the_names_that_peft_turns_are_its_own() -> None:
    conversion = pytest.importorskip("peft.utils.transformers_weight_conversion", reason="the table is PEFT's")
    names, kinds = conversion._MOE_TARGET_MODULE_MAPPING, conversion._MODEL_TO_CONVERSION_PATTERN
    of_classes = {kind for kind in kinds if kind != kind.lower()}
    theirs = {kind: names[pattern] for kind, pattern in kinds.items() if pattern in names and kind not in of_classes}
    assert {kind: set(turned) for kind, turned in TURNED.items() if kind != "kimi_k2"} == {k: set(n) for k, n in theirs.items()}
    assert "deepseek_v3" in theirs
