"""What LoRA's targets name: PEFT's matching, and the names that it turns into parameters of stacked experts."""

from __future__ import annotations

import pytest

from planner.architecture import read_config
from planner.architecture.layers import Architecture
from planner.components.targets import adaptable, targets_of
from planner.components.trainable import trainable_parameters
from planner.modelled import NotModelled
from planner.scenario import Lora, Training

SMALL = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "vocab_size": 100, "torch_dtype": "bfloat16",
}  # fmt: skip
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 80}
MODELS = {
    "qwen3_moe": SMALL | EXPERTS | {"model_type": "qwen3_moe"},
    "qwen2_moe": SMALL | EXPERTS | {"model_type": "qwen2_moe"},
    "mixtral": SMALL | {"model_type": "mixtral", "num_local_experts": 8},
    "gpt_oss": SMALL | {"model_type": "gpt_oss", "num_local_experts": 8, "num_experts_per_tok": 2},
    "mamba2": SMALL | {"model_type": "mamba2", "num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1},
    "mamba": SMALL | {"model_type": "mamba"},
}
RANK = 4


def architecture(model: str) -> Architecture:
    return read_config(MODELS[model])


def trained(model: str, *targets: str, method: str = "lora", **lora: object) -> int:
    settings = Lora(rank=RANK, targets=targets, **lora)  # type: ignore[arg-type]
    return trainable_parameters(architecture(model), Training(method=method, lora=settings))


def test_adapters_of_experts_lie_side_by_side_and_gate_and_up_have_the_rank_of_both() -> None:
    attention = trained("qwen3_moe", "q_proj", "k_proj", "v_proj", "o_proj")
    both, down, router = 8 * 2 * RANK * (64 + 96), 8 * RANK * (48 + 64), RANK * (64 + 8)
    assert trained("qwen3_moe", "all-linear") == attention + 2 * (both + down + router)
    assert trained("qwen3_moe", "down_proj") == 2 * down
    assert trained("qwen3_moe", "experts.gate_proj", "up_proj") == 2 * both
    assert trained("mixtral", "w2") == 2 * 8 * RANK * (160 + 64)


def test_where_nothing_is_turned_experts_keep_to_themselves() -> None:
    """Qwen2-MoE's own type is not in the table: its shared experts are adapted, their gate by all-linear."""
    shared = 2 * 3 * RANK * (64 + 80)
    assert trained("qwen2_moe", "gate_proj", "up_proj", "down_proj") == shared
    attention = trained("qwen2_moe", "q_proj", "k_proj", "v_proj", "o_proj")
    assert trained("qwen2_moe", "all-linear") == attention + shared + 2 * RANK * (64 + 1)
    assert trained("gpt_oss", "all-linear") == trained("gpt_oss", "q_proj", "k_proj", "v_proj", "o_proj")


@pytest.mark.parametrize(
    ("model", "targets", "said"),
    [
        ("qwen3_moe", ("up_proj",), "add gate_proj"),
        ("mixtral", ("w1", "w2"), "add w3"),
        ("mamba2", ("all-linear",), "refuses to adapt out_proj"),
        ("mamba2", ("in_proj", "mixer.out_proj"), "refuses to adapt mixer.out_proj"),
        ("mamba", ("dt_proj",), "past its adapter"),
        ("gpt_oss", ("router",), "router"),
        ("gpt_oss", ("gate_proj",), "it has q_proj, k_proj, v_proj, o_proj"),
    ],
)
def test_what_peft_refuses_is_told(model: str, targets: tuple[str, ...], said: str) -> None:
    with pytest.raises(NotModelled, match=said):
        trained(model, *targets)


@pytest.mark.parametrize(("method", "dropout"), [("dora", 0.0), ("lora", 0.1)])
def test_experts_take_neither_dora_nor_a_dropout(method: str, dropout: float) -> None:
    with pytest.raises(NotModelled, match="refuses"):
        trained("qwen3_moe", "q_proj", "down_proj", method=method, dropout=dropout)
    assert trained("qwen3_moe", "q_proj", method=method, dropout=dropout)


def test_ia3_knows_no_other_names() -> None:
    assert not targets_of(architecture("qwen3_moe"), "ia3", ("all-linear",)).parts


def test_what_is_offered_can_be_named() -> None:
    offered = {path.rpartition(".")[2]: count for path, _, count in adaptable(architecture("mixtral"))}
    assert offered == {"q_proj": 2, "k_proj": 2, "v_proj": 2, "o_proj": 2, "gate": 2, "w1": 16, "w3": 16, "w2": 16}
    assert [path.rpartition(".")[2] for path, _, _ in adaptable(architecture("mamba2"))] == ["in_proj"]
    assert trained("mixtral", *offered) == trained("mixtral", "all-linear")
