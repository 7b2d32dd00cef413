"""The closed form against the real model's allocations: phases of small models, traced on fake tensors."""

from __future__ import annotations

import pytest

from planner.scenario import parse_scenario, to_json
from resources.plan import make_plan
from tests.probes.comparison import assert_allocated

SMALL = {
    "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
    "vocab_size": 1200, "max_position_embeddings": 1024, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = SMALL | {"moe_intermediate_size": 96, "num_experts": 8, "num_local_experts": 8, "num_experts_per_tok": 2}
LATENT = EXPERTS | {
    "num_key_value_heads": 8, "n_routed_experts": 8, "n_shared_experts": 1, "n_group": 2, "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 64, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
}  # fmt: skip
GPT = {"n_embd": 128, "n_layer": 2, "n_head": 8, "n_positions": 1024, "vocab_size": 1200, "torch_dtype": "bfloat16"}
WINDOWS = {"head_dim": 32, "sliding_window": 200}
LLAMA = SMALL | {"model_type": "llama"}
TIED = LLAMA | {"tie_word_embeddings": True, "num_key_value_heads": 8}
MODELS = {
    "llama": LLAMA,
    "llama tied, multi-head": TIED,
    "qwen2": SMALL | {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": SMALL | {"model_type": "qwen3", "head_dim": 32},
    "mistral, windowed": SMALL | {"model_type": "mistral", "sliding_window": 200},
    "gpt2": GPT | {"model_type": "gpt2"},
    "gptj": GPT | {"model_type": "gptj", "rotary_dim": 8},
    "opt": SMALL | {"model_type": "opt", "ffn_dim": 352, "word_embed_proj_dim": 128},
    "gpt_neox": SMALL | {"model_type": "gpt_neox", "rotary_pct": 0.25},
    "phi": SMALL | {"model_type": "phi", "num_key_value_heads": 8, "partial_rotary_factor": 0.5},
    "phi3": SMALL | {"model_type": "phi3", "pad_token_id": 0},
    "glm": SMALL | {"model_type": "glm", "head_dim": 16, "pad_token_id": 0},
    "bloom": {"model_type": "bloom", "hidden_size": 128, "n_layer": 2, "n_head": 8, "vocab_size": 1200, "torch_dtype": "bfloat16"},
    "falcon, one key head": SMALL | {"model_type": "falcon", "multi_query": True, "num_hidden_layers": 3},
    "falcon, grouped": SMALL | {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2},
    "cohere": SMALL | {"model_type": "cohere"},
    "gemma2": SMALL | WINDOWS | {"model_type": "gemma2", "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3": SMALL | WINDOWS | {"model_type": "gemma3_text", "layer_types": ["sliding_attention", "full_attention"]},
    "olmo2": SMALL | {"model_type": "olmo2"},
}
SPARSE = {
    "mixtral": EXPERTS | {"model_type": "mixtral"},
    "qwen3_moe": EXPERTS | {"model_type": "qwen3_moe", "head_dim": 32},
    "gpt_oss": EXPERTS | {"model_type": "gpt_oss", "head_dim": 32, "sliding_window": 128},
    "deepseek_v3": LATENT | {"model_type": "deepseek_v3"},
    "deepseek_v2, without a query rank": LATENT | {"model_type": "deepseek_v2", "q_lora_rank": None},
}
HELD_APART = {
    "deepseek_v32, one sequence": LATENT | {
        "model_type": "deepseek_v32", "index_n_heads": 16, "index_head_dim": 32, "index_topk": 64, "first_k_dense_replace": 2,
    },
    "gemma4, text alone": SMALL | WINDOWS | {
        "model_type": "gemma4_text", "architectures": ["Gemma4ForCausalLM"], "layer_types": ["sliding_attention", "full_attention"],
        "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 256, "vocab_size_per_layer_input": 1200, "global_head_dim": 32,
    },
    "llama, without a head": TIED | {"architectures": ["LlamaModel"]},
    "llama, without a head or a cache": TIED | {"architectures": ["LlamaModel"], "use_cache": False},
}  # fmt: skip
"""What is held depends on one sequence or several, on the class around the layers, on a head."""
WORK = {
    "short": {"task": "inference", "inference": {"batch": 3, "prompt_tokens": 64, "new_tokens": 4}},
    "long": {"task": "inference", "inference": {"batch": 2, "prompt_tokens": 700, "new_tokens": 4}},
    "full": {"task": "training", "training": {"batch": 2, "sequence": 300}},
    "checkpointed": {"task": "training", "training": {"batch": 2, "sequence": 500, "checkpointing": "full"}},
    "foreach": {"task": "training", "training": {"batch": 1, "sequence": 40, "optimizer": "adamw_foreach"}},
    "loop": {"task": "training", "training": {"batch": 1, "sequence": 16, "optimizer": "adamw"}},
    "accumulated": {"task": "training", "training": {"batch": 1, "sequence": 128, "gradient_accumulation": 2}},
    "fp32": {"task": "training", "training": {"batch": 1, "sequence": 200, "precision": "fp32"}},
}
SMALL_TENSORS_BYTES = 128 * 1024
"""Positions, masks of one row, scalars: tensors of a few KiB that the closed form leaves out."""


def assert_equal(trace, config: dict[str, object], work: dict[str, object], device: str) -> None:
    """Allocated of every phase of the steady step: within 0.5 % and the bytes of the smallest tensors."""
    scenario = parse_scenario({"version": 1, "model": {"config": config}, "hardware": {"gpu": "H200 SXM 141GB"}} | work)
    footprint = make_plan(scenario, network=False, device=device).footprint
    traced = trace(footprint.scenario, config, device)
    assert_allocated(footprint, traced, SMALL_TENSORS_BYTES, 0.005)
    assert to_json(parse_scenario(footprint.scenario)) == footprint.scenario


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("model", ["mistral, windowed"])
def test_every_workload_equals_the_trace_on_a_cpu(trace, model: str, work: str) -> None:
    assert_equal(trace, MODELS[model], WORK[work], "cpu")


@pytest.mark.parametrize("work", ["long", "full"])
@pytest.mark.parametrize("model", MODELS)
def test_every_dense_family_equals_the_trace_on_cuda(trace, model: str, work: str) -> None:
    assert_equal(trace, MODELS[model], WORK[work], "cuda")


@pytest.mark.parametrize("model", ["gpt2", "phi", "falcon, grouped", "cohere", "gemma2"])
def test_a_checkpointed_family_equals_the_trace_on_cuda(trace, model: str) -> None:
    assert_equal(trace, MODELS[model], WORK["checkpointed"], "cuda")


def test_grouped_attention_in_fp32_holds_repeated_keys_and_a_causal_mask(trace) -> None:
    """No fused kernel takes both: the math one repeats first and keeps its mask of numbers to the end."""
    training = {"batch": 2, "sequence": 500, "checkpointing": "full", "precision": "fp32"}
    assert_equal(trace, MODELS["llama"], {"task": "training", "training": training}, "cuda")


@pytest.mark.parametrize("work", ["long"])
@pytest.mark.parametrize("model", SPARSE)
def test_experts_and_latent_attention_equal_the_trace_on_cuda(trace, model: str, work: str) -> None:
    assert_equal(trace, SPARSE[model], WORK[work], "cuda")


@pytest.mark.parametrize("model", HELD_APART)
def test_what_a_class_holds_apart_equals_the_trace_on_cuda(trace, model: str) -> None:
    assert_equal(trace, HELD_APART[model], {"task": "inference", "inference": {"prompt_tokens": 700, "new_tokens": 2}}, "cuda")


@pytest.mark.parametrize("options", [{"attention": "eager"}, {"engine_options": {"cache_implementation": "static"}}], ids=str)
@pytest.mark.parametrize("model", ["llama", "gemma3", "gpt2"])
def test_eager_attention_and_static_caches_equal_the_trace_on_cuda(trace, model: str, options: dict[str, object]) -> None:
    assert_equal(trace, MODELS[model], {"task": "inference", "inference": WORK["long"]["inference"] | options}, "cuda")
