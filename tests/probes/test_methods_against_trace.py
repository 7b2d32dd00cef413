"""Closed forms of training methods against the real model's allocations: PEFT's own adapters, traced on fake tensors."""

from __future__ import annotations

import pytest

from planner.scenario import parse_scenario
from resources.plan import make_plan
from tests.probes.comparison import assert_allocated, assert_trained

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out:UserWarning"),
]
"""PEFT 0.21 reads an attribute that transformers 5 renames, and sets GPT-2's transposed linears right itself."""
SMALL = {
    "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
    "vocab_size": 1200, "max_position_embeddings": 1024, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
MODELS = {
    "llama": SMALL | {"model_type": "llama"},
    "qwen2, biases and a tied head": SMALL | {"model_type": "qwen2", "tie_word_embeddings": True},
    "gpt2": {"model_type": "gpt2", "n_embd": 256, "n_layer": 2, "n_head": 8, "n_positions": 1024, "vocab_size": 1200},
    "gemma2": SMALL | {"model_type": "gemma2", "head_dim": 32, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gpt_neox, parallel": SMALL | {"model_type": "gpt_neox", "rotary_pct": 0.25},
    "granite": SMALL | {"model_type": "granite", "embedding_multiplier": 12.0},
}
EVERY = {"rank": 16, "targets": ["all-linear"]}
SOME = {"rank": 8, "targets": ["v_proj", "o_proj"], "dropout": 0.1, "rslora": True}
METHODS = {
    "lora": {"method": "lora", "lora": EVERY},
    "lora, some, accumulated": {"method": "lora", "lora": SOME, "gradient_accumulation": 2},
    "lora, 16 bit, checkpointed": {
        "method": "lora", "lora": EVERY, "engine_options": {"autocast_adapter_dtype": False}, "checkpointing": "full",
    },
    "lora, mixed precision": {"method": "lora", "lora": EVERY, "precision": "amp-bf16"},
    "mixed precision": {"precision": "amp-bf16"},
    "mixed precision, checkpointed": {"precision": "amp-fp16", "checkpointing": "full"},
    "dora": {"method": "dora", "lora": EVERY},
    "dora, dropout": {"method": "dora", "lora": SOME},
    "ia3": {"method": "ia3", "lora": {"targets": ["k_proj", "v_proj", "down_proj"]}},
    "prompt": {"method": "prompt", "virtual_tokens": 20},
    "head": {"method": "freeze"},
    "one projection": {"method": "freeze", "trainable": ["layers.1.self_attn.k_proj", "norm"]},
}  # fmt: skip
PREPARED = {
    "method": "qlora", "lora": EVERY, "precision": "amp-bf16", "engine_options": {"prepare_for_kbit_training": True},
}  # fmt: skip
"""TRL's usual setting: norms, embeddings and head in fp32 around 4-bit products, under autocast."""
SMALL_TENSORS_BYTES = 96 * 1024
"""Positions, scalars and rows of a few KiB."""
ROUNDING_BYTES = 4096
"""Weights lie in blocks of 512 bytes; some few are counted as buffers."""


def assert_equal(trace, config: dict[str, object], training: dict[str, object], weights: str = "native") -> None:
    """Trained parameters are the same; allocated of every phase is within the bytes of the smallest tensors."""
    document = {"version": 1, "model": {"config": config}, "task": "training", "weights": weights}
    scenario = parse_scenario(document | {"training": {"batch": 2, "sequence": 300} | training})
    footprint = make_plan(scenario, network=False).footprint
    traced = trace(footprint.scenario, config)
    assert_allocated(footprint, traced, SMALL_TENSORS_BYTES)
    assert_trained(footprint, traced)
    parts = next(phase.components for phase in footprint.gpus[0].phases if phase.name == "optimizer")
    truth = traced["optimizer"]["components"]
    if training.get("method") != "qlora":
        assert abs(parts.get("master_weights", 0) - truth.get("master_weights", 0)) < ROUNDING_BYTES


@pytest.mark.parametrize("method", METHODS)
def test_every_method_equals_the_trace(trace, method: str) -> None:
    assert_equal(trace, MODELS["llama"], METHODS[method])


@pytest.mark.parametrize("model", ["gemma2", "gpt_neox, parallel"])
def test_lora_on_other_blocks_equals_the_trace(trace, model: str) -> None:
    assert_equal(trace, MODELS[model], METHODS["lora"])


@pytest.mark.parametrize("model", ["gpt2", "granite"])
def test_checkpointing_keeps_frozen_embeddings(trace, model: str) -> None:
    """Their output is told to require a gradient, so that it lives as long as the graph."""
    assert_equal(trace, MODELS[model], METHODS["lora"] | {"checkpointing": "full"})


@pytest.mark.parametrize("weights", ["nf4-dq", "int8"])
def test_adapters_over_quantised_weights_equal_the_trace(trace, weights: str) -> None:
    assert_equal(trace, MODELS["qwen2, biases and a tied head"], {"method": "qlora", "lora": EVERY}, weights)


@pytest.mark.parametrize(
    ("weights", "more"),
    [
        ("gptq-int4-g32", {}),
        ("awq-int4-g64", {"lora": SOME, "checkpointing": "full"}),
        ("gptq-int8-g-1", {"precision": "amp-fp16", "checkpointing": "full"}),
        ("awq-int4-g64", {"precision": "amp-fp16"}),
    ],
    ids=str,
)
def test_adapters_over_packed_weights_equal_the_trace(trace, weights: str, more: dict) -> None:
    """What trains over GPTQ and AWQ makes each weight whole, in the forward and in the backward."""
    assert_equal(trace, MODELS["llama"], {"method": "qlora", "lora": EVERY} | more, weights)


@pytest.mark.parametrize(
    ("model", "checkpointing"),
    [("gpt2", "none"), ("gpt_neox, parallel", "none"), ("olmo2", "full")],
)
def test_mixed_precision_of_other_blocks_equals_the_trace(trace, model: str, checkpointing: str) -> None:
    """Layer norms, parallel blocks, powers in fp32, norms behind mixers, rotations in part; layers recomputed."""
    config = MODELS.get(model) or SMALL | {"model_type": model}
    assert_equal(trace, config, {"precision": "amp-bf16", "checkpointing": checkpointing, "batch": 4})


@pytest.mark.parametrize(
    ("model", "weights", "more"),
    [
        ("qwen2, biases and a tied head", "nf4-dq", {"lora": SOME, "checkpointing": "full"}),
        ("llama", "int8", {}),
        ("gemma2", "nf4", {"gradient_accumulation": 2}),
    ],
)
def test_mixed_precision_over_prepared_quantised_weights_equals_the_trace(trace, model: str, weights: str, more: dict) -> None:
    assert_equal(trace, MODELS[model], PREPARED | more, weights)


def test_ends_cast_back_to_16_bit_beside_prepared_norms_equal_the_trace(trace) -> None:
    """TRL before 0.27: the first layer's stream is in 16 bit until its feed-forward block, whose norm is fp32, adds to it."""
    older = {**PREPARED, "engine_options": {"prepare_for_kbit_training": True, "trl_version": "0.15.2"}}
    assert_equal(trace, MODELS["llama"], older | {"lora": SOME, "checkpointing": "full"}, "nf4-dq")


def test_a_last_norm_whose_result_is_its_weighed_rows_goes_before_the_backward_of_the_layers(trace) -> None:
    """In fp32 Gemma's norm casts nothing back."""
    assert_equal(trace, MODELS["gemma2"] | {"model_type": "gemma"}, {"precision": "fp32"})


OTHERS = {
    "gptj": {
        "model_type": "gptj",
        "n_embd": 256,
        "n_layer": 2,
        "n_head": 8,
        "n_positions": 1024,
        "vocab_size": 1200,
        "rotary_dim": 8,
    },
    "bloom": {"model_type": "bloom", "hidden_size": 256, "n_layer": 2, "n_head": 8, "vocab_size": 1200},
    "opt": SMALL | {"model_type": "opt", "ffn_dim": 704, "word_embed_proj_dim": 256},
    "falcon": SMALL | {"model_type": "falcon", "multi_query": True},
    "hunyuan": SMALL | {"model_type": "hunyuan_v1_dense", "head_dim": 32},
}


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("gpt_neox, parallel", {"method": "lora", "lora": EVERY}),
        ("opt", {"method": "lora", "lora": EVERY, "checkpointing": "full"}),
        ("bloom", {"method": "lora", "lora": EVERY, "checkpointing": "full"}),
        ("gptj", {"method": "lora", "lora": EVERY}),
        ("falcon", {"method": "lora", "lora": EVERY}),
        ("qwen2, biases and a tied head", {"method": "dora", "lora": EVERY, "checkpointing": "full"}),
        ("llama", {"method": "dora", "lora": SOME}),
        ("llama", {"method": "ia3", "lora": {"targets": ["k_proj", "v_proj", "down_proj"]}}),
        ("gpt2", {"method": "prompt", "virtual_tokens": 20}),
        ("gpt2", {"method": "freeze"}),
        ("gemma2", {}),
        ("hunyuan", {}),
    ],
    ids=str,
)
def test_mixed_precision_of_every_method_equals_the_trace(trace, model: str, more: dict) -> None:
    """Layer norms widen what they read, frozen fp32 weights are cast for each product, and gradients in another dtype are cast."""
    assert_equal(trace, (MODELS | OTHERS)[model], {"precision": "amp-bf16"} | more)


def test_mixed_precision_of_what_nobody_read_is_unknown() -> None:
    """Linear attention in blocks under autocast."""
    config = SMALL | {"model_type": "minimax", "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32}
    document = {"version": 1, "model": {"config": config}, "task": "training"}
    training = {"method": "lora", "lora": {"targets": ["out_proj"]}, "precision": "amp-bf16"}
    plan = make_plan(parse_scenario(document | {"training": training}), network=False)
    assert plan.footprint.verdict == "unknown"
    assert any("mixed precision" in note for note in plan.footprint.notes)
