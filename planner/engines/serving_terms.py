"""The terms that serving engines share, and which GPU each tells of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from planner.engines.paged import Layout, Pool
from planner.footprint import HOST, Certainty, Term
from planner.machine import Overheads
from planner.scenario import Scenario
from planner.sharding import StageWeights


def on_gpus(terms: Iterable[Term], stages: int, tensor: int, replicas: int) -> Iterator[Term]:
    """Terms of a pipeline stage, said of each GPU that holds it; where there is one stage they are told of every GPU."""
    for term in terms:
        stage = term.values.get("stage")
        if stages == 1 or not isinstance(stage, int) or term.gpu is not None:
            yield term
            continue
        for replica in range(replicas):
            first = (replica * stages + stage) * tensor
            yield from (replace(term, gpu=gpu) for gpu in range(first, first + tensor))


def context_term(machine: Overheads) -> Term:
    """The CUDA context of every GPU."""
    return Term(
        "cuda_context",
        "CUDA context",
        {"context_bytes": machine.context_bytes},
        machine.context_bytes,
        machine.certainty,
        machine.source,
    )


def library_terms(stage: int, size_bytes: int, certainty: Certainty, because: str) -> list[Term]:
    """What libraries take outside torch once the server runs; after loading it is not there yet."""
    if not size_bytes:
        return []
    formula, values = "libraries outside torch", {"stage": stage, "libraries_bytes": size_bytes}
    return [Term("cuda_context", formula, values, size_bytes, certainty, because, phase) for phase in ("prefill", "decode")]


def adapter_terms(stage: int, scenario: Scenario, size_bytes: int, because: str) -> list[Term]:
    """Slots of low-rank adapters on one GPU of a stage."""
    if not size_bytes:
        return []
    asked = scenario.inference.adapters
    each = size_bytes // (2 * asked.rank * asked.count)
    values = {"stage": stage, "count": asked.count, "rank": asked.rank, "widths": each, "bytes": 2}
    formula = "count · rank · widths · bytes, widths = Σ linears of one rank (in + out)"
    return [Term("adapters", formula, values, size_bytes, "derived", because)]


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
    """One term for each stage's pool, of as many blocks as the poorest stage has."""
    blocks = min(pool.blocks for pool in pools)
    return [
        Term(
            "kv_cache", "blocks · block_bytes",
            {
                "stage": index, "blocks": blocks, "block_bytes": pool.block_bytes, "block_tokens": pool.block_tokens,
                "groups": len(layout.groups), "padding_layers": layout.padding_layers,
            },
            blocks * pool.block_bytes, "derived", because,
        )
        for index, pool in enumerate(pools)
    ]  # fmt: skip


def host_terms(host: Mapping[str, int], version: str) -> list[Term]:
    """What a server keeps in the machine's memory."""
    formulas = {
        "weights": "Σ GPUs: share of its weights kept on the host",
        "kv_cache": "Σ GPUs: blocks kept on the host, and swap space of preempted requests",
    }
    because = f"{version}: pinned on the host for every worker"
    return [
        Term(name, formulas[name], {"holder": "host", "host_bytes": size}, size, "derived", because, gpu=HOST)
        for name, size in host.items()
    ]
