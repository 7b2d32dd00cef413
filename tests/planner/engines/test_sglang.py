"""SGLang by release: what it keeps free, pools of windowed layers, slots of recurrent states, drafts."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.architecture import read_config
from planner.engines.paged import PageSpec
from planner.engines.sglang.pools import WindowPool
from planner.engines.sglang.releases import RELEASES, release_of, version_of
from planner.engines.sglang.settings import settings_of
from planner.formats import native_format
from planner.machine import overheads
from planner.predict import predict
from planner.scenario import Scenario, parse_scenario
from planner.units import GIB, MIB
from resources.catalog import catalog_model
from resources.gpus import gpu

H200, L4 = "H200 SXM 141GB", "L4"
LLAMA, GPT_OSS, QWEN, SPARSE = "meta-llama/Llama-3.1-8B", "openai/gpt-oss-20b", "Qwen/Qwen3.5-9B", "deepseek-ai/DeepSeek-V3.2"


@cache
def model(name: str):
    config = dict(catalog_model(name).config)
    return read_config(config), native_format(config)


def asked(name: str, version: str, card: str = H200, gpus: int = 1, **work: object) -> Scenario:
    options = {"version": version, **work.pop("engine_options", {})}  # type: ignore[dict-item]
    ask = {"engine": "sglang", "prompt_tokens": 1000, "new_tokens": 100, **work, "engine_options": options}
    spread = {"hardware": {"gpu": card, "gpus": gpus}, "parallel": {"tensor": gpus}}
    return parse_scenario({"model": name, "task": "inference", "inference": ask, **spread})


def answer(name: str, version: str, card: str = H200, gpus: int = 1, **work: object):
    return predict(asked(name, version, card, gpus, **work), model(name)[0], gpu(card), model(name)[1])


def engine(name: str, version: str, **work: object) -> dict:
    return answer(name, version, **work).extra["engine"]


def permille(name: str, version: str, card: str = H200, **work: object) -> float:
    found = gpu(card)
    settled, _ = settings_of(asked(name, version, card, **work), model(name)[0], found, found.capacity_bytes)
    parts, whole = settled.parts
    return 1000 * parts / whole


def kept_free(name: str, version: str, card: str = H200, **work: object) -> int:
    total = gpu(card).capacity_bytes / MIB
    return round(total - permille(name, version, card, **work) / 1000 * total, -2)


def test_releases_are_told_in_order_and_a_release_takes_the_newest_that_is_not_newer() -> None:
    starts = [release.since for release in RELEASES]
    assert starts == sorted(set(starts))
    assert release_of(version_of("v0.5.13.post1")).since == (0, 5, 11)
    assert release_of(version_of(None)) is RELEASES[-1]


@pytest.mark.parametrize(
    ("version", "card", "kept"),
    [
        ("0.5.3", L4, 512 + 3072 + 32 + 128), ("0.5.9", L4, 512 + 3072 + 48 + 128),
        ("0.5.13", L4, 512 + 3072 + 48 + 128 + 8 * 42), ("0.5.23", L4, 512 + 6144 + 96 + 128 + 8 * 50),
        ("0.5.9", H200, 512 + 12288 + 512 + 128), ("0.5.23", H200, 512 + 12288 + 512 + 128 + 8 * 58),
    ],
)  # fmt: skip
def test_what_stays_free_follows_the_release(version, card, kept) -> None:
    """Chunk · 1.5 MiB, captured batch · 2 MiB, and from 0.5.10 on 8 MiB for each captured length of a prefill."""
    total = gpu(card).capacity_bytes / MIB
    assert permille(LLAMA, version, card) == round(1000 * round((total - kept) / total, 3))


def test_prefills_are_captured_by_those_who_can() -> None:
    """Latent attention takes 1.5 GiB for its graphs; adapters and towers keep prefills from being captured."""
    free = {name: kept_free("deepseek-ai/DeepSeek-V2-Lite", version) for name, version in (("old", "0.5.9"), ("new", "0.5.23"))}
    assert free["new"] - free["old"] == pytest.approx(1536, abs=150)
    with_adapters = permille(LLAMA, "0.5.13", adapters={"count": 2, "rank": 16})
    assert with_adapters == permille(LLAMA, "0.5.9") > permille(LLAMA, "0.5.13")
    assert permille("google/gemma-3-4b-it", "0.5.23") == permille("google/gemma-3-4b-it", "0.5.9")


def test_windowed_layers_have_a_pool_of_four_fifths() -> None:
    """0.5.8's ``set_num_tokens_hybrid_swa``: memory / (F · full + 0.8 · S · windowed) tokens; 12 and 12 layers of gpt-oss."""
    before, since = engine(GPT_OSS, "0.5.7"), engine(GPT_OSS, "0.5.8")
    assert since["kv_tokens"] / before["kv_tokens"] == pytest.approx(24 / (12 + 0.8 * 12), rel=1e-4)
    assert since["kv_cache_bytes"] == pytest.approx(before["kv_cache_bytes"], rel=1e-4)
    half = engine(GPT_OSS, "0.5.8", engine_options={"swa_full_tokens_ratio": 0.5})
    assert half["kv_tokens"] / before["kv_tokens"] == pytest.approx(24 / (12 + 0.5 * 12), rel=1e-4)
    proposing = {"speculation": {"method": "eagle", "tokens": 3, "draft_parameters": 10**8}}
    assert engine(GPT_OSS, "0.5.9", **proposing)["block_tokens"] == 1


def test_a_sequence_within_its_window_is_bound_by_the_windows_pool() -> None:
    """128 tokens lie in both pools, of which the windows' has four for every five."""
    pool = WindowPool((PageSpec("full", 5, 10),), 10, 1000, window=PageSpec("window", 4, 0, 128))
    assert pool.sequence_blocks(100, 8192) == 25
    assert pool.sequence_blocks(5000, 8192) == 1000
    assert pool.tokens == 5000


@settings(max_examples=100)
@given(st.integers(1, 5000), st.integers(1, 3000), st.integers(1, 4000))
def test_the_longest_sequence_of_two_pools_fits_and_the_next_does_not(window: int, blocks: int, limit: int) -> None:
    pool = WindowPool((PageSpec("full", 5, 10),), 10, blocks, window=PageSpec("window", 4, 0, window))
    longest = pool.longest(limit, 2048)
    assert longest == limit or pool.sequence_blocks(longest + 1, 2048) > blocks
    assert longest == 0 or pool.sequence_blocks(longest, 2048) <= blocks


def test_states_share_the_memory_with_the_tokens() -> None:
    """``mamba_full_memory_ratio`` 0.9: states : tokens; a request takes five slots from 0.5.14 on, three before."""
    for version, each in (("0.5.9", 3), ("0.5.23", 5)):
        found = answer(QWEN, version)
        held = found.gpus[0].phases[-1].components
        assert held["recurrent_state"] / held["kv_cache"] == pytest.approx(0.9, rel=0.005)
        term = next(term for term in found.terms if term.component == "recurrent_state")
        slots = int(term.values["slots"]) - (version == "0.5.23")
        assert found.limits["max_batch"] == slots // each
    told = answer(QWEN, "0.5.23", engine_options={"max_mamba_cache_size": 100})
    assert next(term for term in told.terms if term.component == "recurrent_state").values["slots"] == 101


def test_layers_that_share_a_cache_have_buffers_of_their_own() -> None:
    """Gemma 3n's last layers read an earlier layer's keys, and their pool is there all the same."""
    figures = engine("google/gemma-3n-E4B-it", "0.5.23")
    assert figures["kv_cache_bytes"] == figures["kv_tokens"] * 35 * 2 * 2 * 256 * 2


def test_drafts_are_loaded_after_the_pool_until_they_are_counted() -> None:
    """Before 0.5.14 the pool is as large as without a draft on the same share; since, weights and cache come off it."""
    draft = {"speculation": {"method": "draft", "tokens": 4, "draft": dict(catalog_model("meta-llama/Llama-3.2-1B").config)}}
    share = {"engine_options": {"mem_fraction_static": 0.8}}
    for version, same in (("0.5.9", True), ("0.5.23", False)):
        plain, proposing = engine(LLAMA, version, **share), engine(LLAMA, version, **share, **draft)
        assert (plain["kv_tokens"] == proposing["kv_tokens"]) == same
        assert proposing["weights_bytes"] - plain["weights_bytes"] == 2 * 1235814400
    plain, proposing = engine(LLAMA, "0.5.23", **share), engine(LLAMA, "0.5.23", **share, **draft)
    room = plain["kv_cache_bytes"] - 2 * 1235814400
    assert proposing["kv_tokens"] == pytest.approx(room / (131072 * (1 + 16 / 32)), rel=1e-4)


def test_sparse_latents_are_cached_in_fp8_on_blackwell() -> None:
    spread = {"gpus": 8}
    hopper, blackwell, told = (
        answer(SPARSE, "0.5.23", card=card, kv_cache=kind, **spread).extra["engine"]
        for card, kind in ((H200, "auto"), ("B200", "auto"), ("B200", "bf16"))
    )
    sizes = [each["kv_cache_bytes"] / each["kv_tokens"] for each in (hopper, blackwell, told)]
    assert sizes == [61 * (576 * 2 + 132), 61 * (656 + 132), 61 * (576 * 2 + 132)]


def test_a_tower_keeps_room_for_embeddings() -> None:
    share = {"engine_options": {"mem_fraction_static": 0.8}}
    before, since = (engine("google/gemma-3-4b-it", version, **share)["kv_cache_bytes"] for version in ("0.5.16", "0.5.18"))
    assert before - since == pytest.approx(100 * MIB, abs=MIB)
    assert overheads(gpu(H200)).context_bytes < GIB
