"""No field is passed over in silence: it changes the answer, is refused, leaves it unknown, or a note names it."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from planner.architecture import read_config
from planner.engines.unused import unused
from planner.faults import Faults
from planner.formats import native_format
from planner.predict import predict
from planner.scenario import INFERENCE_ENGINES, parse_scenario
from resources.catalog import catalog_model
from resources.gpus import gpu

CARD = "H100 SXM5 80GB"
LLAMA = "meta-llama/Llama-3.1-8B"


def document(engine: str, **changed: Any) -> dict[str, Any]:
    whole = {name: changed.pop(name) for name in ("parallel", "offload", "weights") if name in changed}
    hardware = {"gpu": CARD, **changed.pop("hardware", {})}
    ask = {"engine": engine, "batch": 4, "prompt_tokens": 2000, "new_tokens": 200, "max_model_len": 8192, **changed}
    return {"model": LLAMA, "weights": "fp16", "task": "inference", "inference": ask, "hardware": hardware, **whole}


@cache
def config() -> dict[str, Any]:
    return dict(catalog_model(LLAMA).config)


@cache
def llama():
    return read_config(config()), native_format(config())


def answered(asked: dict[str, Any]):
    architecture, native = llama()
    return predict(parse_scenario(asked), architecture, gpu(CARD), native)


@cache
def plain(engine: str):
    return answered(document(engine))


DRAFT = dict(catalog_model("meta-llama/Llama-3.2-1B").config)
FIELDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("max_model_len", {"max_model_len": 16384}),
    ("kv_cache", {"kv_cache": "fp8"}),
    ("kv_cache", {"kv_cache": "q8_0"}),
    ("attention", {"attention": "eager"}),
    ("attention", {"attention": "flash"}),
    ("attention", {"attention": "paged"}),
    ("samples", {"samples": 3}),
    ("shared_prefix", {"shared_prefix": 0.5}),
    ("speculation", {"speculation": {"method": "draft", "tokens": 4, "draft": DRAFT}}),
    ("speculation", {"speculation": {"method": "ngram", "tokens": 4}}),
    ("tokens", {"speculation": {"tokens": 4}}),
    ("tokens", {"speculation": {"method": "ngram", "tokens": 0}}),
    ("draft", {"speculation": {"method": "ngram", "tokens": 4, "draft": DRAFT}}),
    ("adapters", {"adapters": {"count": 4, "rank": 16}}),
    ("conversation", {"max_model_len": 32768, "conversation": {"turns": 8}}),
    ("conversation", {"conversation": {"history": "retrieve", "kept_tokens": 500}}),
    ("kept_tokens", {"conversation": {"turns": 2, "kept_tokens": 500}}),
    ("offload", {"offload": {"weights": 0.5}}),
    ("offload", {"offload": {"kv_cache": 0.5}}),
    ("to", {"offload": {"weights": 0.5, "to": "nvme"}}),
    ("to", {"offload": {"kv_cache": 0.5, "to": "nvme"}}),
    ("to", {"offload": {"to": "nvme"}}),
    ("gpus", {"hardware": {"gpus": 2}}),
    ("tensor", {"hardware": {"gpus": 2}, "parallel": {"tensor": 2}}),
    ("pipeline", {"hardware": {"gpus": 3}, "parallel": {"pipeline": 2}}),
    ("data", {"hardware": {"gpus": 2}, "parallel": {"data": 2}}),
    ("context", {"hardware": {"gpus": 2}, "parallel": {"tensor": 2, "context": 2}}),
    ("sharding", {"parallel": {"sharding": "fsdp"}}),
)
OWN_FIELDS: tuple[tuple[str, str, Any], ...] = (
    ("transformers", "cache_nbits", 4),
    ("vllm", "swap_space", 2.0),
    ("vllm", "disable_hybrid_kv_cache_manager", True),
    ("tensorrt-llm", "version", "0.20"),
    ("tgi", "version", "2.4"),
    ("tgi", "max_total_tokens", 4096),
    ("llama.cpp", "version", "b4000"),
    ("llama.cpp", "n_cpu_moe", 3),
    ("llama.cpp", "swa_full", True),
    ("llama.cpp", "split_mode", "row"),
    ("llama.cpp", "n_gpu_layers_draft", 3),
    ("llama.cpp", "use_mlock", True),
)


def is_told(field: str, engine: str, asked: dict[str, Any]) -> bool:
    """Whether an answer differs from the plain one, is refused or unknown, or says what becomes of the field."""
    try:
        found = answered(asked)
    except Faults:
        return True
    before = plain(engine)
    if found.verdict == "unknown" or any(f".{field}" in note or f", {field}" in note for note in found.notes):
        return True
    same = all(getattr(found, name) == getattr(before, name) for name in ("gpus", "host", "headroom_bytes", "verdict"))
    same = same and dict(found.limits) == dict(before.limits)
    return not same or any("GPUs are used" in note for note in found.notes)


@pytest.mark.parametrize("engine", INFERENCE_ENGINES)
def test_every_field_changes_the_answer_or_is_told_to_change_nothing(engine) -> None:
    silent = [(field, changed) for field, changed in FIELDS if not is_told(field, engine, document(engine, **changed))]
    assert silent == []


@pytest.mark.parametrize(("engine", "name", "value"), OWN_FIELDS)
def test_an_option_with_nothing_to_do_says_so(engine, name, value) -> None:
    assert is_told(name, engine, document(engine, engine_options={name: value}))


def test_what_is_asked_plainly_needs_no_words() -> None:
    for engine in INFERENCE_ENGINES:
        asked = document(engine)
        del asked["inference"]["max_model_len"]
        assert unused(parse_scenario(asked), llama()[0]) == ()


def test_nothing_is_held_for_tokens_that_nobody_proposes() -> None:
    """``speculation.tokens`` without a method takes no place of a sequence's cache."""
    for engine in ("vllm", "sglang", "tgi"):
        found = answered(document(engine, speculation={"tokens": 64}))
        assert found.headroom_bytes == plain(engine).headroom_bytes


def refused(engine: str, **changed: Any) -> str:
    with pytest.raises(Faults) as caught:
        answered(document(engine, **changed))
    return str(caught.value)


@pytest.mark.parametrize(
    ("engine", "changed", "words"),
    [
        ("transformers", {"kv_cache": "q8_0"}, "inference.kv_cache: transformers has no cache type q8_0"),
        ("transformers", {"parallel": {"pipeline": 2}}, "parallel.pipeline: transformers has no such way"),
        ("transformers", {"parallel": {"data": 2}}, "parallel.data: transformers has no such way"),
        ("transformers", {"parallel": {"sharding": "fsdp"}}, "parallel.sharding: generation shards nothing"),
        ("llama.cpp", {"engine_options": {"n_ctx": 4096}}, "n_ctx: 2200 tokens a request exceed the 1024 cells of a slot"),
        (
            "llama.cpp",
            {"parallel": {"pipeline": 4}, "hardware": {"gpus": 2}},
            "parallel.pipeline: llama.cpp lays layers over all 2",
        ),
        ("llama.cpp", {"parallel": {"sharding": "fsdp"}}, "parallel.sharding: llama.cpp shards nothing"),
        ("tensorrt-llm", {"engine_options": {"version": "newest"}}, "'newest' is no TensorRT-LLM release"),
        ("sglang", {"engine_options": {"version": "main"}}, "'main' is no SGLang release"),
        ("tgi", {"engine_options": {"max_total_tokens": 1024}}, "2200 tokens a request exceed max_model_len 1024"),
        (
            "tgi",
            {"chunked_prefill": False, "prompt_tokens": 6000, "engine_options": {"max_batch_prefill_tokens": 4096}},
            "TGI takes a prompt in one step: 6000 tokens exceed",
        ),
        (
            "tensorrt-llm",
            {"chunked_prefill": False, "engine_options": {"max_num_tokens": 1024}},
            "TensorRT-LLM takes a prompt in one step: 2000 tokens exceed max_num_tokens 1024",
        ),
    ],
)
def test_what_an_engine_refuses_is_refused(engine, changed, words) -> None:
    assert words in refused(engine, **changed)


def test_slots_that_are_given_bound_the_requests_at_once() -> None:
    found = answered(document("llama.cpp", samples=2, engine_options={"n_seq_max": 8}))
    assert found.limits["max_batch"] == 4
    more = answered(document("llama.cpp", batch=9, samples=2, engine_options={"n_seq_max": 8, "n_ctx": 65536}))
    assert "9 requests: the server has slots for 4 at once, the rest wait" in more.notes


def test_blocks_on_a_disk_take_no_memory_and_are_told() -> None:
    on_host, on_disk = (answered(document("vllm", offload={"kv_cache": 0.5, "to": to})) for to in ("cpu", "nvme"))
    assert on_host.host.bytes and not on_disk.host.bytes
    assert any("GiB of cache blocks lie on the disk" in note for note in on_disk.notes)


def test_a_prompt_beyond_a_step_of_tensorrt_llm_asks_for_chunks() -> None:
    long = {"prompt_tokens": 12000, "max_model_len": 16384}
    assert any("enable_chunked_prefill" in note for note in answered(document("tensorrt-llm", **long)).notes)
    assert not any("enable_chunked" in note for note in answered(document("tensorrt-llm", chunked_prefill=True, **long)).notes)
