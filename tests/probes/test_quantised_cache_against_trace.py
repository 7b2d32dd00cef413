"""A quantised cache by the closed form against rehearsals of transformers' own layers."""

from __future__ import annotations

import pytest

from tests.probes.test_closed_form_against_trace import LLAMA, MODELS, TIED, assert_equal

CASES = {
    "kept as it is": (LLAMA, {"kv_cache": "int4"}, 700, 5),
    "quantised on the way": (LLAMA, {"engine_options": {"cache_implementation": "quantized", "cache_residual_length": 4}}, 700, 6),
    "a longer rest": (LLAMA, {"kv_cache": "int2", "engine_options": {"cache_residual_length": 16}}, 300, 20),
    "8 bits": (TIED, {"kv_cache": "int8"}, 500, 3),
    "no rotation": (MODELS["gpt2"], {"kv_cache": "int4", "engine_options": {"cache_q_group_size": 16}}, 600, 3),
    "one projection": (MODELS["phi3"], {"kv_cache": "int4"}, 600, 3),
    "normed keys": (MODELS["qwen3"], {"kv_cache": "int4", "attention": "eager"}, 400, 3),
}


@pytest.mark.parametrize("case", CASES)
def test_every_phase_equals_the_trace(trace, case: str) -> None:
    model, options, prompt, new = CASES[case]
    work = {"batch": 2, "prompt_tokens": prompt, "new_tokens": new} | options
    wide = {} if case == "no rotation" else {"head_dim": 64}
    assert_equal(trace, model | wide, {"task": "inference", "inference": work}, "cuda")
