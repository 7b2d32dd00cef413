"""The terms that serving engines share: weights and pools of each stage, the CUDA context."""

from __future__ import annotations

from collections.abc import Sequence

from planner.engines.paged import Layout, Pool
from planner.footprint import Term
from planner.machine import Overheads
from planner.sharding import StageWeights


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
