"""Text Generation Inference: nine tenths of the memory, less weights and the largest prefill, become blocks of tokens.

TGI 3.3 ``server/text_generation_server/models/flash_causal_lm.py`` (``warmup``), ``models/globals.py``; every layer is
cached at full length, latent attention with its heads expanded (``models/__init__.py``, ``flash_deepseek_v3_modeling.py``).
"""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.layers import Architecture, Attention, LatentAttention, Recurrent
from planner.engines.paged import Pool
from planner.engines.refusals import refuse_chunks
from planner.engines.served_weights import has_latent, running, value_bytes, with_declared_cache
from planner.engines.serving import RankMemory, serving_footprint
from planner.engines.shares import share_of
from planner.engines.tgi_launcher import FLASH_DECODING_BLOCK, FLASHINFER_BLOCK, block_tokens, prefill_tokens
from planner.engines.token_pool import Rules, Setup, flat_fill, flat_server, set_up
from planner.faults import Fault, Faults
from planner.footprint import Footprint
from planner.formats import Format
from planner.gpu import Gpu
from planner.machine import Overheads
from planner.modelled import NotModelled
from planner.scenario import Scenario
from planner.symbolic.amount import smallest

VERSION = "3.3"
RULES = Rules(
    engine="TGI",
    version=VERSION,
    source=f"TGI {VERSION} models/flash_causal_lm.py",
    speculations=("ngram",),
    absorbs=False,
    cache_bytes={"auto": 0, "bf16": 2, "fp16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1},
    refused_formats={
        "gguf": "its flash models read safetensors; use llama.cpp", "mxfp4": "it has no MXFP4 kernels",
        "nvfp4": "it has no NVFP4 kernels",
        "hqq": "it has no HQQ loader",
    },
    minimum_capability={"bf16": (7, 5), "fp8": (8, 0), "awq": (7, 5), "gptq": (7, 5)},
)  # fmt: skip
WIGGLE_ROOM = 0.9
LATENT_TYPES, LATENT_HEAD = ("deepseek_v2", "deepseek_v3"), 192
"""Types whose latent attention TGI computes, and the head it caches for them: it looks for widths under names that their
configs don't use, and takes 128 + 64."""
DECLARED_CACHES = {"compressed-tensors": ("fp8",)}
"""Cache types that ``models/__init__.py`` takes from a checkpoint's config where flashinfer attends."""
GRAPH_SIZES = 7
"""1, 2, 4, 8, 16, 32 and the batch of the warm-up."""


def tgi_answer(
    scenario: Scenario, architecture: Architecture, fmt: Format, gpu: Gpu, machine: Overheads, capacity: int, notes: tuple[str, ...]
) -> Footprint:
    """The footprint of an inference scenario under TGI."""
    architecture = running(architecture)
    options = scenario.inference.engine_options
    scenario = _limited(scenario)
    mixers = [mixer for layer in architecture.decoder.layers for mixer in layer.sequence]
    if any(isinstance(mixer, Recurrent) for mixer in mixers):
        raise NotModelled("TGI serves recurrent layers outside its pool of blocks")
    if has_latent(architecture) and architecture.model_type not in LATENT_TYPES:
        raise NotModelled(f"TGI {VERSION} has no code of its own for {architecture.model_type}, whose attention is latent (MLA)")
    page = block_tokens(architecture, gpu)
    if page == FLASHINFER_BLOCK and gpu.vendor == "NVIDIA":
        scenario, declared = with_declared_cache(scenario, fmt, DECLARED_CACHES)
        notes = (*notes, *declared)
    given = options.get("cuda_memory_fraction")
    fraction = float(given) if isinstance(given, int | float) and not isinstance(given, bool) else 1.0
    step = prefill_tokens(architecture, fmt, gpu, capacity, scenario.parallel.tensor, fraction)
    tokens = _integer(options.get("max_batch_prefill_tokens"), step)
    faults = [
        *_layout_faults(scenario, architecture),
        *_cache_faults(scenario, architecture, page),
        *refuse_chunks(scenario.inference, tokens, scenario.inference.prompt_tokens or 1, "TGI", "max_batch_prefill_tokens"),
    ]
    if faults:
        raise Faults(faults)
    setup = set_up(scenario, architecture, fmt, gpu, machine, RULES, step_tokens=tokens, graph_sizes=GRAPH_SIZES)
    if has_latent(architecture):
        setup = _expanded(scenario, architecture, fmt, setup)

    def room(rank: RankMemory) -> int:
        taken = machine.context_bytes + rank.libraries_bytes + rank.weights_bytes + rank.adapters_bytes + rank.activations_bytes
        return share_of(share_of(capacity, fraction), WIGGLE_ROOM) - taken

    if "max_batch_prefill_tokens" not in options:
        taken = f"inference.engine_options.max_batch_prefill_tokens: {step}, as the launcher settles it for this model and card"
        notes = (*notes, taken)
    most = _integer(options.get("max_batch_total_tokens"), 0) or None
    server = flat_server(
        scenario, setup, fill=flat_fill(room, page_tokens=page, most_tokens=most, states=0),
        max_requests=_integer(options.get("max_batch_size"), 1 << 20), step_tokens=tokens,
        because=f"TGI {VERSION} warmup: total · cuda_memory_fraction · {WIGGLE_ROOM} − what the largest prefill left", log=_log,
        lowers_limit=scenario.inference.max_model_len is None,
    )  # fmt: skip
    return serving_footprint(scenario, architecture, gpu, machine, capacity, server, notes)


def _layout_faults(scenario: Scenario, architecture: Architecture) -> list[Fault]:
    """TGI shards heads over the GPUs of one machine (``flash_llama_modeling.py``, ``launcher``'s ``num_shard``)."""
    spread, faults = scenario.parallel, list[Fault]()
    if spread.pipeline != 1:
        faults.append(Fault("parallel.pipeline", "TGI shards every layer over its GPUs (--num-shard) and has no pipeline; use 1"))
    if spread.expert != 1:
        faults.append(Fault("parallel.expert", "TGI cuts every expert over its shards; use 1"))
    heads = {
        mixer.num_kv_heads for layer in architecture.decoder.layers for mixer in layer.sequence if isinstance(mixer, Attention)
    }
    wrong = [count for count in sorted(heads) if count > 1 and count % spread.tensor]
    if wrong:
        faults.append(
            Fault("parallel.tensor", f"TGI needs num_shard to divide the {wrong[0]} key-value heads; got {spread.tensor}")
        )
    return faults


def _cache_faults(scenario: Scenario, architecture: Architecture, page: int) -> list[Fault]:
    """An fp8 cache needs flashinfer or paged attention (``layers/attention/kv_cache.py``)."""
    asked = scenario.inference.kv_cache
    if not asked.startswith("fp8") or page != FLASH_DECODING_BLOCK:
        return []
    what = "latent attention (MLA)" if has_latent(architecture) else f"the head of {architecture.model_type}"
    return [Fault("inference.kv_cache", f"TGI computes {what} by flash decoding, which reads no {asked} cache; use auto")]


def _expanded(scenario: Scenario, architecture: Architecture, fmt: Format, setup: Setup) -> Setup:
    """Keys and values of every head, both as wide as the wider one."""
    width = RULES.cache_bytes[scenario.inference.kv_cache] or value_bytes(architecture, fmt)
    layers = architecture.decoder.layers
    tokens = tuple(
        sum(
            2 * (mixer.num_heads // scenario.parallel.tensor) * max(LATENT_HEAD, mixer.v_head_dim) * width
            for index in stage.layers
            for mixer in layers[index].sequence
            if isinstance(mixer, LatentAttention)
        )
        for stage in setup.stages
    )
    return replace(setup, token_bytes=tokens)


def _limited(scenario: Scenario) -> Scenario:
    """``max_total_tokens`` is what other engines call the greatest length: the shorter of both where both are given."""
    ask = scenario.inference
    total = _integer(ask.engine_options.get("max_total_tokens"), 0)
    if not total:
        return scenario
    limit = total if ask.max_model_len is None else smallest(total, ask.max_model_len)
    return replace(scenario, inference=replace(ask, max_model_len=limit))


def _log(_: RankMemory, pool: Pool) -> tuple[str, ...]:
    return (f"KV-cache blocks: {pool.blocks}, size: {pool.block_tokens}",)


def _integer(value: object, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else default
