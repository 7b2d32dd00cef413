"""A scenario's answer under vLLM: profile run, pool of pages, limits and the lines of its log."""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.layers import Architecture
from planner.calibration import PERMILLE
from planner.engines.beside import DRAFT, read_beside
from planner.engines.loading import loaded_bytes, mxfp4_padding_bytes, rotary_bytes
from planner.engines.paged import Layout, Pool
from planner.engines.refusals import (
    halved_as_fp16,
    refuse_card,
    refuse_chunks,
    refuse_context,
    refuse_dtype,
    refuse_expert,
    refuse_format,
    refuse_layout,
    refuse_offload,
)
from planner.engines.served_weights import (
    absorbed_bytes,
    adapters_bytes,
    draft_bytes,
    proposing_mixers,
    running,
    value_bytes,
    with_declared_cache,
)
from planner.engines.serving import RankMemory, Server, serving_footprint
from planner.engines.serving_terms import adapter_terms, library_terms, pool_terms, weight_terms
from planner.engines.shares import share_of
from planner.engines.vllm.cache import (
    FP32_STATES_SINCE,
    STATES_BY_BLOCK,
    CacheKind,
    cache_faults,
    cache_kind_bytes,
    cache_layout,
    context_faults,
)
from planner.engines.vllm.profile import ProfileRun, counts_bytes, profile_run
from planner.engines.vllm.settings import V1_SINCE, Settings, settings_of
from planner.engines.vllm.versions import (
    COLLECTIVE_BAND_BYTES,
    DEFAULT_VERSION,
    NON_TORCH_BAND_BYTES,
    PIPELINE_NON_TORCH_BYTES,
    version_of,
)
from planner.faults import Fault, Faults
from planner.footprint import Footprint, Term
from planner.formats import Format
from planner.gpu import Gpu
from planner.later import LaterSequence
from planner.machine import Overheads
from planner.modelled import NotModelled
from planner.record import record
from planner.scenario import Inference, Scenario, to_json
from planner.sharding import VOCABULARY_PADDING, Split, StageWeights, split_faults, stage_weights
from planner.symbolic.amount import largest
from planner.uncertainty import band_permille
from planner.units import GIB

MINIMUM_CAPABILITY = {"bf16": (8, 0), "awq": (7, 5), "gptq": (6, 0), "fp8": (8, 0), "mxfp4": (8, 0), "nvfp4": (8, 0), "nf4": (7, 0)}
"""``QuantizationConfig.get_min_capability`` of each method; bfloat16 in ``platforms/cuda.py``. Below 8.9 fp8 is weight-only."""
TURING_MARLIN_SINCE, TURING_MARLIN = (0, 14, 0), {"fp8": (7, 5), "nvfp4": (7, 5)}
"""Marlin's weight-only kernels run on Turing too (``marlin_utils_fp8.py`` ``is_fp8_marlin_supported``, pull request 29901)."""
HALVES_SINCE = (0, 10, 0)
"""Since when ``--dtype auto`` falls back to fp16 on cards without bf16 (``_resolve_auto_dtype``)."""
FILES_UNTIL = (0, 26, 0)
"""From here on neither is among ``QUANTIZATION_METHODS`` (``layers/quantization/__init__.py``)."""
REFUSED_FORMATS = {"gguf": "it reads no GGUF files from 0.26 on; use llama.cpp", "hqq": "it has no HQQ loader from 0.26 on"}
UNDERIVED_FORMATS = {
    "gguf": "its GGUF loader merges projections of different types into padded tensors",
    "hqq": "its HQQ loader repacks weights for Marlin",
}
SEQUENCE_TYPES = ("whisper",)
POOLED_TYPES = ("bert", "roberta", "xlm-roberta", "modernbert", "nomic_bert")
"""Encoders with a model of their own (``models/registry.py`` ``_EMBEDDING_MODELS``)."""
MULTIPROCESSORS = (
    ("B200", 148), ("B300", 148), ("H100 PCIe", 114), ("H100", 132), ("H200", 132), ("GH200", 132), ("H20", 78), ("A100", 108),
    ("L40", 142), ("L4", 58), ("RTX PRO 6000", 188), ("RTX 5090", 170), ("RTX 5080", 84), ("RTX 4090", 128), ("RTX 3090", 82),
    ("RTX 6000 Ada", 142), ("RTX A6000", 84), ("A10G", 80), ("A10", 72), ("A40", 84), ("V100", 80), ("T4", 40),
)  # fmt: skip
"""Multiprocessors of cards, for the Triton sampler's buffer (NVIDIA's architecture white papers)."""
OTHER_MULTIPROCESSORS = 108
VENDORS = ("NVIDIA", "AMD", "Intel")
"""``platforms/``: CUDA, ROCm, XPU, and Gaudi by a plugin; on Apple's chips it computes on the CPU."""
BLOCK_STEP = 16
NO_DRAFTS_SINCE, DRAFTS_AGAIN = (0, 10, 0), (0, 14, 0)
"""V0 proposed tokens by draft models, V1 does since pull request 24322; between them ``SpeculativeConfig`` refuses."""
DECLARED_SINCE = (
    ("modelopt", "fp8", (0, 14, 0)), ("modelopt", "nvfp4", (0, 24, 0)), ("compressed-tensors", "fp8", (0, 16, 0)),
)  # fmt: skip
"""Since when ``--kv-cache-dtype auto`` takes what a checkpoint declares (``resolve_kv_cache_dtype_string``, ``Attention``)."""
EXPERT_SLOTS_SINCE = (0, 11, 1)
"""Adapters of routed experts (``FusedMoEWithLoRA``, pull request 21229)."""
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""``config/lora.py`` ``MaxLoRARanks``."""
GRAPH_PERMILLE, ACTIVATION_PERMILLE, WEIGHT_PERMILLE = 500, 100, 10
"""Half-widths of errors where recorded runs are too few (planner/uncertainty.py); no run tells graphs apart."""


@record
class Plan:
    """A scenario as vLLM would start it."""

    settings: Settings
    split: Split
    stages: tuple[StageWeights, ...]
    kind: CacheKind
    dtype_bytes: int
    draft: Architecture | None
    experts: int
    fmt: Format


def vllm_answer(
    scenario: Scenario, architecture: Architecture, fmt: Format, gpu: Gpu, machine: Overheads, capacity: int, notes: tuple[str, ...]
) -> Footprint:
    """The footprint of an inference scenario under vLLM.

    Raises :class:`planner.faults.Faults` for what vLLM refuses and ``NotModelled`` for caches that are not derived.
    """
    server, taken = vllm_server(scenario, architecture, fmt, gpu, machine, capacity)
    found = serving_footprint(asked_of(scenario, architecture), architecture, gpu, machine, capacity, server, (*notes, *taken))
    return found if architecture.kind == "decoder" else replace(found, scenario=to_json(scenario))


def vllm_server(
    scenario: Scenario, architecture: Architecture, fmt: Format, gpu: Gpu, machine: Overheads, capacity: int
) -> tuple[Server, list[str]]:
    """vLLM's memory for a scenario, and the defaults taken."""
    _require_served(architecture)
    architecture = running(architecture)
    scenario = asked_of(scenario, architecture)
    settings, notes = settings_of(scenario, architecture, gpu.name, capacity, multiprocessors(gpu.name))
    scenario, declared = with_declared_cache(scenario, fmt, _followed(settings.version))
    notes += [*declared, *halved_as_fp16(fmt, gpu, "vLLM"), *_newer(settings.version)]
    scenario = _in_slots(scenario, notes)
    plan = _plan(scenario, architecture, fmt, gpu, settings)
    stages = plan.stages
    runs = tuple(
        profile_run(
            architecture, settings, layers=stage.layers, tensor=plan.split.tensor, experts=plan.experts,
            dtype_bytes=plan.dtype_bytes, workspace_bytes=machine.cublas_workspace_bytes,
        )
        for stage in stages
    )  # fmt: skip
    ranks = tuple(_rank(scenario, architecture, fmt, gpu, machine, plan, *each) for each in zip(stages, runs, strict=True))
    layouts = tuple(_layout(architecture, scenario, plan, stage) for stage in stages)
    pools = _pools(settings, capacity, ranks, layouts)
    server = _server(scenario, architecture, machine, settings, plan, ranks, runs, layouts, pools)
    return replace(server, refused=_unstartable(settings, capacity, machine) or _overfull(server, capacity, machine)), notes


def _newer(version: tuple[int, int, int]) -> list[str]:
    """In words that no release as new as that was read."""
    if version <= version_of(DEFAULT_VERSION):
        return []
    return [f"inference.engine_options.version: {'.'.join(map(str, version))}; release {DEFAULT_VERSION} stands for it"]


def _require_served(architecture: Architecture) -> None:
    """Raise Faults for what vLLM has no model of, :class:`NotModelled` for what it has and is not derived."""
    if architecture.kind == "encoder-decoder" and architecture.model_type not in SEQUENCE_TYPES:
        message = (
            f"vLLM serves no {architecture.model_type}: of encoder-decoder models it has Whisper and its kin; use transformers"
        )
        raise Faults([Fault("model", message)])
    if architecture.kind == "encoder-decoder":
        raise NotModelled("vLLM: the cache of an encoder's states has no closed form yet")
    if architecture.kind == "encoder" and architecture.model_type not in POOLED_TYPES:
        raise NotModelled(f"vLLM: {architecture.model_type} is no encoder that it has a model of its own for")


def asked_of(scenario: Scenario, architecture: Architecture) -> Scenario:
    """What is asked of the server: an encoder generates nothing, and answers each request in one step."""
    if architecture.kind != "encoder":
        return scenario
    return replace(scenario, inference=replace(scenario.inference, new_tokens=0, chunked_prefill=False))


def _followed(version: tuple[int, int, int]) -> dict[str, tuple[str, ...]]:
    """The cache types that a release takes from a checkpoint's config."""
    starts = {start for start, _, _ in DECLARED_SINCE}
    return {start: tuple(kind for name, kind, since in DECLARED_SINCE if name == start and version >= since) for start in starts}


def _unstartable(settings: Settings, capacity: int, machine: Overheads) -> tuple[str, ...]:
    """vLLM asks at its start whether its share of the card is free (``worker/utils.py`` ``request_memory``)."""
    requested, free = share_of(capacity, settings.utilization), capacity - machine.context_bytes
    if settings.kv_bytes is not None or requested <= free:
        return ()
    message = (
        f"gpu_memory_utilization {settings.utilization} asks for {requested / GIB:.2f} GiB, {free / GIB:.2f} GiB are free beside "
        f"the CUDA context: the server refuses to start; use at most {_percent_free(free, capacity) / 100}"
    )
    return (message,)


def _overfull(server: Server, capacity: int, machine: Overheads) -> tuple[str, ...]:
    """A server without a pool starts wherever weights and steps fit the card."""
    needed = max(rank.fixed_bytes for rank in server.ranks) + machine.context_bytes
    if server.pool.groups or needed <= capacity:
        return ()
    return (f"{needed / GIB:.2f} GiB of weights and a step's values exceed the card's {capacity / GIB:.2f} GiB",)


def _percent_free(free: int, capacity: int) -> int:
    above: int = largest(0, 100 * free)
    return above // capacity


def _plan(scenario: Scenario, architecture: Architecture, fmt: Format, gpu: Gpu, settings: Settings) -> Plan:
    spread, ask = scenario.parallel, scenario.inference
    split = Split(spread.tensor, spread.pipeline, spread.expert, VOCABULARY_PADDING)
    faults = [
        *refuse_card(gpu, "vLLM", VENDORS),
        *refuse_layout(scenario, "vLLM", splits_context=True),
        *context_faults(architecture, spread.tensor, spread.context, settings.version),
        *refuse_offload(scenario, "vLLM", ("weights", "kv_cache")),
        *refuse_chunks(ask, settings.batched_tokens, settings.max_model_len, "vLLM", "max_num_batched_tokens"),
        *refuse_expert(scenario, architecture),
        *split_faults(architecture, split),
        *_format_faults(fmt, gpu, settings.version),
        *_page_faults(settings),
        *refuse_context(ask, architecture.max_context_tokens, settings.max_model_len, "vLLM"),
        *cache_faults(architecture, ask.kv_cache),
        *_speculation_faults(ask, settings.version),
        *_rank_faults(ask),
    ]
    if faults:
        raise Faults(faults)
    _require_derived(fmt)
    dtype_bytes = value_bytes(architecture, fmt)
    kind = CacheKind(
        tensor=spread.tensor,
        value_bytes=cache_kind_bytes(ask.kv_cache, dtype_bytes),
        dtype_bytes=dtype_bytes,
        block_tokens=settings.block_tokens,
        hybrid=settings.hybrid,
        cache_dtype=ask.kv_cache,
        speculative_tokens=ask.speculation.proposed,
        state_pages=2 if settings.prefix_caching else 1,
        state_bytes=_state_bytes(architecture, settings.version),
        by_block=settings.prefix_caching and architecture.model_type in STATES_BY_BLOCK,
        context=spread.context,
    )
    draft = read_beside(ask.speculation.draft, DRAFT) if ask.speculation.draft is not None else None
    return Plan(settings, split, stage_weights(architecture, fmt, split), kind, dtype_bytes, draft, spread.expert, fmt)


def _state_bytes(architecture: Architecture, version: tuple[int, int, int]) -> int:
    """Bytes of a value of recurrent states where a release's rule for the type fixes them; 0: the rule of all releases."""
    since = FP32_STATES_SINCE.get(architecture.model_type)
    return 4 if since is not None and version >= since else 0


def _format_faults(fmt: Format, gpu: Gpu, version: tuple[int, int, int]) -> list[Fault]:
    """Formats that the release has no loader for, or whose kernels don't run on the card."""
    minimum = MINIMUM_CAPABILITY | (TURING_MARLIN if version >= TURING_MARLIN_SINCE else {})
    minimum |= {"bf16": (7, 0)} if version >= HALVES_SINCE else {}
    refused = REFUSED_FORMATS if version >= FILES_UNTIL else {}
    return [*refuse_format(fmt, "vLLM", refused), *refuse_dtype(fmt, gpu, "vLLM", minimum)]


def _page_faults(settings: Settings) -> list[Fault]:
    """Attention kernels page multiples of 16 tokens (``get_supported_kernel_block_sizes``)."""
    if settings.block_tokens % BLOCK_STEP == 0 or settings.version < V1_SINCE:
        return []
    message = f"vLLM's attention kernels read blocks of multiples of {BLOCK_STEP} tokens; got {settings.block_tokens}"
    return [Fault("inference.engine_options.block_size", message)]


def _require_derived(fmt: Format) -> None:
    reason = next((reason for start, reason in UNDERIVED_FORMATS.items() if fmt.name.startswith(start)), None)
    if reason is not None:
        raise NotModelled(f"weights: {fmt.name} under vLLM has no closed form yet: {reason}")


def _speculation_faults(ask: Inference, version: tuple[int, int, int]) -> list[Fault]:
    if ask.speculation.method != "draft" or not NO_DRAFTS_SINCE <= version < DRAFTS_AGAIN:
        return []
    message = f"vLLM {'.'.join(map(str, version))} has no draft models; use ngram, eagle or mtp, or a release from 0.14 on"
    return [Fault("inference.speculation.method", message)]


def _rank_faults(ask: Inference) -> list[Fault]:
    most = LORA_RANKS[-1]
    if not ask.adapters.count or ask.adapters.rank <= most:
        return []
    return [Fault("inference.adapters.rank", f"vLLM serves adapters up to rank {most}; got {ask.adapters.rank}")]


def _in_slots(scenario: Scenario, notes: list[str]) -> Scenario:
    """The scenario with slots of the rank that vLLM makes them for: the next that ``max_lora_rank`` may be."""
    asked = scenario.inference.adapters
    rank = next((rank for rank in LORA_RANKS if rank >= asked.rank), asked.rank)
    if not asked.count or rank == asked.rank:
        return scenario
    notes.append(f"inference.adapters.rank: slots of max_lora_rank {rank}, the next that vLLM takes, for rank {asked.rank}")
    return replace(scenario, inference=replace(scenario.inference, adapters=replace(asked, rank=rank)))


def multiprocessors(name: str) -> int:
    """Multiprocessors of a card, by its catalog name."""
    return next((count for part, count in MULTIPROCESSORS if part in name), OTHER_MULTIPROCESSORS)


def _rank(
    scenario: Scenario,
    architecture: Architecture,
    fmt: Format,
    gpu: Gpu,
    machine: Overheads,
    plan: Plan,
    stage: StageWeights,
    run: ProfileRun,
) -> RankMemory:
    tensor = plan.split.tensor
    loaded = (
        loaded_bytes(stage)
        + rotary_bytes(architecture, plan.dtype_bytes)
        + mxfp4_padding_bytes(architecture, fmt, stage, tensor, plan.experts, gpu.arch)
        + absorbed_bytes(architecture, fmt, stage.layers, tensor, contiguous=False)
    )
    if stage.stage == len(plan.stages) - 1:
        loaded += draft_bytes(architecture, scenario, plan.draft, plan.fmt, plan.dtype_bytes, tensor)[0]
    host = share_of(loaded, scenario.offload.weights)
    return RankMemory(
        stage=stage.stage,
        weights_bytes=loaded - host,
        adapters_bytes=adapters_bytes(
            architecture, scenario, stage.layers, plan.split, experts=plan.settings.version >= EXPERT_SLOTS_SINCE
        ),
        activations_bytes=run.peak_bytes,
        graphs_bytes=_graph_bytes(plan.settings, run, machine),
        libraries_bytes=_libraries(plan, stage),
        buffers_bytes=counts_bytes(architecture, plan.settings) if stage.stage == len(plan.stages) - 1 else 0,
        host_bytes=host * tensor,
    )


def _libraries(plan: Plan, stage: StageWeights) -> int:
    release = plan.settings.release
    if plan.split.tensor > 1:
        return release.collective_bytes
    samples = stage.stage == len(plan.stages) - 1
    return release.non_torch_bytes if samples else min(PIPELINE_NON_TORCH_BYTES, release.non_torch_bytes)


def capture_sizes(largest: int) -> int:
    """How many batch sizes are captured: 1, 2, 4, steps of 8 below 256, of 16 from there (``VllmConfig._set_cudagraph_sizes``)."""
    if largest < 1:
        return 0
    small = sum(1 for size in (1, 2, 4) if size <= largest)
    return small + len(range(8, min(largest + 1, 256), 8)) + len(range(256, largest + 1, 16))


def _graph_bytes(settings: Settings, run: ProfileRun, machine: Overheads) -> int:
    """Whole-model and piecewise graphs of every captured size, and the step of the largest in their pool."""
    count = capture_sizes(settings.capture_size)
    return 2 * count * machine.graph_bytes + run.forward_bytes * settings.capture_size // max(1, settings.batched_tokens)


def _layout(architecture: Architecture, scenario: Scenario, plan: Plan, stage: StageWeights) -> Layout:
    """The last stage caches the proposing layers too: vLLM registers them like the model's (``gpu_model_runner.py``)."""
    last = stage.stage == len(plan.stages) - 1
    beside = proposing_mixers(architecture, scenario, plan.draft) if last else ()
    return cache_layout(architecture, plan.kind, stage.layers, beside)


def _pools(settings: Settings, capacity: int, ranks: tuple[RankMemory, ...], layouts: tuple[Layout, ...]) -> tuple[Pool, ...]:
    requested = share_of(capacity, settings.utilization)
    found: list[Pool] = []
    for rank, layout in zip(ranks, layouts, strict=True):
        graphs = rank.graphs_bytes if settings.release.subtracts_graphs else 0
        left = requested - (rank.fixed_bytes - rank.graphs_bytes) - graphs
        found.append(layout.pool(left if settings.kv_bytes is None else settings.kv_bytes))
    return tuple(found)


def _server(
    scenario: Scenario,
    architecture: Architecture,
    machine: Overheads,
    settings: Settings,
    plan: Plan,
    ranks: tuple[RankMemory, ...],
    runs: tuple[ProfileRun, ...],
    layouts: tuple[Layout, ...],
    pools: tuple[Pool, ...],
) -> Server:
    version = ".".join(map(str, settings.version))
    first = ranks[0]
    band = NON_TORCH_BAND_BYTES + (COLLECTIVE_BAND_BYTES if plan.split.tensor > 1 else 0)
    band += first.activations_bytes * band_permille("vllm", "activations", ACTIVATION_PERMILLE) // PERMILLE
    band += first.weights_bytes * band_permille("vllm", "weights", WEIGHT_PERMILLE) // PERMILLE
    band += first.graphs_bytes * GRAPH_PERMILLE // PERMILLE if settings.release.subtracts_graphs else 0

    def terms() -> list[Term]:
        because = f"vLLM {version} v1/core/kv_cache_utils.py: utilization · total − everything else"
        return [
            *weight_terms(plan.stages, [rank.weights_bytes for rank in ranks], f"vLLM {version} model_executor/layers"),
            *(_activation_term(run, rank, version) for run, rank in zip(runs, ranks, strict=True)),
            *_other_terms(settings, ranks, scenario, machine),
            *_count_terms(settings, architecture, ranks, version),
            *pool_terms(pools, layouts[0], because),
        ]

    def log() -> tuple[str, ...]:
        return (
            f"Model loading took {first.weights_bytes / GIB:.2f} GiB",
            f"Available KV cache memory: {pools[0].size_bytes / GIB:.2f} GiB",
            f"GPU KV cache size: {server.kv_tokens:,} tokens",
            f"Maximum concurrency for {settings.max_model_len:,} tokens per request: {server.concurrency:.2f}x",
        )

    server = Server(
        ranks=ranks, pools=pools, max_model_len=settings.max_model_len, scheduled_tokens=settings.scheduled_tokens,
        uncertainty_bytes=band, terms=LaterSequence(terms), notes=tuple(_notes(scenario, architecture, plan)),
        version=f"vLLM {version}",
        log=log, tokens_by_concurrency=settings.release.tokens_by_concurrency, max_requests=settings.sequences,
        prefix_caching=settings.prefix_caching, swap_bytes=settings.swap_bytes,
    )  # fmt: skip
    return server


def _notes(scenario: Scenario, architecture: Architecture, plan: Plan) -> list[str]:
    notes: list[str] = []
    method = scenario.inference.speculation.method
    if method not in ("none", "ngram"):
        notes.append(
            f"speculation: {draft_bytes(architecture, scenario, plan.draft, plan.fmt, plan.dtype_bytes, plan.split.tensor)[1]}"
        )
    if scenario.offload.kv_cache:
        notes.append("offload.kv_cache: blocks kept on the host are beside the GPU's pool, which stays as large as it is")
    if architecture.towers:
        notes.append(
            "the profile run counts a tower's outputs of one step; what its forward over the largest images takes follows the "
            "processor's limits, which no config tells, and shrinks the pool further (see --limit-mm-per-prompt)"
        )
    return notes


def _activation_term(run: ProfileRun, rank: RankMemory, version: str) -> Term:
    because = f"vLLM {version} v1/worker/gpu_model_runner.py profile_run: the larger of forward and sampler"
    return Term("activations", run.formula, {"stage": rank.stage, **run.values}, run.peak_bytes, "derived", because, "prefill")


def _count_terms(settings: Settings, architecture: Architecture, ranks: tuple[RankMemory, ...], version: str) -> list[Term]:
    """One term for the rank that samples, in the phases in which the server runs."""
    because = f"vLLM {version} v1/worker/gpu/sample/penalties.py: output_bin_counts and prompt_bin_mask of every sequence"
    formula = "4 · sequences · (vocab_size + ⌈vocab_size / 32⌉)"
    return [
        Term(
            "workspace", formula, {"stage": rank.stage, "sequences": settings.sequences, "vocab_size": architecture.vocab_size},
            rank.buffers_bytes, "derived", because, phase,
        )
        for rank in ranks
        if rank.buffers_bytes
        for phase in ("prefill", "decode")
    ]  # fmt: skip


def _other_terms(settings: Settings, ranks: tuple[RankMemory, ...], scenario: Scenario, machine: Overheads) -> list[Term]:
    found: list[Term] = []
    sizes = capture_sizes(settings.capture_size)
    for rank in ranks:
        forward = rank.graphs_bytes - 2 * sizes * machine.graph_bytes
        graphs = {"stage": rank.stage, "sizes": sizes, "graph_bytes": machine.graph_bytes, "forward": forward}
        if rank.graphs_bytes:
            formula = "2 · sizes · graph_bytes + forward, of the largest size"
            because = settings.release.source if machine.graph_certainty == "modelled" else machine.source
            found.append(Term("cuda_graphs", formula, graphs, rank.graphs_bytes, machine.graph_certainty, because))
        found += library_terms(rank.stage, rank.libraries_bytes, "measured", settings.release.source)
        found += adapter_terms(rank.stage, scenario, rank.adapters_bytes, "vLLM lora/layers: slots are taken up front")
    return found
