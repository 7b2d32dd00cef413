"""A scenario's answer under SGLang: its share of the memory, the pools in it, limits and the lines of its log."""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.layers import Architecture, LatentAttention
from planner.engines.paged import Pool
from planner.engines.served_weights import running
from planner.engines.serving import RankMemory, serving_footprint
from planner.engines.sglang.pools import fill
from planner.engines.sglang.releases import DEFAULT_VERSION, Release, version_of
from planner.engines.sglang.settings import settings_of
from planner.engines.token_pool import Filled, Rules, Setup, flat_server, set_up
from planner.footprint import Footprint
from planner.formats import Format
from planner.gpu import Gpu
from planner.machine import Overheads
from planner.scenario import Scenario
from planner.units import GIB, MIB

RULES = Rules(
    engine="SGLang",
    version=DEFAULT_VERSION,
    source=f"SGLang {DEFAULT_VERSION} srt/mem_cache/kv_cache_configurator.py",
    cache_bytes={"auto": 0, "bf16": 2, "fp16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1},
    refused_formats={"hqq": "it has no HQQ loader"},
    underived_formats={"gguf": "its GGUF loader merges projections of different types into padded tensors"},
    declared_caches={"modelopt": ("fp8",)},
    state_bytes=4,
    offloads=("weights", "kv_cache"),
    minimum_capability={
        "bf16": (7, 5),
        "fp16": (7, 5),
        "fp8": (8, 0),
        "awq": (7, 5),
        "gptq": (6, 0),
        "nvfp4": (10, 0),
        "mxfp4": (8, 0),
    },
)
BLACKWELL = 10


def sglang_answer(
    scenario: Scenario, architecture: Architecture, fmt: Format, gpu: Gpu, machine: Overheads, capacity: int, notes: tuple[str, ...]
) -> Footprint:
    """The footprint of an inference scenario under SGLang."""
    architecture = running(architecture)
    options = scenario.inference.engine_options
    settings, taken = settings_of(scenario, architecture, gpu, capacity)
    version = str(options.get("version") or DEFAULT_VERSION).removeprefix("v")
    newest = version_of(version) > version_of(DEFAULT_VERSION)
    read = [f"inference.engine_options.version: {version}; release {DEFAULT_VERSION} was read and stands for it"] if newest else []
    rules = replace(RULES, version=version, source=f"SGLang {version} srt")
    captured = 0 if options.get("disable_cuda_graph") is True else settings.graph_batch
    asked, sparse = _sparse_cache(scenario, architecture, gpu, settings.release)
    setup = set_up(
        asked, architecture, fmt, gpu, machine, rules, step_tokens=settings.chunk_tokens,
        graph_sizes=4 + captured // 8 if captured else 0,
    )  # fmt: skip
    before = capacity - machine.context_bytes
    reserved = before - before * settings.parts[0] // settings.parts[1]
    if architecture.towers:
        reserved += settings.release.tower_mib * MIB
    proposed = asked.inference.speculation.proposed if asked.inference.speculation.method != "ngram" else 0

    def filled(rank: RankMemory, setup: Setup) -> Filled:
        left = before - rank.libraries_bytes - rank.weights_bytes - rank.adapters_bytes - reserved
        if not settings.release.counts_drafts and rank.stage == len(setup.stages) - 1:
            left += setup.draft_bytes
        return fill(settings, setup, rank.stage, left, proposed)

    server = flat_server(
        asked, setup, fill=filled, max_requests=settings.max_requests, step_tokens=settings.chunk_tokens,
        because=f"SGLang {version} profile_max_num_token: free memory · mem_fraction_static − weights", log=_log,
    )  # fmt: skip
    return serving_footprint(scenario, architecture, gpu, machine, capacity, server, (*notes, *taken, *sparse, *read))


def _sparse_cache(scenario: Scenario, architecture: Architecture, gpu: Gpu, release: Release) -> tuple[Scenario, list[str]]:
    """Blackwell caches sparse latent attention in fp8 unless told (``_set_default_nsa_kv_cache_dtype``)."""
    mixers = (mixer for layer in architecture.decoder.layers for mixer in layer.sequence)
    sparse = any(isinstance(mixer, LatentAttention) and mixer.indexer is not None for mixer in mixers)
    newer = gpu.compute_capability is not None and gpu.compute_capability[0] >= BLACKWELL
    if not (sparse and newer and release.sparse_fp8 and scenario.inference.kv_cache == "auto"):
        return scenario, []
    asked = replace(scenario, inference=replace(scenario.inference, kv_cache="fp8"))
    return asked, ["inference.kv_cache: fp8, as SGLang caches sparse latent attention on this card"]


def _log(rank: RankMemory, pool: Pool) -> tuple[str, ...]:
    half = pool.size_bytes / 2 / GIB
    return (
        f"Load weight end. mem usage={rank.weights_bytes / GIB:.2f} GB.",
        f"KV Cache is allocated. #tokens: {pool.tokens}, K size: {half:.2f} GB, V size: {half:.2f} GB",
    )
