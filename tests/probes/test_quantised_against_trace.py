"""Closed forms of quantised weights against the real models' allocations, traced on fake tensors."""

from __future__ import annotations

import pytest

from planner.scenario import parse_scenario
from probes.rehearsal_order import rehearse_request
from resources.plan import make_plan
from tests.probes.comparison import assert_allocated

SMALL = {
    "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2,
    "vocab_size": 1200, "max_position_embeddings": 4096, "torch_dtype": "bfloat16",
}  # fmt: skip
MODELS = {
    "llama": SMALL | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "biases, tied": SMALL | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True},
}
FORMATS = ("nf4", "nf4-dq", "int8", "fp8", "fp8-block", "gptq-int4-g128", "awq-int4-g64")
SMALL_TENSORS_BYTES = 16 * 1024


@pytest.mark.parametrize("prompt_tokens", [300, 3])
@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("model", MODELS)
def test_allocated_of_every_phase_equals_the_trace(trace, model: str, weights: str, prompt_tokens: int) -> None:
    """Many rows and few: the 4-bit kernel needs no whole weight for up to four rows."""
    work = {"batch": 1, "prompt_tokens": prompt_tokens, "new_tokens": 4}
    document = {"version": 1, "model": {"config": MODELS[model]}, "task": "inference", "weights": weights, "inference": work}
    footprint = make_plan(parse_scenario(document), network=False, device="cpu").footprint
    traced = trace(footprint.scenario, MODELS[model], "cpu")
    assert_allocated(footprint, traced, SMALL_TENSORS_BYTES)


GPT2 = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 512, "n_layer": 3, "n_head": 8, "vocab_size": 1200,
    "n_positions": 512,
}  # fmt: skip


@pytest.mark.parametrize("weights", ["nf4", "int8"])
def test_bitsandbytes_leaves_the_rest_in_the_checkpoints_dtype(trace, weights: str) -> None:
    """A config without a dtype is fp32 (``_get_dtype``), and bitsandbytes' quantisers don't change it."""
    work = {"batch": 1, "prompt_tokens": 300, "new_tokens": 4}
    document = {"version": 1, "model": {"config": GPT2}, "task": "inference", "weights": weights, "inference": work}
    footprint = make_plan(parse_scenario(document), network=False, device="cpu").footprint
    traced = trace(footprint.scenario, GPT2, "cpu")
    for phase in footprint.gpus[0].phases:
        assert abs(phase.allocated - traced[phase.name]["allocated"]) <= SMALL_TENSORS_BYTES, phase.name


EXPERTS = SMALL | {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8, "num_experts_per_tok": 2,
    "moe_intermediate_size": 256, "head_dim": 64,
}  # fmt: skip
FALCON = {
    "model_type": "falcon", "architectures": ["FalconForCausalLM"], "hidden_size": 512, "num_hidden_layers": 3,
    "num_attention_heads": 8, "vocab_size": 1200, "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.mark.parametrize("weights", ["nf4", "int8"])
def test_linears_beside_experts_that_stay_as_they_are(trace, weights: str) -> None:
    """bitsandbytes leaves stacked experts alone: quantising takes from the trace what it takes from the prediction."""
    work = {"batch": 2, "prompt_tokens": 300, "new_tokens": 4}
    predicted, traced = [], []
    for name in ("bf16", weights):
        document = {"version": 1, "model": {"config": EXPERTS}, "task": "inference", "weights": name, "inference": work}
        footprint = make_plan(parse_scenario(document), network=False, device="cpu").footprint
        predicted.append({phase.name: phase.allocated for phase in footprint.gpus[0].phases})
        traced.append(trace(footprint.scenario, EXPERTS, "cpu"))
    for phase, plain in predicted[0].items():
        saved = traced[0][phase]["allocated"] - traced[1][phase]["allocated"]
        assert abs(plain - predicted[1][phase] - saved) <= SMALL_TENSORS_BYTES, phase


GPT_OSS = EXPERTS | {"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "num_local_experts": 8}
SCALES_AND_BIASES_BYTES = 160 * 1024
"""Scales of all experts of a layer lie in one tensor, rounded up once; gpt-oss' biases are in fp32 beside MXFP4."""


@pytest.mark.parametrize(("config", "weights"), [(EXPERTS, "fp8-block"), (EXPERTS, "fp8"), (GPT_OSS, "mxfp4")])
def test_experts_held_in_few_bits_equal_the_trace(trace, config: dict[str, object], weights: str) -> None:
    work = {"batch": 2, "prompt_tokens": 600, "new_tokens": 4}
    document = {"version": 1, "model": {"config": config}, "task": "inference", "weights": weights, "inference": work}
    footprint = make_plan(parse_scenario(document), network=False, device="cuda").footprint
    traced = trace(footprint.scenario, config, "cuda")
    assert_allocated(footprint, traced, SCALES_AND_BIASES_BYTES, 0.002)


LATENT = SMALL | {
    "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "num_key_value_heads": 8, "q_lora_rank": 256,
    "kv_lora_rank": 128, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64, "first_k_dense_replace": 3,
}  # fmt: skip


def test_keys_and_values_made_of_what_is_cached_have_a_row_for_every_cached_token(trace) -> None:
    """``kv_b_proj`` reads the whole cache at every token: eight bits count a row for each of its cells in int32."""
    work = {"batch": 2, "prompt_tokens": 900, "new_tokens": 4}
    document = {"version": 1, "model": {"config": LATENT}, "task": "inference", "weights": "int8", "inference": work}
    footprint = make_plan(parse_scenario(document), network=False, device="cuda").footprint
    (decode,) = (phase for phase in footprint.gpus[0].phases if phase.name == "decode")
    traced = trace(footprint.scenario, LATENT, "cuda")["decode"]
    assert decode.allocated == pytest.approx(traced["allocated"], rel=0.002)


def test_a_fused_linear_with_a_name_of_experts_is_a_linear(trace) -> None:
    """Phi-3's feed-forward blocks are called as stacked experts are."""
    config = SMALL | {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "pad_token_id": 0}
    document = {"version": 1, "model": {"config": config}, "task": "inference", "weights": "fp8-block"}
    footprint = make_plan(parse_scenario(document), network=False, device="cpu").footprint
    assert trace(footprint.scenario, config, "cpu").keys() == {phase.name for phase in footprint.gpus[0].phases}


@pytest.mark.parametrize(("config", "weights"), [(EXPERTS, "mxfp4"), (EXPERTS, "gptq-int4-g128"), (FALCON, "nf4")])
def test_what_is_not_derived_for_a_model_is_unknown(config: dict[str, object], weights: str) -> None:
    """Experts in a packed format; linears of a class of the model's own, which quantisers pass over."""
    document = {"version": 1, "model": {"config": config}, "task": "inference", "weights": weights}
    footprint = make_plan(parse_scenario(document), network=False).footprint
    assert footprint.verdict == "unknown"
    assert any(note.startswith("unknown: weights: ") for note in footprint.notes)


def test_native_weights_are_rehearsed_as_the_checkpoint_stores_them(trace) -> None:
    """The order says what ``native`` is; without it a quantised checkpoint would be rehearsed in 16 bit."""
    quantised = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    config = MODELS["llama"] | quantised
    work = {"batch": 1, "prompt_tokens": 300, "new_tokens": 4}
    document = {"version": 1, "model": {"config": config}, "task": "inference", "inference": work}
    plan = make_plan(parse_scenario(document), network=False)
    order = rehearse_request(plan).order
    assert order["scenario"]["weights"] == "native"
    traced = trace(order["scenario"], config, "cpu", stored_as=order["stored_as"])
    predicted = make_plan(parse_scenario(document), network=False, device="cpu").footprint.gpus[0].phases
    for phase in predicted:
        assert abs(phase.allocated - traced[phase.name]["allocated"]) <= SMALL_TENSORS_BYTES, phase.name


def test_a_format_whose_products_are_not_derived_is_unknown() -> None:
    document = {"version": 1, "model": {"config": MODELS["llama"]}, "task": "inference", "weights": "hqq-int4-g64"}
    footprint = make_plan(parse_scenario(document), network=False).footprint
    assert footprint.verdict == "unknown"
    assert footprint.weight_bytes
    assert any("loads no HQQ" in note for note in footprint.notes)
