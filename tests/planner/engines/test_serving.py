"""Serving engines: published logs, what they refuse, and the rules their answers keep."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import cache
from pathlib import Path
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.architecture import read_config
from planner.engines.paged import PageSpec, Pool
from planner.engines.sglang.settings import default_permille, tower_share
from planner.engines.shares import share_of
from planner.faults import Faults
from planner.footprint import HOST, OUTSIDE_ALLOCATED, Footprint
from planner.formats import native_format
from planner.predict import predict
from planner.scenario import parse_scenario, to_json
from planner.units import GIB
from resources.catalog import catalog_model
from resources.gpus import gpu

REPORT = Path(__file__).parents[2] / "accuracy" / "serving.py"
ENGINES = ("vllm", "sglang", "tensorrt-llm", "tgi")
CARD = "H100 SXM5 80GB"
LLAMA = "meta-llama/Llama-3.1-8B"


@cache
def report():
    spec = importlib.util.spec_from_file_location("serving_accuracy", REPORT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def published() -> tuple:
    """Every mapped row with our figure alone: the estimators beside it take torch to import."""
    module = report()
    found = []
    for row in module.rows():
        mine = module.ours(row) if "plan" in row else None
        if mine is not None:
            found.append((row, mine / (row["value"] * module.UNITS[row["unit"]]) - 1))
    return tuple(found)


@cache
def model(name: str):
    return read_config(dict(catalog_model(name).config)), native_format(dict(catalog_model(name).config))


def footprint(name: str = LLAMA, *, parallel=None, hardware=None, weights="native", offload=None, **inference) -> Footprint:
    document = {
        "version": 1, "model": name, "task": "inference", "weights": weights,
        "inference": {"engine": "vllm", "prompt_tokens": 1024, "new_tokens": 128, "max_model_len": 8192} | inference,
        "hardware": {"gpu": CARD} | (hardware or {}), "parallel": parallel or {}, "offload": offload or {},
    }  # fmt: skip
    scenario = parse_scenario(document)
    architecture, native = model(name)
    return predict(scenario, architecture, gpu(scenario.hardware.gpu), native)


def refused(name: str = LLAMA, **asked) -> str:
    with pytest.raises(Faults) as caught:
        footprint(name, **asked)
    return str(caught.value)


def errors(component: str) -> list[float]:
    return [error for row, error in published() if report().COMPONENTS[row["what"]] == component and row["engine"] == "vllm"]


@pytest.mark.parametrize(
    ("component", "bar"), [("weights", 0.01), ("kv memory", 0.05), ("kv tokens", 0.08), ("activations", 0.15), ("libraries", 0.05)]
)
def test_published_vllm_logs_are_met(component, bar):
    found = errors(component)
    assert len(found) >= 9
    assert mean(map(abs, found)) < bar


def test_weights_and_pools_of_0_19_are_met_row_by_row():
    """Rounded to two decimals in the log; the pool within a hundredth of a GiB in sixty."""
    close = [
        (row["id"], error)
        for row, error in published()
        if row["release"] == "0.19.0" and row["what"] in ("kv_cache_bytes", "kv_tokens")
    ]
    assert len(close) == 14
    assert all(abs(error) < 3e-4 for _, error in close), close


def test_a_hybrid_model_with_cached_states_is_met_to_the_token():
    assert next(error for row, error in published() if row["id"] == "m0112") == 0


def test_states_follow_the_release_and_the_cached_prefixes():
    """Nemotron-H's states are fp32 from 0.20 on, so that attention's blocks double; with cached prefixes every block, a multiple
    of the kernel's chunk of 128 tokens, keeps one."""
    name = "nvidia/NVIDIA-Nemotron-Nano-9B-v2"
    blocks = {
        version: footprint(name, engine_options={"version": version, "enable_prefix_caching": prefixes}).extra["engine"][
            "block_tokens"
        ]
        for version, prefixes in (("0.19.0", False), ("0.20.0", False), ("0.33.0", True))
    }
    assert blocks == {"0.19.0": 672, "0.20.0": 1312, "0.33.0": 1408}
    held = [
        footprint(name, max_model_len=limit, engine_options={"enable_prefix_caching": True}).extra["engine"]["max_concurrency"]
        for limit in (14080, 28160)
    ]
    assert held[0] == pytest.approx(2 * held[1], rel=1e-3)


def test_proposed_tokens_keep_states_of_their_own():
    asked = {"method": "mtp", "tokens": 3}
    found = [
        footprint(
            "Qwen/Qwen3.6-35B-A3B", weights="fp8", hardware={"gpu": "H200 SXM 141GB"}, speculation=speculation,
            engine_options={"enable_prefix_caching": False, "kv_cache_memory_bytes": 2**33},
        )
        for speculation in ({"method": "none"}, asked)
    ]  # fmt: skip
    plain, proposing = (one.extra["engine"]["max_concurrency"] for one in found)
    assert proposing < plain / 2


def test_what_a_towers_own_forward_takes_is_said_to_be_missing():
    notes = [footprint(name).notes for name in ("Qwen/Qwen2.5-VL-7B-Instruct", LLAMA)]
    assert [any("tower's outputs" in note for note in told) for told in notes] == [True, False]


def test_the_sampler_before_v1_sorts_all_logits_too():
    assert max(abs(error) for row, error in published() if row["id"] in ("m0084", "m0085")) < 0.001


def test_every_unmapped_row_says_why():
    assert all(row.get("unmapped") or row.get("plan") for row in report().rows())


@pytest.mark.parametrize("engine", ENGINES)
def test_components_add_up_in_every_phase(engine):
    """Σ components = device; without what is outside torch they are allocated."""
    parallel = {"tensor": 4} if engine == "tgi" else {"tensor": 2, "pipeline": 2}
    found = footprint(engine=engine, parallel=parallel, hardware={"gpus": 4})
    assert [one.index for one in found.gpus] == [0, 1, 2, 3]
    for one in found.gpus:
        for phase in one.phases:
            assert sum(phase.components.values()) == phase.device
            inside = sum(size for name, size in phase.components.items() if name not in OUTSIDE_ALLOCATED)
            assert inside == phase.allocated <= phase.reserved <= phase.device


@pytest.mark.parametrize("engine", ENGINES)
def test_every_figure_has_a_term_of_its_size(engine):
    found = footprint(engine=engine)
    decode = found.gpus[0].phases[-1].components
    for component in ("weights", "kv_cache"):
        assert [term.bytes for term in found.terms if term.component == component] == [decode[component]]


@pytest.mark.parametrize("engine", [*ENGINES, "llama.cpp"])
def test_terms_open_every_component_of_every_gpu_to_its_byte(engine):
    """Σ terms that tell of a phase on a GPU = the component there; those of the host are its own."""
    parallel = {} if engine == "llama.cpp" else {"tensor": 2, "pipeline": 1 if engine == "tgi" else 2, "data": 2}
    offload = {} if engine in ("tgi", "tensorrt-llm") else {"weights": 0.25}
    found = footprint(engine=engine, parallel=parallel, hardware={"gpus": 8}, weights="bf16", offload=offload, adapters={
        "count": 0 if engine == "llama.cpp" else 2,
    })  # fmt: skip
    for card in found.gpus:
        for phase in card.phases:
            for component, size in phase.components.items():
                terms = [
                    term.bytes for term in found.terms if term.component == component and term.tells_of(phase.name, card.index)
                ]
                assert sum(terms) == size, (engine, card.index, phase.name, component)
    kept = [term for term in found.terms if term.gpu == HOST]
    assert sum(term.bytes for term in kept) == found.host.bytes > 0 or not offload


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=12)
@given(batch=st.integers(1, 400), more=st.integers(1, 400), prompt=st.integers(1, 4000))
def test_more_requests_or_longer_ones_never_leave_more_room(engine, batch, more, prompt):
    """headroom falls with batch and context; the pool itself does not move."""
    few = footprint(engine=engine, batch=batch, prompt_tokens=prompt)
    many = footprint(engine=engine, batch=batch + more, prompt_tokens=prompt)
    longer = footprint(engine=engine, batch=batch, prompt_tokens=prompt + more)
    assert few.headroom_bytes > many.headroom_bytes
    assert few.headroom_bytes >= longer.headroom_bytes
    assert few.limits["kv_tokens"] == many.limits["kv_tokens"] > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_the_largest_batch_fits_and_one_more_does_not(engine):
    limit = footprint(engine=engine).limits["max_batch"]
    extra = {"max_num_seqs": 1024} if engine == "vllm" else {}
    at, over = (footprint(engine=engine, batch=limit + step, engine_options=extra) for step in (0, 1))
    assert at.verdict in ("fits", "tight")
    assert at.headroom_bytes >= 0
    assert over.headroom_bytes < at.headroom_bytes


def test_a_length_that_the_pool_cannot_hold_does_not_fit():
    found = footprint("Qwen/Qwen3-32B", max_model_len=40960, engine_options={"version": "0.19.0"})
    assert found.verdict == "does_not_fit"
    assert any("refuses to start" in note for note in found.notes)
    held = found.limits["max_context"]
    assert 0 < held < 40960
    assert footprint("Qwen/Qwen3-32B", max_model_len=held, engine_options={"version": "0.19.0"}).verdict != "does_not_fit"


def test_verdict_is_tight_when_the_band_decides():
    options = {"version": "0.19.0"}
    held = footprint("Qwen/Qwen3-32B", max_model_len=40960, engine_options=options).limits["max_context"]
    assert footprint("Qwen/Qwen3-32B", max_model_len=held, engine_options=options).verdict == "tight"
    assert footprint("Qwen/Qwen3-32B", max_model_len=2048, engine_options=options).verdict == "fits"


def test_a_share_that_the_context_leaves_no_room_for_is_refused_at_the_start():
    found = footprint(engine_options={"gpu_memory_utilization": 1.0})
    assert found.verdict == "does_not_fit"
    assert any("use at most 0.99" in note for note in found.notes)


def test_requests_beyond_the_servers_own_limit_wait():
    found = footprint(batch=600, prompt_tokens=64, engine_options={"max_num_seqs": 512})
    assert found.verdict == "fits"
    assert any("runs 512 at once" in note for note in found.notes)


def test_weights_larger_than_the_card_leave_no_pool():
    found = footprint("meta-llama/Llama-3.1-70B")
    assert found.verdict == "does_not_fit"
    assert found.limits["kv_tokens"] == 0


def test_the_latent_cache_is_the_same_on_every_rank():
    name = "deepseek-ai/DeepSeek-V2-Lite"
    one, two = (footprint(name, parallel={"tensor": ways}, hardware={"gpus": ways}) for ways in (1, 2))
    block = [next(term.values["block_bytes"] for term in found.terms if term.component == "kv_cache") for found in (one, two)]
    assert block[0] == block[1] == 27 * 64 * 576 * 2


def test_key_value_heads_are_divided_among_ranks_until_there_is_one():
    blocks = [
        next(
            term.values["block_bytes"]
            for term in footprint(parallel={"tensor": ways}, hardware={"gpus": ways}).terms
            if term.component == "kv_cache"
        )
        for ways in (1, 4, 8, 16)
    ]
    assert [blocks[0] // block for block in blocks] == [1, 4, 8, 8]


def test_a_cache_in_fp8_holds_twice_the_tokens():
    plain, narrow = (footprint(kv_cache=kind, engine_options={"version": "0.19.0"}).limits["kv_tokens"] for kind in ("auto", "fp8"))
    assert narrow // 2 == pytest.approx(plain, abs=16)


def test_data_parallel_replicas_each_bring_a_pool():
    one = footprint()
    two = footprint(parallel={"data": 2}, hardware={"gpus": 2})
    assert len(two.gpus) == 2
    assert two.limits["kv_tokens"] == 2 * one.limits["kv_tokens"]


def test_graphs_come_off_the_pool_only_where_the_release_says_so():
    pool = {
        version: footprint(engine_options={"version": version, "gpu_memory_utilization": 0.9}) for version in ("0.19.0", "0.20.0")
    }
    eager = footprint(engine_options={"version": "0.20.0", "gpu_memory_utilization": 0.9, "enforce_eager": True})
    assert pool["0.20.0"].limits["kv_tokens"] < pool["0.19.0"].limits["kv_tokens"]
    assert eager.limits["kv_tokens"] == pool["0.19.0"].limits["kv_tokens"]


def test_the_sampler_of_older_releases_takes_more():
    def activations(version: str) -> int:
        return footprint(engine_options={"version": version}).gpus[0].phases[1].components["activations"]

    rows = 1024 * 128256 * 4
    assert activations("0.16.0") - activations("0.17.0") == 6 * rows - 132 * 128256 * 4


def test_a_shared_prefix_is_held_once():
    plain, shared = (footprint(batch=200, shared_prefix=share) for share in (0.0, 0.5))
    blocks = (shared.headroom_bytes - plain.headroom_bytes) // (16 * 131072)
    assert blocks == 199 * (512 // 16)


def test_samples_share_their_prompt():
    one, four = (footprint(samples=count) for count in (1, 4))
    blocks = (one.headroom_bytes - four.headroom_bytes) // (16 * 131072)
    assert blocks == 3 * (128 // 16)


@pytest.mark.parametrize(("history", "tokens"), [("keep", 4 * 1152), ("summarise", 1152 + 300), ("retrieve", 1152 + 300)])
def test_conversations_grow_by_what_is_kept(history, tokens):
    found = footprint(conversation={"turns": 4, "history": history, "kept_tokens": 300})
    alone = footprint(prompt_tokens=tokens - 128)
    assert found.headroom_bytes == alone.headroom_bytes


def test_ranks_cut_the_adapters_of_what_they_cut():
    """One layer of Llama on two ranks: inputs of what is cut by output are whole, outputs of what is cut by input are."""
    widths = (4096 + 2048) + 2 * (4096 + 512) + (2048 + 4096) + 2 * (4096 + 7168) + (7168 + 4096)
    found = footprint(adapters={"count": 1, "rank": 8}, parallel={"tensor": 2}, hardware={"gpus": 2})
    assert found.gpus[1].phases[0].components["adapters"] == 8 * widths * 32 * 2


def test_routed_experts_have_slots_of_their_own_since_the_release_that_serves_them():
    held = [
        footprint(
            "Qwen/Qwen3-30B-A3B", weights="fp8", adapters={"count": 1, "rank": 8}, engine_options={"version": version}
        ).gpus[0].phases[0].components["adapters"]
        for version in ("0.11.0", "0.11.1")
    ]  # fmt: skip
    assert held[1] - held[0] == 48 * 128 * 3 * 8 * (2048 + 768) * 2


def test_adapters_take_their_slots_up_front():
    """rank · (in + out) · 2 bytes for seven matrices of 32 layers."""
    found = footprint(adapters={"count": 3, "rank": 8})
    widths = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)
    assert found.gpus[0].phases[0].components["adapters"] == 3 * 8 * widths * 32 * 2


def test_a_draft_model_takes_weights_and_cache():
    draft = dict(catalog_model("meta-llama/Llama-3.2-1B").config)
    plain, with_draft = footprint(), footprint(speculation={"method": "draft", "tokens": 4, "draft": draft})
    assert with_draft.gpus[0].phases[0].components["weights"] - plain.gpus[0].phases[0].components["weights"] == 1235814400 * 2
    assert with_draft.limits["kv_tokens"] < plain.limits["kv_tokens"]


def test_look_ups_by_n_gram_cost_no_memory():
    assert footprint(speculation={"method": "ngram", "tokens": 4}).limits["kv_tokens"] == footprint().limits["kv_tokens"]


def test_weights_on_the_host_make_room_for_the_pool():
    plain, spread = footprint(), footprint(offload={"weights": 0.5})
    assert spread.host.bytes == pytest.approx(plain.gpus[0].phases[0].components["weights"] / 2, rel=1e-6)
    assert spread.limits["kv_tokens"] > plain.limits["kv_tokens"]


def test_blocks_on_the_host_are_beside_the_pool():
    """A third of all blocks on the host is half as much as the GPU's pool; the pool itself stays."""
    plain, spread = footprint(), footprint(offload={"kv_cache": 1 / 3})
    assert spread.host.components["kv_cache"] == pytest.approx(plain.gpus[0].phases[1].components["kv_cache"] / 2, rel=1e-6)
    assert spread.gpus == plain.gpus


def test_v0_pins_host_memory_to_swap_to():
    """``swap_space`` GiB for each GPU, 4 by default, before V1."""
    old = {"version": "0.6.4"}
    two = {"parallel": {"tensor": 2}, "hardware": {"gpus": 2}}
    assert footprint(engine_options=old, **two).host.components == {"kv_cache": 8 * 2**30}
    assert footprint(engine_options=old | {"swap_space": 1.5}).host.bytes == 3 * 2**29
    assert footprint().host.bytes == 0


def test_a_prompt_in_one_step_takes_a_longer_step():
    plain, whole = footprint(max_model_len=32768), footprint(max_model_len=32768, chunked_prefill=False)
    activations = [found.gpus[0].phases[1].components["activations"] for found in (plain, whole)]
    assert activations[0] < activations[1]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"parallel": {"tensor": 3}, "hardware": {"gpus": 3}}, "parallel.tensor: 3 does not divide the 32 attention heads"),
        ({"parallel": {"tensor": 2}}, "hardware.gpus: 2 · 1 · 1 ranks need 2 GPUs"),
        ({"max_model_len": 200_000}, "inference.max_model_len: vLLM refuses 200000"),
        ({"prompt_tokens": 9000}, "inference.prompt_tokens: 9128 tokens a request exceed max_model_len 8192"),
        ({"kv_cache": "q8_0"}, "inference.kv_cache: vLLM has no cache type q8_0"),
        ({"weights": "fp8", "hardware": {"gpu": "V100 SXM2 32GB"}}, "compute capability 7.5"),
        (
            {"weights": "fp8", "hardware": {"gpu": "T4"}, "engine_options": {"version": "0.11.0"}},
            "vLLM runs fp8 from compute capability 8.0 on",
        ),
        ({"kv_cache": "fp32"}, "inference.kv_cache: vLLM has no cache type fp32"),
        ({"engine": "llama.cpp", "weights": "bf16", "kv_cache": "nvfp4"}, "llama.cpp has no cache type nvfp4"),
        ({"engine": "tensorrt-llm", "weights": "mxfp4", "hardware": {"gpu": "T4"}}, "from compute capability 8.0 on"),
        ({"weights": "gguf:Q4_K_M"}, "weights: vLLM cannot run gguf"),
        ({"parallel": {"expert": 2, "tensor": 2}, "hardware": {"gpus": 2}}, "parallel.expert: the model has no experts"),
        ({"parallel": {"context": 2}, "hardware": {"gpus": 2}}, "parallel.context"),
        ({"engine_options": {"version": "latest"}}, "is no vLLM release"),
        ({"speculation": {"method": "mtp"}}, "no multi-token-prediction modules"),
        ({"engine": "tensorrt-llm", "weights": "nf4"}, "weights: TensorRT-LLM cannot run nf4"),
        ({"engine": "tgi", "weights": "nvfp4"}, "weights: TGI cannot run nvfp4"),
        ({"engine": "tgi", "parallel": {"pipeline": 2}, "hardware": {"gpus": 2}}, "parallel.pipeline: TGI shards every layer"),
        ({"engine": "tgi", "parallel": {"tensor": 16}, "hardware": {"gpus": 16}}, "num_shard to divide the 8 key-value heads"),
        ({"engine": "sglang", "kv_cache": "int8"}, "SGLang has no cache type int8"),
        ({"engine": "tgi", "offload": {"weights": 0.5}}, "offload.weights: TGI has no way to keep weights on the host"),
        ({"engine": "tensorrt-llm", "offload": {"weights": 0.5}}, "offload.weights: TensorRT-LLM has no way"),
        ({"offload": {"kv_cache": 1.0}}, "offload.kv_cache: vLLM computes on blocks of the GPU's pool"),
        ({"offload": {"optimizer": 0.5}}, "offload.optimizer: a served model has no optimizer"),
        ({"engine": "tgi", "speculation": {"method": "eagle", "draft_parameters": 10**9}}, "TGI proposes no tokens by eagle"),
        (
            {"chunked_prefill": False, "engine_options": {"max_num_batched_tokens": 2048}},
            "inference.chunked_prefill: without chunked prefill vLLM takes a prompt in one step: 8192 tokens exceed",
        ),
    ],
)
def test_nonsense_is_refused_with_the_reason(asked, words):
    assert words in refused(**asked)


def test_latent_attention_keeps_copies_of_its_up_projection_to_decode_with():
    """vLLM turns an fp8 projection back into 16 bit: 61 layers · 16 heads · 256 · 512 values on each of eight ranks; views of
    a 16-bit one take nothing. SGLang copies it in any case, TGI never."""
    values = 16 * 256 * 512
    whole, half = ({"gpu": "H200 SXM 141GB", "gpus": gpus} for gpus in (1, 8))
    v3 = {
        engine: footprint("deepseek-ai/DeepSeek-V3", engine=engine, hardware=half, parallel={"tensor": 8}).extra["engine"]
        for engine in ("vllm", "sglang", "tgi")
    }
    assert v3["vllm"]["weights_bytes"] - v3["tgi"]["weights_bytes"] == 61 * values * 2
    assert v3["sglang"]["weights_bytes"] - v3["tgi"]["weights_bytes"] == 61 * values
    lite = {
        engine: footprint("deepseek-ai/DeepSeek-V2-Lite", engine=engine, hardware=whole).extra["engine"]["weights_bytes"]
        for engine in ("vllm", "sglang", "tgi")
    }
    assert lite["vllm"] == lite["tgi"]
    assert lite["sglang"] - lite["tgi"] == 27 * values * 2


def test_tgi_caches_latent_attention_with_its_heads_expanded():
    """2 · 27 layers · 16 heads · 192 · 2 bytes a token, in blocks of 256: what its code pads keys and values to."""
    found = footprint("deepseek-ai/DeepSeek-V2-Lite", engine="tgi")
    figures = found.extra["engine"]
    assert figures["block_tokens"] == 256
    assert figures["kv_cache_bytes"] == figures["kv_tokens"] * 2 * 27 * 16 * 192 * 2


def test_tgi_settles_its_prefill_by_the_card_and_the_model():
    """900 TFLOP/s as its launcher has it for an H100, over 2 · 32 · (4096 · 128 · (3 · 32 + 2 · 8) + 3 · 4096 · 14336)."""
    told = next(note for note in footprint(engine="tgi").notes if "max_batch_prefill_tokens" in note)
    assert "max_batch_prefill_tokens: 59870," in told


@pytest.mark.parametrize("engine", ["vllm", "tgi"])
def test_latent_attention_refuses_cache_types_without_a_kernel(engine):
    assert "MLA" in refused("deepseek-ai/DeepSeek-V2-Lite", engine=engine, kv_cache="fp8_e5m2")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"weights": "gguf:Q4_K_M", "engine_options": {"version": "0.11.0"}}, "gguf:Q4_K_M under vLLM has no closed form yet"),
        ({"weights": "gguf:Q4_K_M", "engine": "sglang"}, "gguf:Q4_K_M under SGLang has no closed form yet"),
        ({"kv_cache": "turboquant_k8v4"}, "vLLM's pages of turboquant_k8v4 have no closed form yet"),
        ({"name": "zai-org/GLM-4.7-Flash", "engine": "tgi"}, "TGI 3.3 has no code of its own for glm4_moe_lite"),
    ],
)
def test_what_runs_but_is_not_derived_is_unknown(asked, words):
    found = footprint(**asked)
    assert found.verdict == "unknown"
    assert any(words in note for note in found.notes)


def test_latent_entries_are_expanded_for_as_many_tokens_as_the_server_may_meet():
    """8 requests of 4096 tokens, or 65536 at most: 16 heads of 128 + 128 values each, beside the step's own 2048 tokens."""
    options = {"max_num_seqs": 64, "max_num_batched_tokens": 2048}
    for limit, expanded in ((4096, 32768), (65536, 65536)):
        found = footprint("deepseek-ai/DeepSeek-V2-Lite", max_model_len=limit, engine_options=options)
        values = next(term.values for term in found.terms if term.component == "activations")
        assert values["widest_layer"] == 2 * (2048 * (16 * (128 + 64) + 512) + expanded * 16 * (128 + 128))


def test_experts_span_all_ranks():
    asked = {"parallel": {"tensor": 4, "expert": 2}, "hardware": {"gpus": 4}}
    assert "all 4 tensor- and data-parallel ranks" in refused("Qwen/Qwen3-30B-A3B", **asked)


def test_all_faults_are_named_at_once():
    found = refused(parallel={"tensor": 3}, kv_cache="fp8", max_model_len=200_000)
    assert {"parallel.tensor", "hardware.gpus", "inference.max_model_len"} <= {line.split(":")[0] for line in found.splitlines()}


def test_serving_concepts_survive_json():
    concepts = {
        "samples": 2, "shared_prefix": 0.25, "chunked_prefill": True, "adapters": {"count": 2, "rank": 32},
        "speculation": {"method": "eagle", "tokens": 3, "draft_parameters": 1000},
        "conversation": {"turns": 3, "history": "retrieve"},
    }  # fmt: skip
    scenario = parse_scenario({"version": 1, "model": LLAMA, "task": "inference", "inference": {"engine": "vllm", **concepts}})
    assert parse_scenario(json.loads(json.dumps(to_json(scenario)))) == scenario


def test_bad_serving_concepts_are_named():
    bad = {
        "samples": 0,
        "shared_prefix": 2,
        "speculation": {"method": "draft"},
        "adapters": {"rang": 1},
        "conversation": {"turns": 0},
    }
    with pytest.raises(Faults) as caught:
        parse_scenario({"version": 1, "model": LLAMA, "task": "inference", "inference": bad})
    paths = {fault.path for fault in caught.value.faults}
    assert {
        "inference.samples", "inference.shared_prefix", "inference.speculation.draft", "inference.adapters.rang",
        "inference.conversation.turns",
    } <= paths  # fmt: skip


def test_sglangs_fraction_is_its_own_estimate():
    assert default_permille("0.4.6", 48 * 2**30, 1, 8192, 160) == 880
    assert default_permille("0.4.6", 48 * 2**30, 8, 8192, 160) == 810
    kept = 512 + 3072 + 32 + 128
    assert default_permille("0.5.3", 24 * 2**30, 1, 2048, 16) == round(1000 * round((24576 - kept) / 24576, 3))


@settings(max_examples=300)
@given(st.integers(2**20, 2**40), st.integers(1, 1000).map(lambda permille: permille / 1000))
def test_a_share_is_the_engines_own_to_a_byte(size, fraction) -> None:
    """⌊size · fraction⌋ of the fraction as written; int(size · fraction) in floats is at most a byte away."""
    found = share_of(size, fraction)
    assert found == size * round(1000 * fraction) // 1000
    assert abs(found - int(size * fraction)) <= 1


@settings(max_examples=300)
@given(st.integers(8 * 2**30, 400 * 2**30), st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from([2048, 4096, 8192, 16384]))
def test_sglangs_default_share_is_rounded_as_it_rounds(capacity, ranks, chunk) -> None:
    """``mem_fraction_static``: (total - kept) / total in MiB, to three digits."""
    total = capacity / 2**20
    kept = 512 + chunk * 1.5 + 160 * 2 + ranks / 8 * 1024
    kept = max(kept, 10 * 1024) if total > 60 * 1024 else kept
    assert default_permille("0.5.3", capacity, ranks, chunk, 160) == round(1000 * round(max(0, total - kept) / total, 3))


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(["full", "window", "state"]), min_size=1, max_size=4),
    st.sampled_from([16, 32]),
    st.integers(1, 4000),
    st.integers(0, 5000),
    st.integers(1, 60_000),
)
def test_the_longest_sequence_fits_and_the_next_does_not(kinds, tokens, window, blocks, limit) -> None:
    groups = tuple(PageSpec(kind, tokens, 1, window) for kind in kinds)
    pool = Pool(groups, 1, blocks)
    longest = pool.longest(limit, 2048)
    assert longest == limit or pool.sequence_blocks(longest + 1, 2048) > blocks
    assert longest == 0 or pool.sequence_blocks(longest, 2048) <= blocks


@pytest.mark.parametrize("engine", ENGINES)
def test_limits_agree_with_the_verdict(engine):
    """No batch fits a server that refuses to start; the longest context holds all requests, and one token more does not.

    SGLang and TensorRT-LLM start with a pool shorter than their longest request, and refuse such requests instead.
    """
    narrow = {"chunked_prefill_size": 2048} if engine == "sglang" else {}
    alone = footprint(engine=engine, hardware={"gpu": "L4"}, max_model_len=131072, prompt_tokens=1024, engine_options=narrow)
    starts = engine in ("sglang", "tensorrt-llm")
    assert (alone.verdict != "does_not_fit", alone.limits["max_batch"] > 0) == (starts, starts)
    assert starts == any("longer requests are refused" in note for note in alone.notes)
    longest = footprint(engine=engine, batch=8, max_model_len=131072).limits["max_context"]
    at, over = (
        footprint(engine=engine, batch=8, max_model_len=131072, prompt_tokens=longest - 128 + step, new_tokens=128)
        for step in (0, 1)
    )
    assert 8192 < longest < 131072
    assert (at.verdict in ("fits", "tight"), over.verdict) == (True, "does_not_fit")


def test_slots_of_states_that_follow_the_batch_bound_it():
    """TensorRT-LLM keeps a state for each sequence, so that the pool shrinks with the batch."""
    ask = {"engine": "tensorrt-llm", "prompt_tokens": 1024, "hardware": {"gpu": "L4"}}
    batch = footprint("nvidia/NVIDIA-Nemotron-Nano-9B-v2", **ask).limits["max_batch"]
    at, over = (footprint("nvidia/NVIDIA-Nemotron-Nano-9B-v2", batch=batch + step, **ask) for step in (0, 1))
    assert (at.verdict in ("fits", "tight"), over.verdict) == (True, "does_not_fit")


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm"])
def test_prediction_modules_are_held_and_cached_as_the_model_is(engine):
    """A module of DeepSeek-V3 is a sparse layer in fp8 as the model's, joined by a copied matrix, and caches one latent more."""
    spread = {
        "parallel": {"tensor": 8},
        "hardware": {"gpus": 8, "gpu": "H200 SXM 141GB"},
        "max_model_len": 4096,
        "prompt_tokens": 512,
    }
    plain, proposing = (
        footprint("deepseek-ai/DeepSeek-V3", engine=engine, speculation={"method": method, "tokens": tokens}, **spread)
        for method, tokens in (("none", 0), ("mtp", 1))
    )
    more = [found.gpus[0].phases[0].components["weights"] for found in (plain, proposing)]
    joined = 8 * 2 * 2 * 7168**2
    assert 8 * (more[1] - more[0]) - joined == pytest.approx(10.7e9, rel=0.02)
    block = [
        next(term.values["block_bytes"] for term in found.terms if term.component == "kv_cache") for found in (plain, proposing)
    ]
    assert block[1] * 61 == block[0] * 62


def test_sglang_keeps_room_for_drafts_and_towers():
    """``_handle_gpu_memory_settings``: 6 GiB for a draft, 2 for a head; a SigLIP of 27 · 1152 keeps 0.95 · (1 − 0.1 · 0.424)."""
    plain, draft, head = (default_permille("0.5.3", 80 * GIB, 1, 8192, 256, room) for room in (0, 6144, 2048))
    assert (plain - draft, plain - head) == (75, 25)
    tower = model("google/gemma-3-27b-it")[0]
    assert float(tower_share(tower)) == pytest.approx(0.95 * (1 - 0.1 * (27 * 1152**2 / (24 * 1024**2) - 1)))
    assert tower_share(model(LLAMA)[0]) == 1


def test_weights_are_not_offloaded_to_a_disk():
    assert "use cpu" in refused(offload={"weights": 0.5, "to": "nvme"})


def test_context_parallelism_multiplies_the_tokens_of_the_pool():
    """Ranks that keep copies of keys and values share a sequence's tokens instead: the pool's bytes stay, its tokens double."""
    spread = {"hardware": {"gpus": 8, "gpu": "H200 SXM 141GB"}, "max_model_len": 32768}
    one, two = (footprint("Qwen/Qwen3-30B-A3B", parallel={"tensor": 8, "context": ways}, **spread) for ways in (1, 2))
    assert one.gpus == two.gpus
    assert two.extra["engine"]["kv_tokens"] == pytest.approx(2 * one.extra["engine"]["kv_tokens"], rel=0.001)
    assert two.speed["time_per_token_s"] < one.speed["time_per_token_s"]


@pytest.mark.parametrize(
    ("name", "engine", "ways", "words"),
    [
        (LLAMA, "vllm", 2, "keep each key-value head 1 times"), ("google/gemma-3-27b-it", "vllm", 2, "full attention alone"),
        ("Qwen/Qwen3-30B-A3B", "vllm", 3, "must divide the 8"), (LLAMA, "sglang", 2, "no such way"),
    ],
)  # fmt: skip
def test_context_parallelism_is_refused_as_the_engine_does(name, engine, ways, words):
    assert words in refused(name, engine=engine, parallel={"tensor": 8, "context": ways}, hardware={"gpus": 8})
