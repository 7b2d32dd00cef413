"""What the serving engines share: a request's tokens, a rank's memory, and the answer made of them.

A server takes its memory before the first request: weights, libraries, what a step needs, and a pool for the caches in
the rest. It fits when the pool holds a sequence of the greatest length it accepts, and the requests asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from planner.architecture.counts import parameter_count as counted_parameters
from planner.architecture.layers import Architecture
from planner.engines.paged import Pool
from planner.engines.serving_terms import context_term, host_terms, on_gpus
from planner.engines.shares import parts_of, share_of
from planner.footprint import Footprint, GpuFootprint, Host, Phase, Term, Verdict
from planner.gpu import Gpu
from planner.later import LaterMapping, LaterSequence
from planner.machine import Overheads
from planner.memo import remember_by_identity
from planner.record import record
from planner.scenario import Scenario, to_json
from planner.symbolic.amount import largest
from planner.units import GIB

parameter_count = remember_by_identity(64)(counted_parameters)


@record
class RankMemory:
    """Bytes of one GPU outside the pool. ``libraries_bytes``: CUDA context, NCCL, kernels, all outside torch."""

    stage: int
    weights_bytes: int
    adapters_bytes: int
    activations_bytes: int
    graphs_bytes: int
    libraries_bytes: int
    host_bytes: int = 0
    states_bytes: int = 0
    """Recurrent states in slots of their own beside the pool."""
    buffers_bytes: int = 0
    """What the server keeps for its requests beside caches and states."""

    @property
    def fixed_bytes(self) -> int:
        """Everything but the pool."""
        held = self.weights_bytes + self.adapters_bytes + self.activations_bytes + self.graphs_bytes
        return held + self.buffers_bytes + self.libraries_bytes


@record
class Server:
    """A serving engine's memory, ready to be told: one rank for each pipeline stage, its pool, terms and log lines."""

    ranks: tuple[RankMemory, ...]
    pools: tuple[Pool, ...]
    max_model_len: int
    scheduled_tokens: int
    uncertainty_bytes: int
    terms: Sequence[Term]
    notes: tuple[str, ...]
    version: str
    log: Callable[[], tuple[str, ...]]
    """The lines of the engine's own log, made for those who look."""
    tokens_by_concurrency: bool = False
    """Whether the engine counts its tokens as maximum concurrency · ``max_model_len``."""
    max_requests: int | None = None
    prefix_caching: bool = True
    swap_bytes: int = 0
    """Host memory that each GPU's worker pins for preempted requests."""
    refused: tuple[str, ...] = ()
    """Why the server would not start whatever its pool."""
    lowers_limit: bool = False
    """Whether a pool too small for ``max_model_len`` lowers that limit, rather than keep the server from starting."""
    states_by_batch: bool = False
    """Whether it takes slots of recurrent states for as many sequences as the scenario asks."""

    @property
    def pool(self) -> Pool:
        """The pool that bounds the others: every stage uses as many blocks as the poorest has."""
        return min(self.pools, key=lambda pool: pool.blocks)

    @property
    def concurrency(self) -> float:
        """Sequences of the greatest length that the pool holds at once."""
        return self.pool.concurrency(self.max_model_len, self.scheduled_tokens)

    @property
    def kv_tokens(self) -> int:
        """Tokens of cache, as the engine counts them."""
        return int(self.concurrency * self.max_model_len) if self.tokens_by_concurrency else self.pool.tokens


def request_blocks(pool: Pool, scenario: Scenario, server: Server, tokens: int | None = None) -> tuple[int, int]:
    """(blocks of the first request, blocks of every further one), its parallel samples and the common prefix counted once.

    ``tokens``: of one request at its end, in place of the scenario's own.
    """
    ask = scenario.inference
    asked = ask.context_tokens if tokens is None else tokens
    prompt = (ask.prompt_tokens or 0) if tokens is None else max(0, tokens - (ask.new_tokens or 1))
    held = max(1, asked + ask.speculation.proposed)
    alone = pool.sequence_blocks(held, server.scheduled_tokens)
    sample = pool.sequence_blocks(held, server.scheduled_tokens, prompt)
    first = alone + (ask.samples - 1) * sample
    if not server.prefix_caching or not ask.shared_prefix:
        return first, first
    shared = share_of(prompt, ask.shared_prefix)
    further = pool.sequence_blocks(held, server.scheduled_tokens, shared)
    return first, further + (ask.samples - 1) * sample


def blocks_asked(pool: Pool, scenario: Scenario, server: Server, tokens: int | None = None) -> int:
    """Blocks of all requests of one replica at their end."""
    first, further = request_blocks(pool, scenario, server, tokens)
    requests = -(-scenario.inference.batch // scenario.parallel.data)
    return first + (requests - 1) * further


def serving_footprint(
    scenario: Scenario,
    architecture: Architecture,
    gpu: Gpu,
    machine: Overheads,
    capacity: int,
    server: Server,
    notes: Sequence[str],
) -> Footprint:
    """The answer of a serving engine: every GPU of every replica, limits, verdict, terms and log lines."""
    verdict, reasons = _verdict(scenario, server)
    gpus = _gpus(scenario, server, machine, capacity)
    pool = server.pool
    asked = blocks_asked(pool, scenario, server)
    replicas = scenario.parallel.data
    weights = sum(rank.weights_bytes * scenario.parallel.tensor + rank.host_bytes for rank in server.ranks)
    host = _host(scenario, server)
    return Footprint(
        scenario=to_json(scenario),
        level="predict",
        parameters=parameter_count(architecture),
        trainable_parameters=0,
        weight_bytes=weights,
        gpus=gpus,
        host=Host(sum(host.values()), host),
        verdict=verdict,
        headroom_bytes=(pool.blocks - asked) * pool.block_bytes,
        uncertainty_bytes=server.uncertainty_bytes,
        limits=LaterMapping(lambda: _limits(scenario, server, replicas)),
        terms=LaterSequence(lambda: _terms(scenario, server, machine, host)),
        notes=(
            *notes,
            *server.notes,
            *reasons,
            *_on_disk(scenario, server),
            f"as {server.version} sets up its memory on {gpu.name}",
        ),
        extra=LaterMapping(lambda: {"engine": _engine_figures(server)}),
    )


def _terms(scenario: Scenario, server: Server, machine: Overheads, host: Mapping[str, int]) -> list[Term]:
    spread = scenario.parallel
    placed = on_gpus(server.terms, len(server.ranks), spread.tensor, spread.data)
    return [*placed, context_term(machine), *host_terms(host, server.version)]


def _host(scenario: Scenario, server: Server) -> dict[str, int]:
    """What lies in host memory: weights of all replicas, swap space, and blocks kept beside the pools on the GPUs."""
    spread = scenario.parallel
    weights = sum(rank.host_bytes for rank in server.ranks) * spread.data
    blocks = _blocks_beside(scenario, server) if scenario.offload.to == "cpu" else 0
    held = {"weights": weights, "kv_cache": blocks + server.swap_bytes * len(server.ranks) * spread.tensor * spread.data}
    return {name: size for name, size in held.items() if size}


def _blocks_beside(scenario: Scenario, server: Server) -> int:
    """Bytes of the blocks off the GPUs, which are ``offload.kv_cache`` of all blocks."""
    spread, share = scenario.parallel, scenario.offload.kv_cache
    pools = sum(server.pool.blocks * pool.block_bytes for pool in server.pools) * spread.tensor * spread.data
    parts, whole = parts_of(share)
    return pools * parts // (whole - parts) if share else 0


def _on_disk(scenario: Scenario, server: Server) -> list[str]:
    if scenario.offload.to != "nvme" or not scenario.offload.kv_cache:
        return []
    size = _blocks_beside(scenario, server)
    return [f"offload.to: {size / GIB:.2f} GiB of cache blocks lie on the disk; the buffers they pass through are not counted"]


def _engine_figures(server: Server) -> dict[str, object]:
    pool = server.pool
    return {
        "version": server.version,
        "weights_bytes": server.ranks[0].weights_bytes,
        "kv_cache_bytes": server.pools[0].size_bytes,
        "kv_tokens": server.kv_tokens,
        "max_concurrency": round(server.concurrency, 2),
        "blocks": pool.blocks,
        "block_tokens": pool.block_tokens,
        "groups": len(pool.groups),
        "log": list(server.log()),
    }


def _limits(scenario: Scenario, server: Server, replicas: int) -> dict[str, int | None]:
    """What the server holds: no batch where it refuses to start. Where states follow the batch its limit is left to a search."""
    pool = server.pool
    known: dict[str, int | None] = {
        "kv_tokens": server.kv_tokens * replicas,
        "max_concurrency": int(server.concurrency) * replicas,
        "max_context": longest_context(scenario, server),
    }
    if server.refused or _cannot_start(server, pool):
        return known | {"max_batch": 0}
    if server.states_by_batch:
        return known
    if not pool.groups:
        most = None if server.max_requests is None else server.max_requests * replicas
        return known | {"max_concurrency": most, "max_batch": most}
    first, further = request_blocks(pool, scenario, server)
    batch = 0 if pool.blocks < first else 1 + (pool.blocks - first) // max(1, further)
    if server.max_requests is not None:
        batch = min(batch, server.max_requests)
    return known | {"max_batch": batch * replicas}


def longest_context(scenario: Scenario, server: Server) -> int:
    """The longest requests of which the pool holds as many as are asked for, the server's own limit lowered to them."""
    pool, low, high = server.pool, 0, server.max_model_len
    if not pool.groups:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if blocks_asked(pool, scenario, server, middle) <= pool.blocks:
            low = middle
        else:
            high = middle - 1
    return low


def _cannot_start(server: Server, pool: Pool) -> bool:
    """Whether the pool can't hold one sequence of the greatest length, which the server insists on."""
    return (
        bool(pool.groups)
        and not server.lowers_limit
        and pool.sequence_blocks(server.max_model_len, server.scheduled_tokens) > pool.blocks
    )


def _verdict(scenario: Scenario, server: Server) -> tuple[Verdict, list[str]]:
    """Does not fit when the longest sequence or the requests asked for can't be held; tight when the band decides."""
    reasons = [*server.refused, *_shortfalls(scenario, server, server.pool)]
    if reasons:
        return "does_not_fit", reasons
    pool = server.pool
    poorer = largest(0, pool.blocks - -(-server.uncertainty_bytes // max(1, pool.block_bytes)))
    return ("tight" if _shortfalls(scenario, server, replace(pool, blocks=poorer)) else "fits"), _waiting(scenario, server)


def _waiting(scenario: Scenario, server: Server) -> list[str]:
    return [*_lowered(server), *_queued(scenario, server)]


def _lowered(server: Server) -> list[str]:
    pool = server.pool
    if not server.lowers_limit or not pool.groups or pool.tokens >= server.max_model_len:
        return []
    return [
        f"the pool holds {pool.tokens} tokens: longer requests are refused, though {server.max_model_len} were accepted otherwise"
    ]


def _queued(scenario: Scenario, server: Server) -> list[str]:
    most = None if server.max_requests is None else server.max_requests * scenario.parallel.data
    if most is None or scenario.inference.batch <= most:
        return []
    return [f"{scenario.inference.batch} requests: the server runs {most} at once by its settings, the rest wait"]


def _shortfalls(scenario: Scenario, server: Server, pool: Pool) -> list[str]:
    if not pool.groups:
        return []
    if _cannot_start(server, pool):
        longest = pool.sequence_blocks(server.max_model_len, server.scheduled_tokens)
        fits = pool.longest(server.max_model_len, server.scheduled_tokens)
        reason = (
            f"one sequence of max_model_len {server.max_model_len} needs {longest * pool.block_bytes / GIB:.2f} GiB of cache, "
            f"{pool.size_bytes / GIB:.2f} GiB are left: the server refuses to start; {fits} tokens would fit"
        )
        return [reason]
    asked = blocks_asked(pool, scenario, server)
    if asked > pool.blocks:
        reason = (
            f"{scenario.inference.batch} requests need {asked * pool.block_bytes / GIB:.2f} GiB of cache, "
            f"the pool has {pool.size_bytes / GIB:.2f} GiB: the rest would wait or be preempted"
        )
        return [reason]
    return []


def _gpus(scenario: Scenario, server: Server, machine: Overheads, capacity: int) -> tuple[GpuFootprint, ...]:
    found: list[GpuFootprint] = []
    for _ in range(scenario.parallel.data):
        for rank, pool in zip(server.ranks, server.pools, strict=True):
            phases = _phases(rank, replace(pool, blocks=server.pool.blocks), machine)
            found += [GpuFootprint(len(found) + index, capacity, phases) for index in range(scenario.parallel.tensor)]
    return tuple(found)


def _phases(rank: RankMemory, pool: Pool, machine: Overheads) -> tuple[Phase, ...]:
    """Loading, the widest step, and decoding, where there is a cache to decode with."""
    weights = {"weights": rank.weights_bytes, "adapters": rank.adapters_bytes}
    served = weights | {
        "kv_cache": pool.size_bytes, "recurrent_state": rank.states_bytes, "workspace": rank.buffers_bytes,
        "cuda_graphs": rank.graphs_bytes,
    }  # fmt: skip
    context = machine.context_bytes + rank.libraries_bytes
    loaded = _phase("load", weights, machine.context_bytes)
    stepping = _phase("prefill", served | {"activations": rank.activations_bytes}, context)
    return (loaded, stepping, _phase("decode", served, context)) if pool.groups else (loaded, stepping)


def _phase(name: str, components: Mapping[str, int], context_bytes: int) -> Phase:
    held = {component: size for component, size in components.items() if size}
    allocated = sum(held.values())
    return Phase(name, allocated, allocated, allocated + context_bytes, held | {"cuda_context": context_bytes})
