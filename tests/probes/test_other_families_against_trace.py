"""Families that differ from Llama in a detail of their code, and composites: the closed form against the trace on CUDA."""

from __future__ import annotations

import pytest

from planner.scenario import parse_scenario
from resources.plan import make_plan
from tests.probes.comparison import assert_allocated

SMALL = {
    "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
    "vocab_size": 1200, "max_position_embeddings": 1024, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
    "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 96, "num_experts": 8, "num_experts_per_tok": 2}
OPT_350M = {"model_type": "opt", "ffn_dim": 704, "word_embed_proj_dim": 128, "do_layer_norm_before": False}
VISION = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}
GPT = {
    **dict.fromkeys(("n_embd", "d_model", "hidden_size"), 256), **dict.fromkeys(("n_layer", "n_layers"), 2),
    **dict.fromkeys(("n_head", "n_heads", "num_heads"), 8), **dict.fromkeys(("n_positions", "max_seq_len"), 1024),
    "max_position_embeddings": 1024, "vocab_size": 1200, "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
MODELS = {
    "ernie4_5": SMALL | {"model_type": "ernie4_5", "head_dim": 32},
    "cohere, normed by head": SMALL | {"model_type": "cohere", "use_qk_norm": True},
    "glm4": SMALL | {"model_type": "glm4", "head_dim": 32},
    "olmo": SMALL | {"model_type": "olmo"},
    "opt, normed after the sum": SMALL | OPT_350M,
    "cohere2_moe": SMALL | EXPERTS | {"model_type": "cohere2_moe", "head_dim": 32},
    "llava over qwen2": {
        "model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "torch_dtype": "bfloat16",
        "text_config": SMALL | {"model_type": "qwen2"}, "vision_config": VISION | {"model_type": "clip_vision_model"},
    },
}  # fmt: skip
LATENT = {
    "kv_lora_rank": 32, "q_lora_rank": 48, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 32, "n_routed_experts": 8,
    "num_key_value_heads": 8,
}  # fmt: skip
READ_LATER = {
    "stablelm": ("long", SMALL | {"model_type": "stablelm"}),
    "nemotron": ("full", SMALL | {"model_type": "nemotron"}),
    "phi, queries and keys normed": ("full", SMALL | {"model_type": "phi", "qk_layernorm": True}),
    "phi, a bias beside a tied head": ("mixed", SMALL | {"model_type": "phi", "tie_word_embeddings": True}),
    "phi, eager": ("eager", SMALL | {"model_type": "phi"}),
    "persimmon": ("full", SMALL | {"model_type": "persimmon"}),
    "hyperclovax": ("full", SMALL | {"model_type": "hyperclovax"}),
    "nanochat": ("full", SMALL | {"model_type": "nanochat"}),
    "vaultgemma": ("long", SMALL | {"model_type": "vaultgemma", "head_dim": 32, "sliding_window": 200}),
    "exaone_moe": ("full", SMALL | EXPERTS | {"model_type": "exaone_moe", "head_dim": 32, "sliding_window": 200}),
    "ernie4_5_moe": (
        "full", SMALL | {"model_type": "ernie4_5_moe", "moe_intermediate_size": 96, "moe_num_experts": 8, "moe_k": 2},
    ),
    "mistral4": ("long", SMALL | EXPERTS | LATENT | {"model_type": "mistral4"}),
    "apertus": ("full", SMALL | {"model_type": "apertus"}),
    "helium": ("full", SMALL | {"model_type": "helium", "head_dim": 32}),
    "hy_v3": ("full", SMALL | EXPERTS | {"model_type": "hy_v3", "head_dim": 32}),
    "axk1": ("long", SMALL | EXPERTS | LATENT | {"model_type": "axk1", "n_group": 1, "topk_group": 1}),
    "biogpt": ("full", SMALL | {"model_type": "biogpt"}),
    "gpt_neo": ("full", GPT | {"model_type": "gpt_neo", "num_layers": 2, "attention_types": [[["global", "local"], 1]]}),
    "codegen": ("long", GPT | {"model_type": "codegen", "rotary_dim": 16}),
    "mpt": ("long", GPT | {"model_type": "mpt"}),
    "bloom, a short prompt": ("short", GPT | {"model_type": "bloom"}),
    "bloom in fp32": ("fp32", GPT | {"model_type": "bloom"}),
    "gptj in fp32": ("fp32", GPT | {"model_type": "gptj", "rotary_dim": 16}),
    "gpt_neox, whole heads rotated": ("one", SMALL | {"model_type": "gpt_neox", "rotary_pct": 1.0}),
    "llama, told to rotate half": ("one", SMALL | {"model_type": "llama", "partial_rotary_factor": 0.5}),
}  # fmt: skip
NOT_COMPARED = {
    "rwkv": {"model_type": "rwkv", "hidden_size": 256, "num_hidden_layers": 2, "attention_hidden_size": 256, "vocab_size": 100},
    "falcon, ALiBi": SMALL | {"model_type": "falcon", "alibi": True},
    "stablelm, each head with a norm": SMALL | {"model_type": "stablelm", "qk_layernorm": True},
}
WORK = {
    "long": {"task": "inference", "inference": {"batch": 2, "prompt_tokens": 700, "new_tokens": 4}},
    "full": {"task": "training", "training": {"batch": 2, "sequence": 300}},
}
OTHER_WORK = {
    "eager": {"task": "inference", "inference": {"batch": 2, "prompt_tokens": 700, "new_tokens": 4, "attention": "eager"}},
    "short": {"task": "inference", "inference": {"batch": 3, "prompt_tokens": 90, "new_tokens": 4}},
    "fp32": {"task": "training", "training": {"batch": 1, "sequence": 600, "precision": "fp32"}},
    "one": {"task": "training", "training": {"batch": 1, "sequence": 900}},
    "mixed": {"task": "training", "training": {"batch": 2, "sequence": 300, "precision": "amp-bf16"}},
}
SMALL_TENSORS_BYTES = 256 * 1024


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("model", MODELS)
def test_a_family_equals_its_trace(trace, model: str, work: str) -> None:
    assert_equal(trace, MODELS[model], work)


@pytest.mark.parametrize("model", READ_LATER)
def test_a_family_equals_its_trace_where_it_differs_most(trace, model: str) -> None:
    work, config = READ_LATER[model]
    assert_equal(trace, config, work)


def assert_equal(trace, config: dict[str, object], work: str) -> None:
    """Allocated of every phase: within 0.5 % and the bytes of the smallest tensors."""
    asked = (WORK | OTHER_WORK)[work]
    scenario = parse_scenario({"version": 1, "model": {"config": config}, "hardware": {"gpu": "H200 SXM 141GB"}} | asked)
    footprint = make_plan(scenario, network=False, device="cuda").footprint
    traced = trace(footprint.scenario, config)
    assert_allocated(footprint, traced, SMALL_TENSORS_BYTES, 0.005)


@pytest.mark.parametrize("model", NOT_COMPARED)
def test_a_family_that_nobody_compared_is_unknown(model: str) -> None:
    """Blocks that look like Llama's hold other tensors: no number, and the reason."""
    scenario = parse_scenario({"version": 1, "model": {"config": NOT_COMPARED[model]}, "task": "inference"})
    footprint = make_plan(scenario, network=False, device="cuda").footprint
    assert not footprint.gpus[0].phases
    assert any(note.startswith("unknown: ") for note in footprint.notes)
