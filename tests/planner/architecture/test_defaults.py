"""The table of defaults is what the installed transformers says."""

from __future__ import annotations

import pytest
import transformers

from planner.architecture.families import FAMILIES, NOT_READ
from planner.architecture.families.defaults import DEFAULTS
from planner.architecture.noise import cannot_change_sizes
from tests.planner.architecture.generate_defaults import TARGET, render


@pytest.mark.skipif(not transformers.__version__.startswith("5.23."), reason="the table was made from transformers 5.23")
def test_the_table_is_generated_from_the_framework() -> None:
    assert TARGET.read_text(encoding="utf-8") == render()


def test_a_type_is_read_or_known_to_be_unread() -> None:
    assert not set(FAMILIES) & NOT_READ
    assert set(FAMILIES) - set(DEFAULTS) == set()


@pytest.mark.parametrize(
    "key", ["hidden_size", "num_experts_per_token", "qk_rope_head_dim", "block_ffn_dim_multiplier", "moe_layer_freq"]
)
def test_keys_that_size_a_model_are_never_taken_for_noise(key: str) -> None:
    assert not cannot_change_sizes(key)


@pytest.mark.parametrize(
    "key", ["bos_token_id", "rms_norm_eps", "rope_theta", "attention_dropout", "torch_dtype", "quantization_config"]
)
def test_keys_about_tokens_and_numerics_are_noise(key: str) -> None:
    assert cannot_change_sizes(key)
