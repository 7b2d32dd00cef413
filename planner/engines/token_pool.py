"""A pool of equal pages for every layer, as SGLang, TensorRT-LLM and TGI keep it: what a token takes, and what is left for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace

from planner.architecture.layers import Architecture, Recurrent, SequenceMixer
from planner.calibration import PERMILLE
from planner.engines.beside import DRAFT, read_beside
from planner.engines.loading import loaded_bytes, rotary_bytes
from planner.engines.paged import Layout, PageSpec, Pool
from planner.engines.refusals import (
    halved_as_fp16,
    refuse_card,
    refuse_context,
    refuse_dtype,
    refuse_expert,
    refuse_format,
    refuse_layout,
    refuse_offload,
    refuse_speculation,
    require_decoder,
)
from planner.engines.served_weights import (
    absorbed_bytes,
    adapters_bytes,
    draft_bytes,
    proposing_mixers,
    value_bytes,
    with_declared_cache,
)
from planner.engines.serving import RankMemory, Server
from planner.engines.serving_terms import adapter_terms, library_terms, pool_terms, weight_terms
from planner.engines.shares import share_of
from planner.engines.step import step_bytes, widest_layer_bytes
from planner.engines.vllm.cache import CacheKind, page_specs
from planner.faults import Fault, Faults
from planner.footprint import Term
from planner.formats import Format
from planner.gpu import Gpu
from planner.machine import Overheads
from planner.modelled import NotModelled
from planner.record import record
from planner.scenario import Scenario
from planner.sharding import VOCABULARY_PADDING, Split, StageWeights, split_faults, stage_weights
from planner.symbolic.amount import largest, smallest
from planner.uncertainty import band_permille, rows_of
from planner.units import GIB

RELEASE = re.compile(r"v?\d+\.\d+")
COLLECTIVE_BYTES = int(0.6 * GIB)
"""NCCL's buffers on each of several GPUs: 544 to 688 MB a communicator on A100 with NVLink, as published."""
_NO_ROOM = "no token's cache fits beside weights, steps and graphs: the server refuses to start"
_NO_STATES = "the slots of recurrent states hold no request: the server refuses to start"
BAND_BYTES = int(0.3 * GIB)
ACTIVATION_PERMILLE, WEIGHT_PERMILLE = 300, 10
"""No published run tells activations of these engines apart: the step's closed form is taken, with a wide band."""


@record
class Rules:
    """How one engine names itself and what it refuses. ``cache_bytes``: bytes of a value by name, 0 for the model's own."""

    engine: str
    version: str
    source: str
    cache_bytes: Mapping[str, int]
    refused_formats: Mapping[str, str]
    minimum_capability: Mapping[str, tuple[int, int]]
    declared_caches: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    """The cache types it takes from a checkpoint's config, by the beginning of its format's name."""
    state_bytes: int = 0
    """Bytes of a value of recurrent states; 0: as the model's own rule says."""
    offloads: tuple[str, ...] = ()
    """What it can keep on the host."""
    speculations: tuple[str, ...] = ("draft", "ngram", "mtp", "eagle")
    vendors: tuple[str, ...] = ("NVIDIA", "AMD", "Intel")
    """Makers of the cards it has a backend for."""
    underived_formats: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Formats it loads whose sizes are not derived: the reason by the beginning of a name."""
    absorbs: bool = True
    """Whether it keeps a copy of latent attention's up projection to decode with."""
    other_releases: str = ""
    """What of other releases is told apart, in words."""


@record
class Setup:
    """A scenario as a pool engine starts it, up to the size of the pool. ``state_bytes``: of one sequence on each stage."""

    rules: Rules
    architecture: Architecture
    stages: tuple[StageWeights, ...]
    ranks: tuple[RankMemory, ...]
    token_bytes: tuple[int, ...]
    state_bytes: tuple[int, ...]
    max_model_len: int
    notes: tuple[str, ...]
    kind: CacheKind
    beside: tuple[SequenceMixer, ...] = ()
    """The layers of what proposes tokens, on the last stage."""
    draft_bytes: int = 0
    """Weights of what proposes tokens, counted among those of the last stage."""
    steps: tuple[Mapping[str, int], ...] = ()
    """What a step's activations are made of on each stage."""
    graph_sizes: int = 0


@record
class Filled:
    """What a rank's room holds: the pool, recurrent states of ``states_bytes``, and so the requests that can run."""

    pool: Pool
    states_bytes: int = 0
    most_requests: int | None = None


def set_up(
    scenario: Scenario,
    architecture: Architecture,
    fmt: Format,
    gpu: Gpu,
    machine: Overheads,
    rules: Rules,
    *,
    step_tokens: int,
    graph_sizes: int,
) -> Setup:
    """Weights, activations of a step of ``step_tokens`` tokens, graphs and the cache of a token, on each stage.

    Raises :class:`planner.faults.Faults` for what the engine refuses.
    """
    require_decoder(architecture, rules.engine)
    scenario, declared = with_declared_cache(scenario, fmt, rules.declared_caches)
    notes = [*read_as(scenario, rules), *declared, *halved_as_fp16(fmt, gpu, rules.engine)]
    max_model_len = _max_model_len(scenario, architecture, rules, notes)
    split = Split(scenario.parallel.tensor, scenario.parallel.pipeline, scenario.parallel.expert, VOCABULARY_PADDING)
    _refuse(scenario, architecture, fmt, gpu, rules, split, max_model_len)
    dtype_bytes = value_bytes(architecture, fmt)
    stages = stage_weights(architecture, fmt, split)
    width = rules.cache_bytes[scenario.inference.kv_cache] or dtype_bytes
    kind = CacheKind(
        tensor=split.tensor, value_bytes=width, dtype_bytes=dtype_bytes, block_tokens=1, hybrid=False, state_bytes=rules.state_bytes
    )
    draft = _draft(scenario)
    beside = proposing_mixers(architecture, scenario, draft)
    cells = [_cells(architecture, kind, stage.layers, beside if stage is stages[-1] else ()) for stage in stages]
    draft_size, proposed = draft_bytes(architecture, scenario, draft, fmt, dtype_bytes, split.tensor)
    beside_model = [
        absorbed_bytes(architecture, fmt, stage.layers, split.tensor, contiguous=True) * rules.absorbs
        + draft_size * (stage is stages[-1])
        for stage in stages
    ]
    ranks = tuple(
        _rank(scenario, architecture, stage, split, dtype_bytes, machine, step_tokens, graph_sizes, more)
        for stage, more in zip(stages, beside_model, strict=True)
    )
    if scenario.inference.speculation.method not in ("none", "ngram"):
        notes.append(f"speculation: {proposed}")
    return Setup(
        rules, architecture, stages, ranks, tuple(token for token, _ in cells), tuple(state for _, state in cells),
        max_model_len, tuple(notes), kind, beside, draft_size,
        tuple(_step_values(architecture, stage, split, dtype_bytes, machine, step_tokens) for stage in stages), graph_sizes,
    )  # fmt: skip


def read_as(scenario: Scenario, rules: Rules) -> list[str]:
    """In words that another release than the one read was asked for. Raises Faults for what is no release."""
    given = scenario.inference.engine_options.get("version")
    if given is None or str(given).removeprefix("v") == rules.version:
        return []
    if RELEASE.match(str(given)) is None:
        message = f"{str(given)[:40]!r} is no {rules.engine} release; write it like {rules.version}"
        raise Faults([Fault("inference.engine_options.version", message)])
    stands = rules.other_releases or f"release {rules.version} was read and stands for it"
    return [f"inference.engine_options.version: {given}; {stands}"]


def _max_model_len(scenario: Scenario, architecture: Architecture, rules: Rules, notes: list[str]) -> int:
    asked = scenario.inference.max_model_len
    if asked is not None:
        return asked
    limit = architecture.max_context_tokens or scenario.inference.context_tokens
    notes.append(f"inference.max_model_len: {limit}, the model's own limit, as {rules.engine} takes it")
    return limit


def _refuse(
    scenario: Scenario, architecture: Architecture, fmt: Format, gpu: Gpu, rules: Rules, split: Split, max_model_len: int
) -> None:
    faults = [
        *refuse_card(gpu, rules.engine, rules.vendors),
        *refuse_layout(scenario, rules.engine),
        *refuse_offload(scenario, rules.engine, rules.offloads),
        *refuse_speculation(scenario, rules.engine, rules.speculations),
        *refuse_expert(scenario, architecture),
        *split_faults(architecture, split),
        *refuse_format(fmt, rules.engine, rules.refused_formats),
        *refuse_dtype(fmt, gpu, rules.engine, rules.minimum_capability),
        *refuse_context(scenario.inference, architecture.max_context_tokens, max_model_len, rules.engine),
    ]
    if scenario.inference.kv_cache not in rules.cache_bytes:
        names = ", ".join(rules.cache_bytes)
        faults.append(Fault("inference.kv_cache", f"{rules.engine} has no cache type {scenario.inference.kv_cache}; use {names}"))
    if faults:
        raise Faults(faults)
    reason = next((reason for start, reason in rules.underived_formats.items() if fmt.name.startswith(start)), None)
    if reason is not None:
        raise NotModelled(f"weights: {fmt.name} under {rules.engine} has no closed form yet: {reason}")


def _cells(architecture: Architecture, kind: CacheKind, layers: range, beside: Sequence[SequenceMixer]) -> tuple[int, int]:
    """(bytes of a token in the attention layers and those ``beside`` them, bytes of a sequence's states)."""
    mixers = [*(mixer for index in layers for mixer in architecture.decoder.layers[index].sequence), *beside]
    attention = [mixer for mixer in mixers if not isinstance(mixer, Recurrent)]
    recurrent = [mixer for mixer in mixers if isinstance(mixer, Recurrent)]
    token = sum(spec.page_bytes // spec.block_tokens for spec in page_specs(attention, kind, architecture.model_type))
    return token, sum(spec.page_bytes for spec in page_specs(recurrent, kind, architecture.model_type))


def _draft(scenario: Scenario) -> Architecture | None:
    draft = scenario.inference.speculation.draft
    return None if draft is None else read_beside(draft, DRAFT)


def _rank(
    scenario: Scenario,
    architecture: Architecture,
    stage: StageWeights,
    split: Split,
    dtype_bytes: int,
    machine: Overheads,
    step_tokens: int,
    graph_sizes: int,
    beside_model: int,
) -> RankMemory:
    loaded = loaded_bytes(stage) + rotary_bytes(architecture, dtype_bytes) + beside_model
    host = share_of(loaded, scenario.offload.weights)
    step = step_bytes(architecture, stage.layers, step_tokens, split.tensor, split.experts, dtype_bytes)
    return RankMemory(
        stage=stage.stage,
        weights_bytes=loaded - host,
        adapters_bytes=adapters_bytes(architecture, scenario, stage.layers, split),
        activations_bytes=step + machine.cublas_workspace_bytes,
        graphs_bytes=graph_sizes * 2 * machine.graph_bytes,
        libraries_bytes=COLLECTIVE_BYTES if split.tensor * split.pipeline > 1 else 0,
        host_bytes=host * split.tensor,
    )


def _step_values(
    architecture: Architecture, stage: StageWeights, split: Split, dtype_bytes: int, machine: Overheads, step_tokens: int
) -> dict[str, int]:
    return {
        "hidden_size": architecture.hidden_size, "bytes": dtype_bytes,
        "widest_layer": widest_layer_bytes(
            architecture, stage.layers, step_tokens, split.tensor, split.experts, dtype_bytes, step_tokens
        ),
        "workspace": machine.cublas_workspace_bytes,
    }  # fmt: skip


def flat_fill(
    room: Callable[[RankMemory], int], *, page_tokens: int, most_tokens: int | None, states: int
) -> Callable[[RankMemory, Setup], Filled]:
    """Pages of ``page_tokens`` tokens for every layer alike, in what ``states`` sequences' states leave of ``room``."""

    def fill(rank: RankMemory, setup: Setup) -> Filled:
        token, held = setup.token_bytes[rank.stage], states * setup.state_bytes[rank.stage]
        spec = PageSpec("full", page_tokens, page_tokens * token)
        blocks = largest(0, room(rank) - held) // spec.page_bytes
        if most_tokens is not None:
            blocks = smallest(blocks, most_tokens // page_tokens)
        return Filled(Pool((spec,), spec.page_bytes, blocks), held)

    return fill


def flat_server(
    scenario: Scenario,
    setup: Setup,
    *,
    fill: Callable[[RankMemory, Setup], Filled],
    max_requests: int,
    step_tokens: int,
    because: str,
    log: Callable[[RankMemory, Pool], tuple[str, ...]],
    states_by_batch: bool = False,
    lowers_limit: bool = True,
) -> Server:
    """The server whose ranks hold what ``fill`` puts into what is left of them.

    ``lowers_limit``: it starts with a pool shorter than its longest request too (SGLang ``tp_worker.py`` ``max_req_len``,
    TensorRT-LLM ``resource_manager.py``, TGI ``warmup`` where ``max_total_tokens`` is not given).
    """
    if not all(setup.token_bytes):
        raise NotModelled(f"{setup.rules.engine}: a model without attention keeps no pool of tokens")
    filled = [fill(rank, setup) for rank in setup.ranks]
    pools = tuple(each.pool for each in filled)
    ranks = tuple(replace(rank, states_bytes=each.states_bytes) for rank, each in zip(setup.ranks, filled, strict=True))
    first = ranks[0]
    version = f"{setup.rules.engine} {setup.rules.version}"
    terms = [
        *weight_terms(setup.stages, [rank.weights_bytes for rank in setup.ranks], setup.rules.source),
        *(term for rank in ranks for term in _rank_terms(setup, rank, step_tokens, scenario)),
        *pool_terms(pools, Layout(pools[0].groups, pools[0].block_bytes), because),
    ]
    running = [each.most_requests for each in filled if each.most_requests is not None]
    refused = [_NO_ROOM] if min(pool.blocks for pool in pools) == 0 else [_NO_STATES] if 0 in running else []
    return Server(
        ranks=ranks, pools=pools, max_model_len=setup.max_model_len, scheduled_tokens=step_tokens,
        uncertainty_bytes=_band(setup.rules.engine, first), terms=tuple(terms),
        notes=(*setup.notes, _known_runs(setup.rules.engine)),
        version=version, log=lambda: log(first, min(pools, key=lambda pool: pool.blocks)),
        max_requests=min([max_requests, *running]),
        states_by_batch=states_by_batch and any(setup.state_bytes), lowers_limit=lowers_limit, refused=tuple(refused),
    )  # fmt: skip


def _band(engine: str, rank: RankMemory) -> int:
    """Half-width of the pool's error: a stated one, and that of weights and activations."""
    name = engine.lower()
    activations = rank.activations_bytes * band_permille(name, "activations", ACTIVATION_PERMILLE) // PERMILLE
    return BAND_BYTES + activations + rank.weights_bytes * band_permille(name, "weights", WEIGHT_PERMILLE) // PERMILLE


def _known_runs(engine: str) -> str:
    rows = rows_of(engine.lower())
    return f"the error band is stated, not measured: recorded runs of {engine} that could be told apart: {rows or 'none'}"


def _rank_terms(setup: Setup, rank: RankMemory, step_tokens: int, scenario: Scenario) -> list[Term]:
    version, stage = f"{setup.rules.engine} {setup.rules.version}", rank.stage
    found = [
        Term(
            "activations", "4 · tokens · hidden_size · bytes + widest_layer + workspace",
            {"stage": stage, "tokens": step_tokens, **setup.steps[stage]}, rank.activations_bytes, "modelled",
            f"{version}: a step of the longest prefill", "prefill",
        )
    ]  # fmt: skip
    if rank.graphs_bytes:
        values = {"stage": stage, "sizes": setup.graph_sizes, "graph_bytes": rank.graphs_bytes // (2 * setup.graph_sizes)}
        because = f"{version}: captured batch sizes"
        found.append(Term("cuda_graphs", "2 · sizes · graph_bytes", values, rank.graphs_bytes, "modelled", because))
    found += adapter_terms(stage, scenario, rank.adapters_bytes, f"{version}: slots are taken up front")
    if rank.states_bytes:
        because, each = (
            f"{version}: slots for sequences that may run, and what the engine keeps beside them",
            setup.state_bytes[stage],
        )
        values = {"stage": stage, "slots": rank.states_bytes // each, "state_bytes": each}
        found.append(Term("recurrent_state", "slots · state_bytes", values, rank.states_bytes, "derived", because))
    return found + library_terms(stage, rank.libraries_bytes, "modelled", "NCCL communicators as published, A100 NVLink")
