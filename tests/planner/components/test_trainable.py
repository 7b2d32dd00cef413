"""What each method trains, counted from the architecture."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.architecture import read_config
from planner.architecture.counts import parameter_count
from planner.components.trainable import adapter_dtype_bytes, trainable_parameters, trainable_tensors
from planner.modelled import NotModelled
from planner.scenario import Lora, Training

LLAMA = read_config({
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "tie_word_embeddings": False,
})  # fmt: skip
SHAPES = {
    "q_proj": (64, 64), "k_proj": (32, 64), "v_proj": (32, 64), "o_proj": (64, 64), "gate_proj": (160, 64), "up_proj": (160, 64),
    "down_proj": (64, 160),
}  # fmt: skip
LAYERS = 3
targets = st.lists(st.sampled_from(sorted(SHAPES)), min_size=1, unique=True).map(tuple)


@given(targets=targets, rank=st.integers(1, 64))
def test_lora_trains_rank_times_in_and_out(targets: tuple[str, ...], rank: int) -> None:
    """Hu et al. 2021, section 4.2: two matrices of ``rank`` for every weight."""
    count = trainable_parameters(LLAMA, Training(method="lora", lora=Lora(rank, targets)))
    assert count == LAYERS * sum(rank * sum(SHAPES[name]) for name in targets)
    magnitudes = trainable_parameters(LLAMA, Training(method="dora", lora=Lora(rank, targets))) - count
    assert magnitudes == LAYERS * sum(SHAPES[name][0] for name in targets)


@given(targets=targets)
def test_ia3_scales_the_input_of_the_last_linear_alone(targets: tuple[str, ...]) -> None:
    """Liu et al. 2022, section 3.3: keys, values and the inner activations of the feed-forward block."""
    count = trainable_parameters(LLAMA, Training(method="ia3", lora=Lora(targets=targets)))
    assert count == LAYERS * sum(SHAPES[name][name == "down_proj"] for name in targets)


def test_all_linear_is_every_linear_but_the_head() -> None:
    every = Training(method="lora", lora=Lora(4, tuple(SHAPES)))
    assert trainable_tensors(LLAMA, Training(method="lora", lora=Lora(4, ("all-linear",))), 2) == trainable_tensors(LLAMA, every, 2)


@given(names=st.lists(st.sampled_from(["embed_tokens", "lm_head", "norm", "layers.0", "layers.1", "layers.2"]), unique=True))
@settings(max_examples=30)
def test_modules_are_trained_alone_and_together_they_are_all(names: list[str]) -> None:
    """Disjoint modules add up; a path ends where a part of it ends."""
    count = {name: trainable_parameters(LLAMA, Training(method="freeze", trainable=(name,))) for name in names}
    if names:
        whole = trainable_parameters(LLAMA, Training(method="freeze", trainable=tuple(names)))
        assert whole <= sum(count.values())
        assert whole <= parameter_count(LLAMA)
    outside = ("embed_tokens", "lm_head", "layers", "model.norm")
    assert trainable_parameters(LLAMA, Training(method="freeze", trainable=outside)) == parameter_count(LLAMA)


def test_virtual_tokens_are_hidden_states_or_keys_and_values() -> None:
    assert trainable_parameters(LLAMA, Training(method="prompt", virtual_tokens=7)) == 7 * 64
    assert trainable_parameters(LLAMA, Training(method="prefix", virtual_tokens=7)) == 7 * LAYERS * 2 * 32


@pytest.mark.parametrize(("method", "options", "width"), [
    ("lora", {}, 4), ("lora", {"autocast_adapter_dtype": False}, 2), ("qlora", {"autocast_adapter_dtype": False}, 4),
])  # fmt: skip
def test_adapters_are_fp32_unless_peft_is_told_to_leave_them(method: str, options: dict[str, object], width: int) -> None:
    assert adapter_dtype_bytes(Training(method=method, engine_options=options), 2) == width


def test_targets_that_no_linear_bears_are_named() -> None:
    with pytest.raises(NotModelled, match="c_attn"):
        trainable_tensors(LLAMA, Training(method="lora", lora=Lora(4, ("c_attn",))), 2)
    with pytest.raises(NotModelled, match="lm_head"):
        trainable_tensors(LLAMA, Training(method="lora", lora=Lora(4, ("q_proj", "lm_head"))), 2)
    with pytest.raises(NotModelled, match="transformer"):
        trainable_tensors(LLAMA, Training(method="freeze", trainable=("transformer",)), 2)
