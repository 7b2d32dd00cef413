"""Cache bytes against the caches of small models that really run, in fp32 on the CPU."""

from __future__ import annotations

import warnings

import pytest

from planner.architecture import read_config
from planner.components.cache import cache_bytes
from tests.planner.architecture.caches import prefill_cache
from tests.planner.architecture.variations import vary

TYPES = (
    "llama", "mistral", "gemma2", "gemma3_text", "gemma3n_text", "phi3", "falcon", "gpt2", "gpt_bigcode", "opt", "bloom",
    "mamba", "mamba2", "jamba", "bamba", "falcon_h1", "granitemoehybrid", "nemotron_h", "qwen3_next", "minimax", "lfm2",
    "zamba2", "gpt_oss", "glm4_moe_lite", "minicpm3", "glm_moe_dsa", "deepseek_v4", "llama4_text", "mimo_v2_flash", "youtu",
)  # fmt: skip
WINDOWS = ("sliding_window", "attention_chunk_size")
SHORT, LONG, WINDOW = 7, 40, 16


@pytest.mark.parametrize("model_type", TYPES)
def test_cache_bytes_equal_those_of_a_model_that_ran(model_type: str) -> None:
    """Logical and held bytes after a prefill shorter and one longer than the window."""
    compared = 0
    for seed in range(4):
        config = vary(model_type, seed, 0.2, small=True)
        config |= {key: WINDOW for key in WINDOWS if isinstance(config.get(key), int)}
        found = read_config(config)
        for tokens in (SHORT, LONG):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    logical, held = prefill_cache(config, found.model_class, 2, tokens)
                except (RuntimeError, ValueError, IndexError):
                    continue  # a config transformers builds but cannot run
            size = cache_bytes(found, 2, tokens, 4)
            assert (size.logical_bytes, size.held_bytes) == (logical, held), config
            assert sum(size.by_field.values()) == logical
            compared += 1
        if compared >= 2:
            break
    assert compared
