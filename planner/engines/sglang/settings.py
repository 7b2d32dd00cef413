"""SGLang's settings as it settles them: given, or its own default for the card and model at hand.

``handle_gpu_memory_settings``: what activations and graphs are thought to need stays free, the rest is for weights and pools.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from planner.architecture.layers import Architecture
from planner.calibration import PERMILLE
from planner.engines.served_weights import has_latent
from planner.engines.sglang.releases import Release, release_of, version_of
from planner.engines.shares import parts_of
from planner.gpu import Gpu
from planner.memo import remember_by_identity
from planner.record import record
from planner.scenario import Scenario
from planner.symbolic.amount import largest
from planner.units import GIB, MIB

FIXED_PERMILLE = ((16, 790), (8, 810), (4, 850), (2, 870), (1, 880))
"""Shares by the number of GPUs (0.4.6 ``server_args.py``)."""
MAX_PREFILL_TOKENS = 16384
"""Of a step that is not cut into chunks (``max_prefill_tokens``)."""
LARGE_GIB = 60
TOWER, TOWER_LAYERS, TOWER_HIDDEN = Fraction(95, 100), 24, 1024
"""What a vision tower leaves of the fraction, and the ViT-L/14 it is compared with (``adjust_mem_fraction_for_vlm``)."""
TOWER_SENSITIVITY, TOWER_LEAST, TOWER_MOST = Fraction(1, 10), Fraction(8, 10), Fraction(105, 100)
MOST_REQUESTS, MOST_PROPOSING = 4096, 48
"""``max_running_requests`` where it is not given: by itself, and where an EAGLE head or a draft proposes."""
WINDOW_RATIO = 0.8
STATE_RATIO = 0.9
PREFILL_SIZES = ((4, 33, 4), (48, 257, 16), (288, 513, 32), (576, 1025, 64), (1280, 4097, 256))
"""Lengths of prefills that are captured, (from, to, step); from 4608 on each 512 (``generate_prefill_cuda_graph_batch_sizes``)."""
PREFILL_FIRST_LONG, PREFILL_STEP = 4608, 512
PREFILL_GRAPH_MIB, LATENT_GRAPHS_MIB = 8, 1536
PIECEWISE_REFUSES = ("deepseek_v4", "qwen3_next")
"""Types whose prefills were not captured piecewise; sparse latent attention neither, before 0.5.14."""
SPARSE_CAPTURED_SINCE = (0, 5, 14)
CAPTURED_WITH_TOWER = ("qwen3_5", "qwen3_5_moe")
"""Types whose text model's prefills are captured though they have a tower (0.5.23)."""
CAPTURED_WITH_TOWER_SINCE = (0, 5, 18)


@record
class Settings:
    """What the pools depend on."""

    release: Release
    parts: tuple[int, int]
    """``mem_fraction_static``: so many parts of so many."""
    chunk_tokens: int
    graph_batch: int
    page_tokens: int
    max_requests: int
    window_parts: tuple[int, int]
    """Tokens of the windows' pool for each of the full layers'."""
    state_parts: tuple[int, int]
    """Memory of recurrent states for that of the tokens."""
    state_slots: int | None
    most_tokens: int | None


def settings_of(scenario: Scenario, architecture: Architecture, gpu: Gpu, capacity: int) -> tuple[Settings, list[str]]:
    """The settings, and in words the defaults taken."""
    ask, spread = scenario.inference, scenario.parallel
    options: Mapping[str, object] = ask.engine_options
    version = version_of(options.get("version"))
    release = release_of(version)
    _, chunk, small, wide = next(tier for tier in release.tiers if capacity < tier[0] * GIB)
    chunk = _integer(options, "chunked_prefill_size", chunk)
    if ask.chunked_prefill is False:
        chunk = MAX_PREFILL_TOKENS
    batch = _integer(options, "cuda_graph_max_bs", small if spread.tensor < 4 else wide)
    proposing = ask.speculation.method not in ("none", "ngram")
    parts, notes = _parts(scenario, architecture, gpu, capacity, version, chunk, batch)
    settings = Settings(
        release=release, parts=parts, chunk_tokens=chunk, graph_batch=batch, page_tokens=_integer(options, "page_size", 1),
        max_requests=_integer(options, "max_running_requests", MOST_PROPOSING if proposing else MOST_REQUESTS),
        window_parts=parts_of(_fraction(options, "swa_full_tokens_ratio", WINDOW_RATIO)),
        state_parts=parts_of(_fraction(options, "mamba_full_memory_ratio", STATE_RATIO)),
        state_slots=_optional(options, "max_mamba_cache_size"), most_tokens=_optional(options, "max_total_tokens"),
    )  # fmt: skip
    return settings, notes


def _parts(
    scenario: Scenario, architecture: Architecture, gpu: Gpu, capacity: int, version: tuple[int, int, int], chunk: int, batch: int
) -> tuple[tuple[int, int], list[str]]:
    options, spread, release = scenario.inference.engine_options, scenario.parallel, release_of(version)
    given = options.get("mem_fraction_static")
    if isinstance(given, int | float) and not isinstance(given, bool):
        return parts_of(float(given)), []
    permille = default_permille(
        ".".join(map(str, version)), capacity, spread.tensor * spread.pipeline, chunk,
        0 if options.get("disable_cuda_graph") is True and release.counts_drafts else batch,
        {"draft": release.draft_mib, "none": 0, "ngram": 0}.get(scenario.inference.speculation.method, release.head_mib),
        prefill_graphs_mib(scenario, architecture, gpu, version, chunk),
    )  # fmt: skip
    left, whole = tower_share(architecture).as_integer_ratio()
    fraction = f"{permille / PERMILLE}" + ("" if left == whole else f" · {left / whole:.4f} beside a vision tower")
    note = f"inference.engine_options.mem_fraction_static: {fraction}, SGLang's own estimate for this card"
    return (permille * left, PERMILLE * whole), [note]


def prefill_graphs_mib(
    scenario: Scenario, architecture: Architecture, gpu: Gpu, version: tuple[int, int, int], chunk_tokens: int
) -> int:
    """What the estimate keeps for graphs of prefills, where they are captured (``reserve_for_graph_mb``)."""
    release = release_of(version)
    if not _captures_prefills(scenario, architecture, gpu, release, version):
        return 0
    if has_latent(architecture):
        return LATENT_GRAPHS_MIB if release.latent_graphs else 0
    sizes = sum(1 for start, stop, step in PREFILL_SIZES for size in range(start, stop, step) if size <= chunk_tokens)
    return PREFILL_GRAPH_MIB * (sizes + len(range(PREFILL_FIRST_LONG, chunk_tokens + 1, PREFILL_STEP)))


def _captures_prefills(
    scenario: Scenario, architecture: Architecture, gpu: Gpu, release: Release, version: tuple[int, int, int]
) -> bool:
    """Whether prefills are captured (``_handle_piecewise_cuda_graph``, ``disable_breakable_cudagraph_if_incompatible``)."""
    ask, kind = scenario.inference, architecture.model_type
    never = (
        release.prefill_graphs == "none"
        or ask.engine_options.get("disable_cuda_graph") is True
        or scenario.parallel.pipeline > 1
        or gpu.vendor != "NVIDIA"
        or kind == "deepseek_v4"
        or (bool(architecture.towers) and not (kind in CAPTURED_WITH_TOWER and version >= CAPTURED_WITH_TOWER_SINCE))
    )
    if never:
        return False
    if release.prefill_graphs == "breakable":
        return not (ask.adapters.count and not release.latent_graphs)
    sparse = kind in ("deepseek_v32", "glm_moe_dsa") and version < SPARSE_CAPTURED_SINCE
    proposing = ask.speculation.method != "none" and version < SPARSE_CAPTURED_SINCE
    offloads = bool(scenario.offload.weights or scenario.offload.kv_cache)
    return not (kind in PIECEWISE_REFUSES or sparse or proposing or offloads or ask.adapters.count)


@remember_by_identity(64)
def tower_share(architecture: Architecture) -> Fraction:
    """The part of the estimate that a model with a vision tower keeps; a config that says ``depth`` counts as 24 layers."""
    tower = next((stack for stack in architecture.towers if stack.kind == "vision"), None)
    if tower is None:
        return Fraction(1)
    layers = TOWER_LAYERS if tower.name.endswith("blocks") else len(tower.layers)
    size = Fraction(layers * tower.hidden_size**2, TOWER_LAYERS * TOWER_HIDDEN**2)
    return TOWER * max(TOWER_LEAST, min(TOWER_MOST, 1 - TOWER_SENSITIVITY * (size - 1)))


def default_permille(
    version: str, capacity: int, ranks: int, chunk_tokens: int, graph_batch: int, proposing_mib: int = 0, graphs_mib: int = 0
) -> int:
    """``mem_fraction_static`` in thousandths where it is not given: what activations and graphs are thought to need stays free.

    SGLang rounds to three digits, half to even.
    """
    if release_of(version_of(version)).fixed:
        return next(permille for least, permille in FIXED_PERMILLE if ranks >= least)
    kept = (512 + graph_batch * 2 + ranks * 128 + graphs_mib) * MIB + max(chunk_tokens, 2048) * 3 * MIB // 2
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


def _fraction(options: Mapping[str, object], name: str, default: float) -> float:
    value = options.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default
