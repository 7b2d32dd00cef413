"""What the serving engines share: a request's tokens, a rank's memory, and the answer made of them.

A server takes its memory before the first request: weights, libraries, what a step needs, and a pool for the caches in
the rest. It fits when the pool holds a sequence of the greatest length it accepts, and the requests asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache

from planner.architecture.counts import parameter_count as counted_parameters
from planner.architecture.layers import Architecture, LatentAttention
from planner.engines.paged import Layout, Pool
from planner.faults import Fault, Faults
from planner.footprint import Footprint, GpuFootprint, Host, Phase, Term, Verdict
from planner.formats import Format
from planner.formats.storage import DTYPE_BITS
from planner.gpu import Gpu
from planner.later import LaterMapping, LaterSequence
from planner.machine import Overheads
from planner.memo import remember_by_identity
from planner.modelled import NotModelled
from planner.record import record
from planner.scenario import Inference, Scenario, to_json
from planner.sharding import StageWeights
from planner.symbolic.amount import largest

GIB = 2**30
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

    @property
    def fixed_bytes(self) -> int:
        """Everything but the pool."""
        return self.weights_bytes + self.adapters_bytes + self.activations_bytes + self.graphs_bytes + self.libraries_bytes


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


@cache
def parts_of(fraction: float) -> tuple[int, int]:
    """A fraction as it is written: 0.92 is (23, 25)."""
    return Fraction(str(fraction)).as_integer_ratio()


def share_of(size_bytes: int, fraction: float) -> int:
    """⌊size · fraction⌋ in whole numbers, the fraction as it is written: 0.92 is 92 of 100 parts.

    The engines multiply floats, which differs by a byte at most.
    """
    parts, whole = parts_of(fraction)
    return size_bytes * parts // whole


def refuse_context(ask: Inference, limit: int | None, max_model_len: int, engine: str) -> list[Fault]:
    """Lengths the engine refuses: beyond the model's own limit, or requests beyond what the server accepts."""
    faults: list[Fault] = []
    if limit is not None and max_model_len > limit:
        message = f"{engine} refuses {max_model_len}: the model's own limit is {limit}; use at most that"
        faults.append(Fault("inference.max_model_len", message))
    elif ask.context_tokens > max_model_len:
        message = f"{ask.context_tokens} tokens a request exceed max_model_len {max_model_len}; shorten it or raise the limit"
        faults.append(Fault("inference.prompt_tokens", message))
    return faults


def refuse_chunks(ask: Inference, step_tokens: int, prompt_tokens: int, engine: str, option: str) -> list[Fault]:
    """A prompt that is not cut into chunks must fit one step (vLLM ``SchedulerConfig.verify_max_model_len``, others alike)."""
    if ask.chunked_prefill is not False or prompt_tokens <= step_tokens:
        return []
    message = f"without chunked prefill {engine} takes a prompt in one step: {prompt_tokens} tokens exceed {option} {step_tokens}"
    return [Fault("inference.chunked_prefill", f"{message}; raise it or use true")]


def refuse_dtype(fmt: Format, gpu: Gpu, engine: str, minimum: Mapping[str, tuple[int, int]]) -> list[Fault]:
    """Formats the card's kernels can't read. ``minimum``: compute capability by the beginning of a format's name."""
    if gpu.compute_capability is None:
        return []
    for start, capability in minimum.items():
        if fmt.name.startswith(start) and gpu.compute_capability < capability:
            have = ".".join(map(str, gpu.compute_capability))
            need = ".".join(map(str, capability))
            return [Fault("weights", f"{engine} runs {fmt.name} from compute capability {need} on; {gpu.name} has {have}")]
    return []


def refuse_format(fmt: Format, engine: str, refused: Mapping[str, str]) -> list[Fault]:
    """Formats the engine has no loader for. ``refused``: the reason by the beginning of a format's name."""
    for start, reason in refused.items():
        if fmt.name.startswith(start):
            return [Fault("weights", f"{engine} cannot run {fmt.name}: {reason}")]
    return []


def refuse_layout(scenario: Scenario, engine: str) -> list[Fault]:
    """More ranks than GPUs, and ways of spreading that serving doesn't know."""
    spread, cards = scenario.parallel, scenario.hardware.gpus * scenario.hardware.nodes
    faults = [
        Fault(f"parallel.{name}", f"{engine} has no such way of spreading a served model; use {default}")
        for name, value, default in (("context", spread.context != 1, "1"), ("sharding", spread.sharding != "none", "none"))
        if value
    ]
    ranks = spread.tensor * spread.pipeline * spread.data
    if ranks > cards:
        message = f"{spread.tensor} · {spread.pipeline} · {spread.data} ranks need {ranks} GPUs, there are {cards}"
        faults.append(Fault("hardware.gpus", message))
    return faults


def refuse_offload(scenario: Scenario, engine: str, offloads: Sequence[str]) -> list[Fault]:
    """Keeping on the host what the engine has no way to keep there. ``offloads``: what it has."""
    asked = {"weights": scenario.offload.weights, "kv_cache": scenario.offload.kv_cache}
    faults = [
        Fault(f"offload.{name}", f"{engine} has no way to keep {name.replace('_', ' ')} on the host; use 0")
        for name, share in asked.items()
        if share and name not in offloads
    ]
    if scenario.offload.kv_cache == 1 and not faults:
        message = f"{engine} computes on blocks of the GPU's pool, blocks on the host are beside it; use less than 1"
        faults.append(Fault("offload.kv_cache", message))
    if scenario.offload.optimizer:
        faults.append(Fault("offload.optimizer", "a served model has no optimizer; use 0"))
    return faults


def refuse_speculation(scenario: Scenario, engine: str, methods: Sequence[str]) -> list[Fault]:
    """Ways of proposing tokens that the engine does not have."""
    method = scenario.inference.speculation.method
    if method in ("none", *methods):
        return []
    return [Fault("inference.speculation.method", f"{engine} proposes no tokens by {method}; use none or {', '.join(methods)}")]


def refuse_expert(scenario: Scenario, architecture: Architecture) -> list[Fault]:
    """Expert parallelism spans the tensor- and data-parallel ranks, and needs experts."""
    spread = scenario.parallel
    if spread.expert == 1:
        return []
    ranks = spread.tensor * spread.data
    if spread.expert != ranks:
        message = f"experts are spread over all {ranks} tensor- and data-parallel ranks; use {ranks} or 1"
        return [Fault("parallel.expert", message)]
    if not any(
        weight.role == "expert" for layer in architecture.decoder.layers for mixer in layer.channel for weight in mixer.weights
    ):
        return [Fault("parallel.expert", "the model has no experts; use 1")]
    return []


def require_decoder(architecture: Architecture, engine: str) -> None:
    """Raise :class:`NotModelled` for what has no pool of this kind."""
    if architecture.kind != "decoder":
        raise NotModelled(f"{engine}: an {architecture.kind} model keeps no decoder cache of its own")


@remember_by_identity(64)
def running(architecture: Architecture) -> Architecture:
    """The model as it runs: what its config keeps in fp32 runs in bf16 unless fp32 is asked for (``_resolve_auto_dtype``)."""
    return replace(architecture, dtype="bf16") if architecture.dtype == "fp32" else architecture


def value_bytes(architecture: Architecture, fmt: Format) -> int:
    """Bytes of an activation: of the plain format, else the model's own dtype; what is stored in fp32 runs in 16 bit."""
    name = fmt.name if fmt.name in ("bf16", "fp16", "fp32") else architecture.dtype
    bits = DTYPE_BITS.get(name, 16)
    return 4 if fmt.name == "fp32" else min(2, max(2, bits // 8))


def adapters_bytes(architecture: Architecture, scenario: Scenario, layers: range, tensor: int) -> int:
    """Slots for low-rank adapters: rank · (in + out / tensor) 16-bit values for every linear layer, whether used or not.

    vLLM ``lora/layers``: A is whole on every rank, B is cut like its layer's output.
    """
    asked = scenario.inference.adapters
    total = 0
    for index in layers if asked.count else ():
        layer = architecture.decoder.layers[index]
        for mixer in (*layer.sequence, *layer.channel):
            for weight in mixer.weights:
                if weight.role == "linear" and len(weight.shape) == 2:
                    total += 2 * asked.rank * (weight.shape[1] + -(-weight.shape[0] // tensor))
    return total * asked.count


def draft_bytes(
    architecture: Architecture, scenario: Scenario, draft: Architecture | None, dtype_bytes: int, tensor: int
) -> tuple[int, str]:
    """Weights of what proposes tokens, on one rank, and in words where they come from."""
    ask = scenario.inference.speculation
    if ask.method in ("none", "ngram"):
        return 0, ask.method
    if ask.method == "mtp":
        count = sum(
            weight.count * _product(weight.shape)
            for stack in architecture.unbuilt
            for layer in stack.layers
            for part in (*layer.sequence, *layer.channel, *layer.norms)
            for weight in part.weights
        )
        if not count:
            raise Faults([Fault("inference.speculation.method", "the model has no multi-token-prediction modules; use ngram")])
        return count * dtype_bytes // tensor, "the checkpoint's multi-token-prediction modules"
    if draft is not None:
        return parameter_count(draft) * dtype_bytes // tensor, f"a draft model of {parameter_count(draft)} parameters"
    parameters = ask.draft_parameters
    if parameters is None:
        raise Faults([Fault("inference.speculation.draft_parameters", f"method {ask.method} needs the draft's size")])
    return parameters * dtype_bytes // tensor, f"a draft of {parameters} parameters, its cache not counted"


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for extent in shape:
        total *= extent
    return total


def request_blocks(pool: Pool, scenario: Scenario, server: Server) -> tuple[int, int]:
    """(blocks of the first request, blocks of every further one), its parallel samples and the common prefix counted once."""
    ask = scenario.inference
    tokens = max(1, ask.context_tokens + ask.speculation.tokens)
    prompt = ask.prompt_tokens or 0
    alone = pool.sequence_blocks(tokens, server.scheduled_tokens)
    sample = pool.sequence_blocks(tokens, server.scheduled_tokens, prompt)
    first = alone + (ask.samples - 1) * sample
    if not server.prefix_caching or not ask.shared_prefix:
        return first, first
    shared = share_of(prompt, ask.shared_prefix)
    further = pool.sequence_blocks(tokens, server.scheduled_tokens, shared)
    return first, further + (ask.samples - 1) * sample


def blocks_asked(pool: Pool, scenario: Scenario, server: Server) -> int:
    """Blocks of all requests of one replica at their end."""
    first, further = request_blocks(pool, scenario, server)
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
    weights = sum(rank.weights_bytes for rank in server.ranks) * scenario.parallel.tensor
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
        terms=LaterSequence(lambda: (*server.terms, _context_term(machine))),
        notes=(
            *notes,
            *server.notes,
            *reasons,
            *_shared_memory(gpu, host),
            f"as {server.version} sets up its memory on {gpu.name}",
        ),
        extra=LaterMapping(lambda: {"engine": _engine_figures(server)}),
    )


def _host(scenario: Scenario, server: Server) -> dict[str, int]:
    """What lies in host memory: weights of all replicas, and blocks that the cache keeps beside its pools on the GPUs."""
    spread, share = scenario.parallel, scenario.offload.kv_cache
    weights = sum(rank.host_bytes for rank in server.ranks) * spread.data
    pools = sum(server.pool.blocks * pool.block_bytes for pool in server.pools) * spread.tensor * spread.data
    parts, whole = parts_of(share)
    blocks = pools * parts // (whole - parts) if share else 0
    held = {"weights": weights, "kv_cache": blocks + server.swap_bytes * len(server.ranks) * spread.tensor * spread.data}
    return {name: size for name, size in held.items() if size} if scenario.offload.to == "cpu" else {}


def _shared_memory(gpu: Gpu, host: Mapping[str, int]) -> list[str]:
    if not gpu.unified or not host:
        return []
    return [
        f"host and GPU share one memory on {gpu.name}: what lies on the host takes {sum(host.values()) / GIB:.2f} GiB of the same"
    ]


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
    pool = server.pool
    first, further = request_blocks(pool, scenario, server)
    batch = 0 if pool.blocks < first else 1 + (pool.blocks - first) // max(1, further)
    if server.max_requests is not None:
        batch = min(batch, server.max_requests)
    return {
        "kv_tokens": server.kv_tokens * replicas,
        "max_concurrency": int(server.concurrency) * replicas,
        "max_batch": batch * replicas,
        "max_context": pool.longest(server.max_model_len, server.scheduled_tokens) if pool.groups else server.max_model_len,
    }


def _verdict(scenario: Scenario, server: Server) -> tuple[Verdict, list[str]]:
    """Does not fit when the longest sequence or the requests asked for can't be held; tight when the band decides."""
    reasons = [*server.refused, *_shortfalls(scenario, server, server.pool)]
    if reasons:
        return "does_not_fit", reasons
    pool = server.pool
    poorer = largest(0, pool.blocks - -(-server.uncertainty_bytes // max(1, pool.block_bytes)))
    return ("tight" if _shortfalls(scenario, server, Pool(pool.groups, pool.block_bytes, poorer)) else "fits"), _waiting(
        scenario, server
    )


def _waiting(scenario: Scenario, server: Server) -> list[str]:
    most = None if server.max_requests is None else server.max_requests * scenario.parallel.data
    if most is None or scenario.inference.batch <= most:
        return []
    return [f"{scenario.inference.batch} requests: the server runs {most} at once by its settings, the rest wait"]


def _shortfalls(scenario: Scenario, server: Server, pool: Pool) -> list[str]:
    if not pool.groups:
        return []
    longest = pool.sequence_blocks(server.max_model_len, server.scheduled_tokens)
    if longest > pool.blocks:
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
            phases = _phases(rank, Pool(pool.groups, pool.block_bytes, server.pool.blocks), machine)
            found += [GpuFootprint(len(found) + index, capacity, phases) for index in range(scenario.parallel.tensor)]
    return tuple(found)


def _phases(rank: RankMemory, pool: Pool, machine: Overheads) -> tuple[Phase, ...]:
    weights = {"weights": rank.weights_bytes, "adapters": rank.adapters_bytes}
    served = weights | {"kv_cache": pool.size_bytes, "recurrent_state": rank.states_bytes, "cuda_graphs": rank.graphs_bytes}
    context = machine.context_bytes + rank.libraries_bytes
    return (
        _phase("load", weights, machine.context_bytes),
        _phase("prefill", served | {"activations": rank.activations_bytes}, context),
        _phase("decode", served, context),
    )


def _phase(name: str, components: Mapping[str, int], context_bytes: int) -> Phase:
    held = {component: size for component, size in components.items() if size}
    allocated = sum(held.values())
    return Phase(name, allocated, allocated, allocated + context_bytes, held | {"cuda_context": context_bytes})


def _context_term(machine: Overheads) -> Term:
    return Term(
        "cuda_context",
        "CUDA context",
        {"context_bytes": machine.context_bytes},
        machine.context_bytes,
        machine.certainty,
        machine.source,
    )


def weight_terms(stages: Sequence[StageWeights], bytes_of: Sequence[int], because: str) -> list[Term]:
    """One term for each pipeline stage's weights on one of its GPUs."""
    return [
        Term(
            "weights", "Σ tensors of one rank, as the allocator counts them",
            {"stage": stage.stage, "layers": len(stage.layers), "held_bytes": stage.rank_bytes, "copied": stage.copied_bytes},
            size, "derived", because,
        )
        for stage, size in zip(stages, bytes_of, strict=True)
    ]  # fmt: skip


def pool_terms(pools: Sequence[Pool], layout: Layout, because: str) -> list[Term]:
    """One term for each stage's pool."""
    return [
        Term(
            "kv_cache", "blocks · block_bytes",
            {
                "stage": index, "blocks": pool.blocks, "block_bytes": pool.block_bytes, "block_tokens": pool.block_tokens,
                "groups": len(layout.groups), "padding_layers": layout.padding_layers,
            },
            pool.size_bytes, "derived", because,
        )
        for index, pool in enumerate(pools)
    ]  # fmt: skip


def has_latent(architecture: Architecture) -> bool:
    """Whether any layer caches compressed latents."""
    return any(isinstance(mixer, LatentAttention) for layer in architecture.decoder.layers for mixer in layer.sequence)
