"""In which type servers keep keys and values: as asked, or as the checkpoint declares."""

from __future__ import annotations

from functools import cache

import pytest

from planner.architecture import read_config
from planner.faults import Faults
from planner.formats import native_format
from planner.predict import predict
from planner.scenario import parse_scenario
from resources.catalog import catalog_model
from resources.gpus import gpu

CARD = "H200 SXM 141GB"
FP8_SCHEME = {"num_bits": 8, "type": "float", "dynamic": False, "strategy": "tensor", "symmetric": True}
GROUPS = {"group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}, "targets": ["Linear"]}}
CHECKPOINTS = {
    "modelopt": {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
    "compressed-tensors": {
        "quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": GROUPS, "kv_cache_scheme": FP8_SCHEME,
    },
}  # fmt: skip


@cache
def engine_figures(checkpoint: str, engine: str, kv_cache: str = "auto", version: str = "", card: str = CARD) -> dict:
    quantised = {"quantization_config": CHECKPOINTS[checkpoint]} if checkpoint else {}
    config = dict(catalog_model("meta-llama/Llama-3.1-8B").config) | quantised
    ask = {"engine": engine, "prompt_tokens": 1000, "new_tokens": 100, "max_model_len": 8192, "kv_cache": kv_cache}
    ask["engine_options"] = {"version": version} if version else {}
    document = {"model": {"config": config}, "task": "inference", "inference": ask, "hardware": {"gpu": card}}
    found = predict(parse_scenario(document), read_config(config), gpu(card), native_format(config))
    figures = found.extra["engine"]
    return {"token_bytes": figures["kv_cache_bytes"] / figures["blocks"] / figures["block_tokens"], "notes": found.notes}


WIDE = 2 * 32 * 8 * 128 * 2
"""Bytes of a token of Llama-3.1-8B in 16 bit."""


@pytest.mark.parametrize(
    ("checkpoint", "engine", "version", "narrow"),
    [
        ("modelopt", "vllm", "0.33.0", True), ("modelopt", "vllm", "0.13.0", False), ("modelopt", "sglang", "", True),
        ("modelopt", "tensorrt-llm", "", True), ("modelopt", "tgi", "", False),
        ("compressed-tensors", "vllm", "0.33.0", True), ("compressed-tensors", "vllm", "0.14.0", False),
        ("compressed-tensors", "sglang", "", False), ("compressed-tensors", "tgi", "", True),
    ],
)  # fmt: skip
def test_a_cache_type_that_the_checkpoint_declares_is_taken_by_engines_that_read_it(checkpoint, engine, version, narrow) -> None:
    """``kv_cache_quant_algo`` of Model Optimizer, ``kv_cache_scheme`` of compressed-tensors."""
    found = engine_figures(checkpoint, engine, version=version)
    assert found["token_bytes"] == (WIDE // 2 if narrow else WIDE)
    assert any("as the checkpoint's config asks" in note for note in found["notes"]) == narrow


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm"])
def test_a_cache_type_that_is_asked_for_goes_before_the_declared_one(engine) -> None:
    assert engine_figures("modelopt", engine, "bf16")["token_bytes"] == WIDE


@pytest.mark.parametrize(
    ("kv_cache", "head_bytes"),
    [("fp8_per_token_head", 128 + 4), ("int8_per_token_head", 128 + 4), ("int4_per_token_head", 64 + 4), ("nvfp4", 64 + 8)],
)
def test_vllms_scaled_caches_hold_their_scales_in_the_pages(kv_cache, head_bytes) -> None:
    """An fp32 scale for each token's keys and values of a head; of NVFP4 an fp8 scale for 16 values."""
    assert engine_figures("", "vllm", kv_cache)["token_bytes"] == 2 * 32 * 8 * head_bytes


def test_a_declared_scheme_that_is_not_known_is_left_alone() -> None:
    odd = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": {"num_bits": "8", "type": "float"}}
    assert native_format({"quantization_config": odd}).kv_cache == ""
    assert native_format({"quantization_config": odd | {"kv_cache_scheme": "INT8"}}).kv_cache == ""
    assert native_format({"quantization_config": odd | {"kv_cache_scheme": {"num_bits": 4, "type": "float"}}}).kv_cache == "nvfp4"


def test_latent_attention_has_no_kernel_for_scaled_pages() -> None:
    config = dict(catalog_model("deepseek-ai/DeepSeek-V2-Lite").config)
    document = {
        "model": {"config": config}, "task": "inference",
        "inference": {"engine": "vllm", "prompt_tokens": 100, "kv_cache": "fp8_per_token_head"}, "hardware": {"gpu": CARD},
    }  # fmt: skip
    with pytest.raises(Faults, match="latent attention"):
        predict(parse_scenario(document), read_config(config), gpu(CARD), native_format(config))
