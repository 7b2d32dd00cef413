"""Closed forms of encoders and encoder–decoders against the real models' allocations, traced on fake tensors as CUDA would."""

from __future__ import annotations

import pytest

from planner.scenario import parse_scenario
from resources.plan import make_plan

BERT = {
    "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 1200,
    "max_position_embeddings": 600, "torch_dtype": "bfloat16",
}  # fmt: skip
T5 = {
    "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "d_model": 128, "d_ff": 384, "d_kv": 32, "num_heads": 4,
    "num_layers": 3, "num_decoder_layers": 3, "vocab_size": 1200, "torch_dtype": "bfloat16", "decoder_start_token_id": 0,
}  # fmt: skip
TWO_STACKS = {
    "d_model": 128, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 8, "decoder_attention_heads": 8,
    "encoder_ffn_dim": 352, "decoder_ffn_dim": 352, "vocab_size": 1200, "max_position_embeddings": 1024,
    "torch_dtype": "bfloat16", "tie_word_embeddings": True,
}  # fmt: skip
WHISPER = {
    "model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], "d_model": 128, "encoder_ffn_dim": 512,
    "decoder_ffn_dim": 512, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 1200,
    "max_source_positions": 400, "max_target_positions": 100, "num_mel_bins": 40, "torch_dtype": "bfloat16", "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 1,
}  # fmt: skip
MODELS = {
    "bert": BERT | {"model_type": "bert", "architectures": ["BertModel"]},
    "bert, named for its pre-training": BERT | {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
    "roberta, masked": BERT | {"model_type": "roberta", "architectures": ["RobertaForMaskedLM"]},
    "modernbert": BERT
    | {
        "model_type": "modernbert",
        "architectures": ["ModernBertModel"],
        "pad_token_id": 0,
        "local_attention": 64,
        "global_attn_every_n_layers": 3,
    },
    "t5": T5 | {"feed_forward_proj": "relu"},
    "t5, gated": T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "t5, deep": T5 | {"feed_forward_proj": "relu", "num_layers": 10, "num_decoder_layers": 10},
    "t5, unequal": T5 | {"feed_forward_proj": "relu", "num_layers": 2, "num_decoder_layers": 4},
    "bart": TWO_STACKS | {"model_type": "bart"},
    "mbart": TWO_STACKS | {"model_type": "mbart"},
    "mt5": T5 | {"model_type": "mt5", "architectures": ["MT5ForConditionalGeneration"], "feed_forward_proj": "gated-gelu"},
    "distilbert": {
        "model_type": "distilbert",
        "architectures": ["DistilBertForMaskedLM"],
        "dim": 128,
        "hidden_dim": 512,
        "n_layers": 3,
        "n_heads": 4,
        "vocab_size": 1200,
        "max_position_embeddings": 600,
        "torch_dtype": "bfloat16",
    },
    "whisper": WHISPER | {"encoder_layers": 3, "decoder_layers": 3},
    "whisper, many decoder layers": WHISPER | {"encoder_layers": 1, "decoder_layers": 12},
}
WORK = {
    "short": {"batch": 3, "prompt_tokens": 48, "new_tokens": 3},
    "long": {"batch": 2, "prompt_tokens": 512, "new_tokens": 3},
}
SMALL_TENSORS_BYTES = 128 * 1024
"""Token ids, tensors of one token: a few KiB each that the closed form leaves out."""
CUBLAS_WORKSPACE_BYTES = 32 << 20


UNEVEN = {"batch": 2, "prompt_tokens": 333, "new_tokens": 3}
CASES = [*((model, work) for model in MODELS for work in WORK.values()), ("t5", UNEVEN), ("mt5", UNEVEN)]
KIN = {
    "electra, narrow embeddings": BERT | {"model_type": "electra", "architectures": ["ElectraForMaskedLM"], "embedding_size": 64},
    "eurobert": BERT
    | {"model_type": "eurobert", "architectures": ["EuroBertForMaskedLM"], "num_key_value_heads": 2, "pad_token_id": 0},
    "nomic_bert": BERT | {"model_type": "nomic_bert", "architectures": ["NomicBertModel"], "pad_token_id": 0},
    "m2m_100, whose positions are computed": TWO_STACKS | {"model_type": "m2m_100"},
}
MODELS |= KIN
CASES += [(model, WORK["long"]) for model in KIN]


@pytest.mark.parametrize(("model", "work"), CASES)
def test_allocated_of_every_phase_equals_the_trace(trace, model: str, work: dict[str, int]) -> None:
    """Within 1 % of what the phase adds to the weights, and the bytes of the smallest tensors."""
    request = {"version": 1, "model": {"config": MODELS[model]}, "task": "inference", "weights": "bf16", "inference": work}
    footprint = make_plan(parse_scenario(request), network=False).footprint
    traced = trace(footprint.scenario, MODELS[model])
    predicted = {phase.name: phase for phase in footprint.gpus[0].phases}
    assert predicted.keys() == traced.keys()
    for name, phase in predicted.items():
        allocated = traced[name]["allocated"]
        added = max(0, allocated - traced["load"]["allocated"] - CUBLAS_WORKSPACE_BYTES)
        assert abs(phase.allocated - allocated) <= 0.01 * added + SMALL_TENSORS_BYTES, name


@pytest.mark.parametrize("model", ["t5", "whisper"])
def test_caches_after_the_last_step_are_exact(trace, model: str) -> None:
    """Keys and values of the encoder's output and of the decoder's own tokens, to the byte."""
    request = {"version": 1, "model": {"config": MODELS[model]}, "task": "inference", "weights": "bf16", "inference": WORK["long"]}
    footprint = make_plan(parse_scenario(request), network=False).footprint
    traced = trace(footprint.scenario, MODELS[model])
    decode = next(phase for phase in footprint.gpus[0].phases if phase.name == "decode")
    assert decode.components["kv_cache"] == traced["decode"]["components"]["kv_cache"]


def test_families_nobody_read_are_unknown() -> None:
    config = {
        "model_type": "deberta",
        "architectures": ["DebertaModel"],
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    request = {"version": 1, "model": {"config": config}, "task": "inference", "weights": "bf16", "inference": WORK["short"]}
    footprint = make_plan(parse_scenario(request), network=False).footprint
    assert footprint.verdict == "unknown"
    assert any("no closed form" in note for note in footprint.notes)
