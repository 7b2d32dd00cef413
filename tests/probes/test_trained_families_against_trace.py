"""Training steps of families that are no plain decoder against the real models' allocations, traced on fake tensors."""

from __future__ import annotations

import pytest

from planner.scenario import parse_scenario
from resources.plan import make_plan

SMALL = {
    "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
    "vocab_size": 1200, "max_position_embeddings": 1024, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = SMALL | {"moe_intermediate_size": 96, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}
SPARSE = EXPERTS | {
    "num_key_value_heads": 8, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 2, "topk_group": 1,
    "first_k_dense_replace": 1, "q_lora_rank": 64, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 16, "index_n_heads": 4, "index_head_dim": 32, "index_topk": 64,
}  # fmt: skip
TWO_STACKS = {
    "d_model": 128, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 8, "decoder_attention_heads": 8,
    "encoder_ffn_dim": 352, "decoder_ffn_dim": 352, "vocab_size": 1200, "max_position_embeddings": 1024,
    "torch_dtype": "bfloat16", "tie_word_embeddings": True,
}  # fmt: skip
T5 = {
    "model_type": "t5", "d_model": 128, "d_ff": 352, "d_kv": 16, "num_heads": 8, "num_layers": 2, "num_decoder_layers": 3,
    "vocab_size": 1200, "torch_dtype": "bfloat16", "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0,
    "pad_token_id": 0,
}  # fmt: skip
MASKED = {**SMALL, "tie_word_embeddings": True, "pad_token_id": 1}
MODERN = MASKED | {
    "model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"], "num_hidden_layers": 4, "bos_token_id": 0,
    "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2,
}  # fmt: skip
GEMMA = SMALL | {
    "model_type": "gemma4_text", "num_hidden_layers": 6, "num_kv_shared_layers": 2, "head_dim": 32, "global_head_dim": 32,
    "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 1200, "sliding_window": 200, "num_key_value_heads": 1,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
}  # fmt: skip
MODELS = {
    "t5 of unequal depths": T5,
    "t5, positions as large as all else": T5 | {"num_decoder_layers": 2},
    "bart": TWO_STACKS | {"model_type": "bart"},
    "pegasus, whose positions are fixed": TWO_STACKS | {"model_type": "pegasus"},
    "xlm-roberta": MASKED | {"model_type": "xlm-roberta", "architectures": ["XLMRobertaForMaskedLM"]},
    "modernbert": MODERN,
    "distilbert": {
        "model_type": "distilbert", "architectures": ["DistilBertForMaskedLM"], "dim": 128, "hidden_dim": 352, "n_layers": 2,
        "n_heads": 8, "vocab_size": 1200, "torch_dtype": "bfloat16",
    },
    "electra, narrow embeddings": MASKED | {
        "model_type": "electra", "architectures": ["ElectraForMaskedLM"], "embedding_size": 64,
    },
    "eurobert, grouped keys": MASKED | {"model_type": "eurobert", "architectures": ["EuroBertForMaskedLM"]},
    "jina_embeddings_v3": MASKED | {"model_type": "jina_embeddings_v3", "architectures": ["JinaEmbeddingsV3ForMaskedLM"]},
    "bert, classes of sequences": MASKED | {"model_type": "bert", "architectures": ["BertForSequenceClassification"]},
    "nomic_bert, classes of tokens": MASKED | {
        "model_type": "nomic_bert", "architectures": ["NomicBertForTokenClassification"],
    },
    "xlm-roberta-xl, no dropout behind the feed-forward block": MASKED | {
        "model_type": "xlm-roberta-xl", "architectures": ["XLMRobertaXLForMaskedLM"],
    },
    "llama4, every expert on every token": EXPERTS | {
        "model_type": "llama4_text", "intermediate_size_mlp": 192, "num_experts_per_tok": 1,
    },
    "minimax, linear attention": EXPERTS | {
        "model_type": "minimax", "layer_types": ["linear_attention", "full_attention"], "block_size": 128, "intermediate_size": 96,
    },
    "deepseek_v32, an indexer without gradients": SPARSE | {"model_type": "deepseek_v32"},
    "gemma4, shared keys and inputs of each layer": GEMMA,
    "bloom": {"model_type": "bloom", "hidden_size": 128, "n_layer": 2, "n_head": 8, "vocab_size": 1200, "torch_dtype": "bfloat16"},
}  # fmt: skip
WHOLE, AGAIN = {"batch": 2, "sequence": 256}, {"batch": 2, "sequence": 512, "checkpointing": "full"}
LONG = {"batch": 1, "sequence": 2048, "checkpointing": "full"}
FP32, MIXED = {"precision": "fp32"}, {"precision": "amp-bf16"}
CASES = [
    ("t5 of unequal depths", WHOLE), ("bart", AGAIN),
    ("pegasus, whose positions are fixed", WHOLE), ("xlm-roberta", WHOLE), ("distilbert", WHOLE), ("modernbert", AGAIN),
    ("llama4, every expert on every token", WHOLE), ("minimax, linear attention", WHOLE),
    ("deepseek_v32, an indexer without gradients", AGAIN), ("gemma4, shared keys and inputs of each layer", WHOLE),
    ("bloom", AGAIN), ("t5 of unequal depths", AGAIN | FP32), ("xlm-roberta", WHOLE | FP32), ("modernbert", WHOLE | FP32),
    ("xlm-roberta", WHOLE | MIXED), ("modernbert", WHOLE | MIXED), ("bart", WHOLE | MIXED), ("t5 of unequal depths", AGAIN | MIXED),
    ("t5, positions as large as all else", LONG),
    ("electra, narrow embeddings", WHOLE), ("eurobert, grouped keys", AGAIN | MIXED),
    ("xlm-roberta-xl, no dropout behind the feed-forward block", WHOLE), ("jina_embeddings_v3", AGAIN | MIXED),
    ("bert, classes of sequences", WHOLE | MIXED), ("nomic_bert, classes of tokens", WHOLE),
]  # fmt: skip
CUBLAS_WORKSPACE_BYTES = 2 * 32 * 2**20
SMALL_TENSORS_BYTES = 128 * 1024


@pytest.mark.parametrize(("model", "work"), CASES, ids=str)
def test_every_phase_of_a_training_step_equals_the_trace(trace, model: str, work: dict[str, object]) -> None:
    """Within 6 % of what a phase adds to weights and optimizer states, and 128 KiB; gradients and states within 1 %."""
    document = {"version": 1, "model": {"config": MODELS[model]}, "task": "training", "training": work}
    footprint = make_plan(parse_scenario(document | {"hardware": {"gpu": "H200 SXM 141GB"}}), network=False).footprint
    traced = trace(footprint.scenario, MODELS[model])
    predicted = {phase.name: phase for phase in footprint.gpus[0].phases}
    assert predicted.keys() == traced.keys(), footprint.notes
    for name, phase in predicted.items():
        allocated, held = traced[name]["allocated"], traced[name]["components"].get("optimizer_state", 0)
        added = max(0, allocated - traced["load"]["allocated"] - held - CUBLAS_WORKSPACE_BYTES)
        assert abs(phase.allocated - allocated) <= 0.06 * added + SMALL_TENSORS_BYTES, name
    for component in ("gradients", "optimizer_state"):
        ours, theirs = predicted["optimizer"].components[component], traced["optimizer"]["components"][component]
        assert abs(ours - theirs) <= 0.01 * theirs, component
