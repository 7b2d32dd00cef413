"""Prefix tuning in closed form against PEFT's own, traced on fake tensors: its cache and masks, gradients that wait for the end."""

from __future__ import annotations

import pytest

from planner.scenario import parse_scenario
from resources.plan import make_plan
from tests.probes.comparison import assert_allocated, assert_trained

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
SMALL = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 1024, "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}  # fmt: skip
WORK: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "the layers make the peak": (SMALL, {}),
    "the loss does, a tied head, accumulated": (
        SMALL | {"model_type": "qwen2", "tie_word_embeddings": True, "vocab_size": 5000}, {"gradient_accumulation": 2},
    ),
    "every head its own keys, fp32": (SMALL | {"num_key_value_heads": 8}, {"precision": "fp32", "virtual_tokens": 100}),
    "normed queries": (SMALL | {"model_type": "qwen3", "head_dim": 64}, {"attention": "eager"}),
    "gpt2": ({"model_type": "gpt2", "n_embd": 256, "n_layer": 3, "n_head": 8, "n_positions": 1024, "vocab_size": 64}, {}),
    "one projection for all": (SMALL | {"model_type": "phi3", "pad_token_id": 0}, {}),
}  # fmt: skip
SMALL_TENSORS_BYTES = 64 * 1024
"""Positions, scalars and rows of a few KiB."""


def footprint_of(config: dict[str, object], training: dict[str, object]):
    document = {"version": 1, "model": {"config": config}, "task": "training"}
    work = {"method": "prefix", "virtual_tokens": 20, "batch": 2, "sequence": 300} | training
    return make_plan(parse_scenario(document | {"training": work}), network=False).footprint


@pytest.mark.parametrize("work", WORK)
def test_a_prefix_equals_its_trace(trace, work: str) -> None:
    config, training = WORK[work]
    footprint = footprint_of(config, training)
    traced = trace(footprint.scenario, config)
    assert_allocated(footprint, traced, SMALL_TENSORS_BYTES)
    assert_trained(footprint, traced)


@pytest.mark.parametrize(
    ("config", "training", "word"),
    [
        (SMALL, {"checkpointing": "full"}, "checkpointing"),
        (SMALL, {"attention": "flash"}, "flash"),
        (SMALL | {"model_type": "mistral", "sliding_window": 128}, {}, "windows"),
        ({"model_type": "bloom", "hidden_size": 256, "n_layer": 2, "n_head": 8, "vocab_size": 64}, {}, "attention"),
    ],
)
def test_what_peft_refuses_or_nobody_derived_is_unknown(config: dict[str, object], training: dict[str, object], word: str) -> None:
    footprint = footprint_of(config, training)
    assert footprint.verdict == "unknown"
    assert any(note.startswith("unknown") and word in note for note in footprint.notes)


def test_more_virtual_tokens_never_take_less() -> None:
    few, many = (footprint_of(SMALL, {"virtual_tokens": tokens}) for tokens in (20, 40))
    for one, other in zip(few.gpus[0].phases, many.gpus[0].phases, strict=True):
        assert other.allocated >= one.allocated
    assert many.trainable_parameters == 2 * few.trainable_parameters
