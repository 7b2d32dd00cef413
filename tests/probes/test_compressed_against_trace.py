"""Generation with compressed caches and several residual streams against the real model's allocations, traced on fake tensors."""

from __future__ import annotations

import pytest

from planner.scenario import parse_scenario
from resources.plan import make_plan

SMALL = {
    "model_type": "deepseek_v4", "architectures": ["DeepseekV4ForCausalLM"], "hidden_size": 128, "num_attention_heads": 8,
    "num_key_value_heads": 1, "head_dim": 64, "q_lora_rank": 64, "qk_rope_head_dim": 16, "o_groups": 2, "o_lora_rank": 32,
    "moe_intermediate_size": 64, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "index_head_dim": 32,
    "index_n_heads": 4, "index_topk": 16, "vocab_size": 1200, "num_hidden_layers": 3, "compress_ratios": [0, 4, 128],
    "max_position_embeddings": 4096, "num_hash_layers": 1, "hc_mult": 4, "sliding_window": 128, "torch_dtype": "bfloat16",
}  # fmt: skip
COUNTERS_BYTES = 32 * 1024


@pytest.mark.parametrize("prompt_tokens", [300, 48])
def test_peaks_and_caches_equal_the_trace(trace, prompt_tokens: int) -> None:
    """Prompts longer and shorter than the window: peaks within 1 %, the caches to their counters."""
    work = {"batch": 2, "prompt_tokens": prompt_tokens, "new_tokens": 3}
    document = {"version": 1, "model": {"config": SMALL}, "weights": "bf16", "task": "inference", "inference": work}
    footprint = make_plan(parse_scenario(document), network=False).footprint
    traced = trace(footprint.scenario, SMALL)
    predicted = {phase.name: phase for phase in footprint.gpus[0].phases}
    assert predicted.keys() == traced.keys(), footprint.notes
    for name in ("prefill", "decode"):
        assert abs(predicted[name].allocated - traced[name]["allocated"]) <= 0.01 * traced[name]["allocated"], name
        assert abs(predicted[name].components["kv_cache"] - traced[name]["components"]["kv_cache"]) <= COUNTERS_BYTES, name


def test_training_several_residual_streams_is_unknown() -> None:
    document = {"version": 1, "model": {"config": SMALL}, "task": "training", "training": {"batch": 1, "sequence": 64}}
    assert make_plan(parse_scenario(document), network=False).footprint.verdict == "unknown"
