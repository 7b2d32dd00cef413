"""Adapters that are no low-rank product, against the same training traced with PEFT's own code."""

from __future__ import annotations

import pytest

from tests.probes.test_methods_against_trace import EVERY, MODELS, assert_equal

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
SOME = {"rank": 8, "targets": ["q_proj", "v_proj"]}
METHODS = {
    "vera": {"method": "vera", "lora": EVERY},
    "vera, dropout, accumulated": {"method": "vera", "lora": SOME | {"dropout": 0.1}, "gradient_accumulation": 2},
    "vera, checkpointed": {"method": "vera", "lora": SOME, "checkpointing": "full"},
    "loha": {"method": "loha", "lora": SOME},
    "loha, accumulated": {"method": "loha", "lora": EVERY, "gradient_accumulation": 2},
    "loha, 16 bit, checkpointed": {
        "method": "loha", "lora": SOME, "checkpointing": "full", "engine_options": {"autocast_adapter_dtype": False},
    },
    "lokr": {"method": "lokr", "lora": {"rank": 4, "targets": ["all-linear"]}},
    "lokr, whole matrices, checkpointed": {"method": "lokr", "lora": SOME | {"rank": 16}, "checkpointing": "full"},
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_every_method_equals_the_trace(trace, method: str) -> None:
    assert_equal(trace, MODELS["llama"], METHODS[method])
