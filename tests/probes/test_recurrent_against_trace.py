"""Closed forms of mixers with a constant state against the real models' allocations, traced on fake tensors as CUDA would."""

from __future__ import annotations

import pytest

from planner.scenario import parse_scenario
from resources.plan import make_plan
from tests.probes.comparison import assert_allocated

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
"""PEFT 0.21 reads an attribute that transformers 5 renames."""
SMALL = {
    "hidden_size": 128, "intermediate_size": 256, "vocab_size": 1200, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "torch_dtype": "bfloat16",
}  # fmt: skip
STATE_SPACE = {"state_size": 16, "conv_kernel": 4, "expand": 2}
MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 32,
    "mamba_d_state": 32,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 64,
    "mamba_d_conv": 4,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4, "head_dim": 32,
}  # fmt: skip
MODELS = {
    "mamba": SMALL | STATE_SPACE | {"model_type": "mamba", "architectures": ["MambaForCausalLM"]},
    "mamba, residual in its own dtype": SMALL
    | STATE_SPACE
    | {"model_type": "mamba", "architectures": ["MambaForCausalLM"], "residual_in_fp32": False},
    "falcon-mamba": SMALL | STATE_SPACE | {"model_type": "falcon_mamba", "architectures": ["FalconMambaForCausalLM"]},
    "mamba2": SMALL
    | STATE_SPACE
    | {
        "model_type": "mamba2", "architectures": ["Mamba2ForCausalLM"], "num_heads": 8, "head_dim": 32, "n_groups": 2,
        "chunk_size": 64,
    },
    "jamba": SMALL
    | {
        "model_type": "jamba", "architectures": ["JambaForCausalLM"], "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 4, "num_experts_per_tok": 2,
    },
    "granite hybrid": SMALL
    | MAMBA2
    | EXPERTS
    | {
        "model_type": "granitemoehybrid", "architectures": ["GraniteMoeHybridForCausalLM"], "shared_intermediate_size": 64,
        "layer_types": ["mamba", "attention"],
    },
    "nemotron-h": SMALL
    | {
        "model_type": "nemotron_h", "architectures": ["NemotronHForCausalLM"], "hybrid_override_pattern": "M-*",
        "num_hidden_layers": 3, "mamba_num_heads": 8, "mamba_head_dim": 32, "ssm_state_size": 32, "n_groups": 2,
        "chunk_size": 64, "conv_kernel": 4, "head_dim": 32,
    },
    "falcon-h1": SMALL
    | MAMBA2
    | {"model_type": "falcon_h1", "architectures": ["FalconH1ForCausalLM"], "mamba_d_ssm": 256, "mamba_rms_norm": False},
    "qwen3-next": SMALL
    | DELTA
    | EXPERTS
    | {
        "model_type": "qwen3_next", "architectures": ["Qwen3NextForCausalLM"], "shared_expert_intermediate_size": 64,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "qwen3.5": SMALL
    | DELTA
    | {
        "model_type": "qwen3_5_text", "architectures": ["Qwen3_5ForCausalLM"],
        "layer_types": ["linear_attention", "full_attention"],
    },
    "lfm2": SMALL
    | {
        "model_type": "lfm2", "architectures": ["Lfm2ForCausalLM"], "conv_L_cache": 3, "conv_bias": False,
        "block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention"],
    },
    "minimax": SMALL
    | EXPERTS
    | {
        "model_type": "minimax", "architectures": ["MiniMaxForCausalLM"], "head_dim": 32, "block_size": 64,
        "layer_types": ["linear_attention", "full_attention"],
    },
}  # fmt: skip
WORK = {
    "short": {"batch": 3, "prompt_tokens": 40, "new_tokens": 3},
    "several chunks": {"batch": 2, "prompt_tokens": 150, "new_tokens": 3},
}
SMALL_TENSORS_BYTES = 40 * 1024
"""Masks of one chunk, decays, token ids: tensors of a few KiB that the closed form leaves out."""

CUBLAS_WORKSPACE_BYTES = 32 << 20
TOKEN_BY_TOKEN = ("mamba", "mamba, residual in its own dtype", "falcon-mamba", "jamba")
"""Selective scans run some ten operators a token: a short prompt says as much as a long one."""
PAIRS = [(model, work) for model in MODELS for work in WORK if work == "short" or model not in TOKEN_BY_TOKEN]


@pytest.mark.parametrize(("model", "work"), PAIRS)
def test_allocated_of_every_phase_equals_the_trace(trace, model: str, work: str) -> None:
    """Within 1 % of what the phase adds to the weights, and the bytes of the smallest tensors."""
    request = {"version": 1, "model": {"config": MODELS[model]}, "task": "inference", "weights": "bf16", "inference": WORK[work]}
    footprint = make_plan(parse_scenario(request), network=False).footprint
    traced = trace(footprint.scenario, MODELS[model])
    predicted = {phase.name: phase for phase in footprint.gpus[0].phases}
    assert predicted.keys() == traced.keys()
    for name, phase in predicted.items():
        allocated = traced[name]["allocated"]
        added = max(0, allocated - traced["load"]["allocated"] - CUBLAS_WORKSPACE_BYTES)
        assert abs(phase.allocated - allocated) <= 0.01 * added + SMALL_TENSORS_BYTES, name


def test_states_are_the_cache_s_own(trace) -> None:
    """After a prefill the convolution and recurrent states of every layer are held, and nothing else counts as such."""
    config = MODELS["mamba2"]
    request = {"version": 1, "model": {"config": config}, "task": "inference", "weights": "bf16", "inference": WORK["short"]}
    footprint = make_plan(parse_scenario(request), network=False).footprint
    traced = trace(footprint.scenario, config)["decode"]["components"]
    decode = next(phase for phase in footprint.gpus[0].phases if phase.name == "decode")
    assert decode.components["recurrent_state"] == traced["recurrent_state"]


TRAINED = ("mamba2", "nemotron-h", "falcon-h1", "qwen3.5", "lfm2")
TRAINING = {
    "full": {"batch": 2, "sequence": 150},
    "checkpointed": {"batch": 2, "sequence": 256, "checkpointing": "full"},
    "short": {"batch": 2, "sequence": 48},
}


TRAINED_PAIRS = [(model, work) for model in TRAINED for work in ("full", "checkpointed")] + [("mamba", "short")]


@pytest.mark.parametrize(("model", "work"), TRAINED_PAIRS)
def test_training_step_equals_the_trace(trace, model: str, work: str) -> None:
    """Within 3 % of what the phase adds to the weights, in every phase of the steady step."""
    request = {"version": 1, "model": {"config": MODELS[model]}, "task": "training", "training": TRAINING[work]}
    footprint = make_plan(parse_scenario(request), network=False).footprint
    traced = trace(footprint.scenario, MODELS[model])
    predicted = {phase.name: phase for phase in footprint.gpus[0].phases}
    assert predicted.keys() == traced.keys()
    for name, phase in predicted.items():
        allocated = traced[name]["allocated"]
        added = max(0, allocated - traced["load"]["allocated"] - 2 * CUBLAS_WORKSPACE_BYTES)
        assert abs(phase.allocated - allocated) <= 0.03 * added + SMALL_TENSORS_BYTES, name


LORA = {"method": "lora", "lora": {"targets": ["in_proj"]}}


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("mamba2", {}),
        ("granite hybrid", {}),
        ("granite hybrid", LORA),
        ("nemotron-h", {"checkpointing": "full"}),
        ("lfm2", {}),
        ("lfm2", LORA | {"checkpointing": "full"}),
        ("qwen3-next", {}),
        ("qwen3.5", {"method": "lora", "lora": {"targets": ["out_proj"]}}),
    ],
    ids=str,
)
def test_a_training_step_under_autocast_equals_the_trace(trace, model: str, more: dict[str, object]) -> None:
    """Products of the scan's chunks are in 16 bit, what is between them in fp32."""
    training = {"batch": 2, "sequence": 700, "precision": "amp-bf16"} | more
    scenario = parse_scenario({"version": 1, "model": {"config": MODELS[model]}, "task": "training", "training": training})
    footprint = make_plan(scenario, network=False).footprint
    traced = trace(footprint.scenario, MODELS[model])
    assert_allocated(footprint, traced, SMALL_TENSORS_BYTES, 0.01)


def test_absent_kernels_are_said() -> None:
    """The closed form is of the PyTorch code, which runs where the kernels' packages are missing."""
    request = {"version": 1, "model": {"config": MODELS["mamba2"]}, "task": "inference", "inference": WORK["short"]}
    notes = make_plan(parse_scenario(request), network=False).footprint.notes
    assert any("mamba-ssm" in note for note in notes)
