"""Text Generation Inference: nine tenths of the memory, less weights and the largest prefill, become blocks of tokens.

TGI 3.3 ``server/text_generation_server/models/flash_causal_lm.py`` (``warmup``), ``models/globals.py``; every layer is
cached at full length.
"""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.layers import Architecture, Attention, Recurrent
from planner.engines.paged import Pool
from planner.engines.refusals import refuse_chunks
from planner.engines.served_weights import has_latent, running
from planner.engines.serving import RankMemory, serving_footprint
from planner.engines.shares import share_of
from planner.engines.token_pool import Rules, flat_server, set_up
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
    cache_bytes={"auto": 0, "bf16": 2, "fp16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1},
    refused_formats={
        "gguf": "its flash models read safetensors; use llama.cpp", "mxfp4": "it has no MXFP4 kernels",
        "nvfp4": "it has no NVFP4 kernels",
        "hqq": "it has no HQQ loader",
    },
    minimum_capability={"bf16": (8, 0), "fp8": (8, 0), "awq": (7, 5), "gptq": (7, 5)},
)  # fmt: skip
WIGGLE_ROOM = 0.9
PREFILL_TOKENS = 4096
FLASHINFER_HEADS = (64, 128, 256)
FLASHINFER_BLOCK, FLASH_DECODING_BLOCK = 1, 256
"""Tokens of a block: flashinfer pages single tokens, flash decoding 256."""
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
    if has_latent(architecture) and scenario.inference.kv_cache.startswith("fp8"):
        raise Faults([Fault("inference.kv_cache", "TGI caches latent attention (MLA) in the model's dtype alone; use auto")])
    tokens = _integer(options.get("max_batch_prefill_tokens"), PREFILL_TOKENS)
    faults = refuse_chunks(scenario.inference, tokens, scenario.inference.prompt_tokens or 1, "TGI", "max_batch_prefill_tokens")
    if faults:
        raise Faults(faults)
    given = options.get("cuda_memory_fraction")
    fraction = float(given) if isinstance(given, int | float) and not isinstance(given, bool) else 1.0
    setup = set_up(scenario, architecture, fmt, gpu, machine, RULES, step_tokens=tokens, graph_sizes=GRAPH_SIZES)

    def room(rank: RankMemory) -> int:
        taken = machine.context_bytes + rank.libraries_bytes + rank.weights_bytes + rank.adapters_bytes + rank.activations_bytes
        return share_of(share_of(capacity, fraction), WIGGLE_ROOM) - taken

    heads = {mixer.head_dim for mixer in mixers if isinstance(mixer, Attention)}
    page = FLASHINFER_BLOCK if heads <= set(FLASHINFER_HEADS) else FLASH_DECODING_BLOCK
    server = flat_server(
        scenario, setup, room=room, page_tokens=page, max_requests=_integer(options.get("max_batch_size"), 1 << 20),
        step_tokens=tokens, most_tokens=_integer(options.get("max_batch_total_tokens"), 0) or None, states=0,
        because=f"TGI {VERSION} warmup: total · cuda_memory_fraction · {WIGGLE_ROOM} − what the largest prefill left", log=_log,
    )  # fmt: skip
    return serving_footprint(scenario, architecture, gpu, machine, capacity, server, notes)


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
