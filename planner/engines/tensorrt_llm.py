"""TensorRT-LLM: a share of what is left after weights and a profiled step becomes blocks of tokens.

TensorRT-LLM 1.x ``_torch/pyexecutor/_util.py`` (``KvCacheCreator._cal_max_memory``): (total − peak) · fraction. Windowed
layers are taken at full length: pools of their own for each window (VSWA) are not told apart.
"""

from __future__ import annotations

from planner.architecture.layers import Architecture
from planner.engines.paged import Pool
from planner.engines.refusals import refuse_chunks
from planner.engines.served_weights import running
from planner.engines.serving import RankMemory, serving_footprint
from planner.engines.shares import share_of
from planner.engines.token_pool import Rules, flat_fill, flat_server, set_up
from planner.faults import Faults
from planner.footprint import Footprint
from planner.formats import Format
from planner.gpu import Gpu
from planner.machine import Overheads
from planner.scenario import Inference, Scenario
from planner.symbolic.amount import largest
from planner.units import GIB

VERSION = "1.2.1"
RULES = Rules(
    engine="TensorRT-LLM",
    version=VERSION,
    source=f"TensorRT-LLM {VERSION} _torch/pyexecutor/_util.py",
    offloads=("kv_cache",),
    vendors=("NVIDIA",),
    cache_bytes={"auto": 0, "bf16": 2, "fp16": 2, "fp8": 1, "fp8_e4m3": 1},
    refused_formats={
        "gguf": "it reads no GGUF; use llama.cpp", "nf4": "it has no bitsandbytes kernels; use awq-int4-g128 or fp8",
        "fp4": "it has no bitsandbytes kernels; use nvfp4",
        "hqq": "it has no HQQ loader", "int8": "it has no LLM.int8 kernels; use fp8",
    },
    declared_caches={"modelopt": ("fp8",)},
    minimum_capability={"fp8": (8, 9), "nvfp4": (10, 0), "": (8, 0)},
)  # fmt: skip
FRACTION = 0.9
STEP_TOKENS = 8192
REQUESTS = 2048
BLOCK_TOKENS = 32
GRAPH_SIZES = 34
"""Batches captured by default: powers of two and steps of eight up to 128, 256 at most."""


def tensorrt_llm_answer(
    scenario: Scenario, architecture: Architecture, fmt: Format, gpu: Gpu, machine: Overheads, capacity: int, notes: tuple[str, ...]
) -> Footprint:
    """The footprint of an inference scenario under TensorRT-LLM."""
    architecture = running(architecture)
    options = scenario.inference.engine_options
    tokens = _integer(options.get("max_num_tokens"), STEP_TOKENS)
    taken = _one_step(scenario.inference, tokens)
    given = options.get("free_gpu_memory_fraction")
    fraction = float(given) if isinstance(given, int | float) and not isinstance(given, bool) else FRACTION
    setup = set_up(scenario, architecture, fmt, gpu, machine, RULES, step_tokens=tokens, graph_sizes=GRAPH_SIZES)

    def room(rank: RankMemory) -> int:
        return share_of(largest(0, capacity - machine.context_bytes - rank.fixed_bytes), fraction)

    fill = flat_fill(
        room, page_tokens=_integer(options.get("tokens_per_block"), BLOCK_TOKENS), most_tokens=None,
        states=_integer(options.get("max_batch_size"), scenario.inference.batch),
    )  # fmt: skip
    server = flat_server(
        scenario, setup, fill=fill, max_requests=_integer(options.get("max_batch_size"), REQUESTS), step_tokens=tokens,
        states_by_batch="max_batch_size" not in options,
        because=f"TensorRT-LLM {VERSION} _cal_max_memory: (total − peak) · free_gpu_memory_fraction", log=_log,
    )  # fmt: skip
    taken += [] if given else [f"inference.engine_options.free_gpu_memory_fraction: {FRACTION} by default"]
    return serving_footprint(scenario, architecture, gpu, machine, capacity, server, (*notes, *taken))


def _one_step(ask: Inference, tokens: int) -> list[str]:
    """A prompt that is not cut must fit a step (``llmapi/llm.py`` ``_check_arguments``); chunks are off unless asked for.

    Raises Faults where they are ruled out, else says that they are needed.
    """
    faults = refuse_chunks(ask, tokens, ask.prompt_tokens or 1, "TensorRT-LLM", "max_num_tokens")
    if faults:
        raise Faults(faults)
    if ask.chunked_prefill is not None or (ask.prompt_tokens or 1) <= tokens:
        return []
    return [f"inference.chunked_prefill: prompts beyond max_num_tokens {tokens} are refused unless enable_chunked_prefill is set"]


def _log(_: RankMemory, pool: Pool) -> tuple[str, ...]:
    return (f"Allocated {pool.size_bytes / GIB:.2f} GiB for max tokens in paged KV cache ({pool.tokens}).",)


def _integer(value: object, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else default
