"""SGLang: a share of the memory for weights and a pool of tokens, the rest for activations and graphs.

SGLang 0.5.3 ``srt/model_executor/model_runner.py`` (``profile_max_num_token``, ``init_memory_pool``) and
``srt/server_args.py`` (``_handle_gpu_memory_settings``); windows are cached like full attention there.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from planner.architecture.layers import Architecture, Recurrent
from planner.calibration import PERMILLE
from planner.engines.paged import Pool
from planner.engines.served_weights import running
from planner.engines.serving import RankMemory, serving_footprint
from planner.engines.shares import parts_of
from planner.engines.token_pool import Rules, flat_server, set_up
from planner.footprint import Footprint
from planner.formats import Format
from planner.gpu import Gpu
from planner.machine import Overheads
from planner.memo import remember_by_identity
from planner.record import record
from planner.scenario import Scenario
from planner.symbolic.amount import largest
from planner.units import GIB, MIB

VERSION = "0.5.3"
RULES = Rules(
    engine="SGLang",
    version=VERSION,
    source=f"SGLang {VERSION} srt/model_executor/model_runner.py",
    cache_bytes={"auto": 0, "bf16": 2, "fp16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1},
    refused_formats={"hqq": "it has no HQQ loader"},
    underived_formats={"gguf": "its GGUF loader merges projections of different types into padded tensors"},
    declared_caches={"modelopt": ("fp8",)},
    state_bytes=4,
    offloads=("weights", "kv_cache"),
    other_releases=f"its default shares are told apart, all else is that of {VERSION}",
    minimum_capability={"bf16": (8, 0), "fp8": (8, 0), "awq": (7, 5), "gptq": (6, 0), "nvfp4": (10, 0), "mxfp4": (8, 0)},
)
BEFORE_HEURISTIC = (0, 5, 0)
"""Older releases give fixed fractions by the number of GPUs (0.4.6 ``server_args.py``)."""
FIXED_PERMILLE = ((16, 790), (8, 810), (4, 850), (2, 870), (1, 880))
TIERS = (
    (20, 2048, 8, 8), (35, 2048, 16, 80), (60, 4096, 32, 160), (90, 8192, 256, 512), (160, 8192, 256, 512),
    (1 << 20, 16384, 512, 512),
)  # fmt: skip
"""(GiB below, chunked_prefill_size, cuda_graph_max_bs below four GPUs, from four on)."""
MAX_PREFILL_TOKENS = 16384
"""Of a step that is not cut into chunks (``max_prefill_tokens``)."""
LARGE_GIB = 60
DRAFT_MIB, HEAD_MIB = 6 * 1024, 2 * 1024
"""Kept free for a draft model, or an EAGLE head or prediction modules, and their graphs (``_handle_gpu_memory_settings``)."""
TOWER, TOWER_LAYERS, TOWER_HIDDEN = Fraction(95, 100), 24, 1024
"""What a vision tower leaves of the fraction, and the ViT-L/14 it is compared with (``adjust_mem_fraction_for_vlm``)."""
TOWER_SENSITIVITY, TOWER_LEAST, TOWER_MOST = Fraction(1, 10), Fraction(8, 10), Fraction(105, 100)
LEAST_REQUESTS, MOST_REQUESTS = 2048, 4096
STATES = 512
"""Slots for recurrent states where ``max_running_requests`` is not given."""


@record
class Settings:
    """What the pool depends on."""

    parts: tuple[int, int]
    """``mem_fraction_static``: so many parts of so many."""
    chunk_tokens: int
    graph_batch: int
    page_tokens: int


def sglang_answer(
    scenario: Scenario, architecture: Architecture, fmt: Format, gpu: Gpu, machine: Overheads, capacity: int, notes: tuple[str, ...]
) -> Footprint:
    """The footprint of an inference scenario under SGLang."""
    architecture = running(architecture)
    options = scenario.inference.engine_options
    settings, taken = _settings(scenario, architecture, capacity)
    captured = 0 if options.get("disable_cuda_graph") is True else settings.graph_batch
    setup = set_up(
        scenario,
        architecture,
        fmt,
        gpu,
        machine,
        RULES,
        step_tokens=settings.chunk_tokens,
        graph_sizes=4 + captured // 8 if captured else 0,
    )
    before = capacity - machine.context_bytes
    reserved = before - before * settings.parts[0] // settings.parts[1]

    def room(rank: RankMemory) -> int:
        return before - rank.libraries_bytes - rank.weights_bytes - rank.adapters_bytes - reserved

    requests = _integer(options, "max_running_requests", MOST_REQUESTS)
    recurrent = any(isinstance(mixer, Recurrent) for layer in architecture.decoder.layers for mixer in layer.sequence)
    server = flat_server(
        scenario, setup, room=room, page_tokens=settings.page_tokens, max_requests=requests, step_tokens=settings.chunk_tokens,
        most_tokens=_optional(options, "max_total_tokens"),
        states=min(requests, STATES) if recurrent else 0,
        because=f"SGLang {VERSION} profile_max_num_token: free memory · mem_fraction_static − weights", log=_log,
    )  # fmt: skip
    return serving_footprint(scenario, architecture, gpu, machine, capacity, server, (*notes, *taken))


def _log(rank: RankMemory, pool: Pool) -> tuple[str, ...]:
    half = pool.size_bytes / 2 / GIB
    return (
        f"Load weight end. mem usage={rank.weights_bytes / GIB:.2f} GB.",
        f"KV Cache is allocated. #tokens: {pool.tokens}, K size: {half:.2f} GB, V size: {half:.2f} GB",
    )


def _settings(scenario: Scenario, architecture: Architecture, capacity: int) -> tuple[Settings, list[str]]:
    options, spread = scenario.inference.engine_options, scenario.parallel
    _, chunk, small, wide = next(tier for tier in TIERS if capacity < tier[0] * GIB)
    chunk = _integer(options, "chunked_prefill_size", chunk)
    if scenario.inference.chunked_prefill is False:
        chunk = MAX_PREFILL_TOKENS
    batch = _integer(options, "cuda_graph_max_bs", small if spread.tensor < 4 else wide)
    given = options.get("mem_fraction_static")
    if isinstance(given, int | float) and not isinstance(given, bool):
        return Settings(parts_of(float(given)), chunk, batch, _integer(options, "page_size", 1)), []
    version = str(options.get("version") or VERSION).removeprefix("v")
    proposing = {"draft": DRAFT_MIB, "none": 0, "ngram": 0}.get(scenario.inference.speculation.method, HEAD_MIB)
    permille = default_permille(version, capacity, spread.tensor * spread.pipeline, chunk, batch, proposing)
    left, whole = tower_share(architecture).as_integer_ratio()
    fraction = f"{permille / PERMILLE}" + ("" if left == whole else f" · {left / whole:.4f} beside a vision tower")
    note = f"inference.engine_options.mem_fraction_static: {fraction}, SGLang's own estimate for this card"
    return Settings((permille * left, PERMILLE * whole), chunk, batch, _integer(options, "page_size", 1)), [note]


@remember_by_identity(64)
def tower_share(architecture: Architecture) -> Fraction:
    """The part of the estimate that a model with a vision tower keeps; a config that says ``depth`` counts as 24 layers."""
    tower = next((stack for stack in architecture.towers if stack.kind == "vision"), None)
    if tower is None:
        return Fraction(1)
    layers = TOWER_LAYERS if tower.name.endswith("blocks") else len(tower.layers)
    size = Fraction(layers * tower.hidden_size**2, TOWER_LAYERS * TOWER_HIDDEN**2)
    return TOWER * max(TOWER_LEAST, min(TOWER_MOST, 1 - TOWER_SENSITIVITY * (size - 1)))


def default_permille(version: str, capacity: int, ranks: int, chunk_tokens: int, graph_batch: int, proposing_mib: int = 0) -> int:
    """``mem_fraction_static`` in thousandths where it is not given: what activations and graphs are thought to need stays free.

    SGLang rounds to three digits, half to even.
    """
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    if numbers < BEFORE_HEURISTIC:
        return next(permille for least, permille in FIXED_PERMILLE if ranks >= least)
    kept = (512 + graph_batch * 2 + ranks * 128) * MIB + max(chunk_tokens, 2048) * 3 * MIB // 2
    if capacity > LARGE_GIB * GIB:
        kept = max(kept, 10 * GIB)
    kept += proposing_mib * MIB
    doubled: int = largest(0, 2 * PERMILLE * (capacity - kept) + capacity)
    permille = doubled // (2 * capacity)
    if doubled % (2 * capacity) == 0 and permille % 2 == 1:
        return permille - 1
    return permille


def _integer(options: Mapping[str, object], name: str, default: int) -> int:
    found = _optional(options, name)
    return default if found is None else found


def _optional(options: Mapping[str, object], name: str) -> int | None:
    value = options.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
