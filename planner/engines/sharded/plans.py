"""Each distinct rank of a training: the model it computes, the weights it stores, and what its sharding does around a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace

from planner.architecture.layers import Architecture, Attention
from planner.components.optimizers import OPTIMIZERS
from planner.components.quantised import QuantisedWeights
from planner.components.states import plain_weights
from planner.components.tape import Level
from planner.components.trainable import adapter_dtype_bytes
from planner.engines.around import ALONE, Around
from planner.engines.sharded.beside import Beside, Holds, gathered_head, gathered_keys
from planner.engines.sharded.ddp import Replicated
from planner.engines.sharded.fsdp import FullyShard, Policy
from planner.engines.sharded.fsdp1 import FlatSharded, flat_weights, require_flat
from planner.engines.sharded.layout import ZERO_STAGES, Ways
from planner.engines.sharded.megatron import BF16_BYTES, Stage, require_megatron, stages
from planner.engines.sharded.shards import padded_rows, partition_of, rows_of_rank
from planner.engines.sharded.tensor import tensor_rank
from planner.engines.sharded.zero import FullyPartitioned, Partitioned, counts_of, host_bytes, zero_of, zero_weights
from planner.engines.training import trained_checkpointing, trained_tensors
from planner.engines.transformers_answer import PLAIN_BYTES, quantised_weights
from planner.formats.format import Format
from planner.modelled import NotModelled
from planner.record import record
from planner.scenario import Scenario

COMPUTED_BYTES = {"fp32": 4, "bf16": 2, "amp-bf16": 2, "amp-fp16": 2, "fp8": 2}
KEPT_BYTES = {"fp32": 4, "bf16": 2, "amp-bf16": 4, "amp-fp16": 4, "fp8": 2}
"""Bytes of a parameter as it is computed with, and as the rank keeps it."""


@record
class RankPlan:
    """One rank, standing for all like it. ``stored``: weights as they are laid on the card, for its segments.

    ``host``: bytes in this rank's host memory by component; ``collectives``: communicators it is part of.
    """

    index: int
    computed: Architecture
    stored: Architecture
    weights: Level
    around: Around
    compute_bytes: int
    stored_bytes: int
    collectives: int
    host: Mapping[str, int] = field(default_factory=dict, hash=False)
    stage: Stage | None = None
    """Of Megatron's pipeline."""
    quantised: QuantisedWeights | None = None


def rank_plans(scenario: Scenario, architecture: Architecture, ways: Ways, fmt: Format) -> list[RankPlan]:
    """The distinct ranks of a settled training, rank 0 first. ``fmt``: of the weights."""
    if scenario.engine == "megatron":
        return _megatron(scenario, architecture, ways)
    found = _rank_plans(scenario, tensor_rank(architecture, ways.tensor) if ways.tensor > 1 else architecture, ways, fmt)
    bytes_ = found[0].compute_bytes
    if ways.tensor > 1 and architecture.head:
        found = [_beside(plan, gathered_head(architecture, scenario.training, ways, bytes_)) for plan in found]
    if ways.context > 1:
        found = [_beside(plan, gathered_keys(plan.computed, scenario.training, ways, bytes_)) for plan in found]
    return found


def _beside(plan: RankPlan, holds: Holds) -> RankPlan:
    return replace(plan, around=Beside(plan.around, holds), collectives=plan.collectives + 1)


def _megatron(scenario: Scenario, architecture: Architecture, ways: Ways) -> list[RankPlan]:
    """One rank of each pipeline stage; stages lie one behind another (``parallel_state.py``, order tp-cp-ep-dp-pp)."""
    require_megatron(scenario, architecture)
    ask, each = scenario.training, ways.ranks // ways.pipeline
    chunks = int(str(ask.engine_options.get("virtual_pipeline", 1)))
    collectives = sum(count > 1 for count in (ways.tensor, ways.pipeline, ways.context, ways.data, ways.expert))
    return [
        RankPlan(
            stage.number * each, architecture, partition_of(architecture, stage.dense + stage.experts), Level(), ALONE,
            BF16_BYTES, BF16_BYTES, collectives, stage=stage,
        )
        for stage in stages(architecture, ways, chunks, ask.gradient_accumulation)
    ]  # fmt: skip


def _rank_plans(scenario: Scenario, architecture: Architecture, ways: Ways, fmt: Format) -> list[RankPlan]:
    if ways.sharding == "fsdp" and is_flat(scenario):
        return [_flat(scenario, architecture, ways, fmt)]
    if ways.sharding == "fsdp":
        return _fully_sharded(scenario, architecture, ways)
    if ways.sharding in ZERO_STAGES:
        return _partitioned(scenario, architecture, ways)
    return [_replicated(scenario, architecture, ways, fmt)]


def _replicated(scenario: Scenario, architecture: Architecture, ways: Ways, fmt: Format) -> RankPlan:
    """A whole model, quantised or not, with buckets for its gradients where there are others."""
    quantised = quantised_weights(scenario, architecture, fmt)
    bytes_ = PLAIN_BYTES[quantised.rest_dtype if quantised is not None else scenario.weights]
    weights = (quantised.level(architecture) if quantised is not None else plain_weights(architecture, bytes_)).fork()
    options, around = scenario.training.engine_options, ALONE
    if ways.data > 1:
        view, cap = bool(options.get("gradient_as_bucket_view", False)), options.get("bucket_cap_mb")
        around = replicated = Replicated(view=view)
        tensors, _ = trained_tensors(scenario, architecture, bytes_)
        replicated.hold(weights, tensors, None if cap is None else int(str(cap)))
    replicas = int(ways.data > 1)
    return RankPlan(0, architecture, architecture, weights, around, bytes_, bytes_, replicas, quantised=quantised)


def fsdp_policy(scenario: Scenario, ranks: int) -> Policy:
    """The policy that accelerate (engine transformers) or torchtitan (engine fsdp) sets up.

    Accelerate reduces in the dtype it computes with (``set_mixed_precision``), casts what trains to fp32 and leaves frozen
    weights as they are, and gradients whole while it accumulates (``no_sync``); torchtitan reduces in fp32 and keeps shards.
    """
    ask = scenario.training
    options, plain = ask.engine_options, scenario.engine == "fsdp"
    computed, kept = COMPUTED_BYTES[ask.precision], KEPT_BYTES[ask.precision]
    if ask.precision == "fp8":
        kept = PLAIN_BYTES[scenario.weights]
    reduced = {"fp32": 4, "bf16": 2}.get(str(options.get("reduce_dtype")), 4 if plain and computed != kept else computed)
    accumulates = "" if ask.gradient_accumulation == 1 else "shards" if plain else "whole"
    adapters = adapter_dtype_bytes(ask, computed)
    mixed = computed != kept
    return Policy(
        ranks, computed, kept if ask.method == "full" else computed, reduced,
        adapter_bytes=(computed, kept, reduced) if mixed else (adapters, adapters, adapters),
        reshard_after_forward=bool(options.get("reshard_after_forward", True)),
        separate_ends=bool(options.get("separate_ends", True)),
        accumulates=accumulates,
        offloads=bool(scenario.offload.weights or scenario.offload.optimizer),
    )  # fmt: skip


def _fully_sharded(scenario: Scenario, architecture: Architecture, ways: Ways) -> list[RankPlan]:
    policy = fsdp_policy(scenario, ways.sharded_over)
    if any(
        isinstance(mixer, Attention) and mixer.kv == "cross" for layer in architecture.decoder.layers for mixer in layer.sequence
    ):
        raise NotModelled(
            "parallel.sharding: fsdp over layers that run for images alone has no closed form yet; choose zero3 or none"
        )
    stored = padded_rows(architecture, policy.ranks)
    tensors, _ = trained_tensors(scenario, architecture, policy.shard_bytes)
    shares = [
        sum(t.numel * t.times for t in rows_of_rank(tensors, policy.ranks, rank, policy.shard_bytes))
        for rank in (0, policy.ranks - 1)
    ]
    found = []
    for index in (0,) if shares[0] == shares[1] else (0, policy.ranks - 1):
        weights = plain_weights(stored, policy.shard_bytes)
        plan = RankPlan(
            index, architecture, stored, weights, FullyShard(architecture, policy, scenario.training, index), policy.compute_bytes,
            policy.shard_bytes, int(policy.ranks > 1),
        )  # fmt: skip
        found.append(_offloaded(plan, shares[index > 0]) if policy.offloads else plan)
    return found


def is_flat(scenario: Scenario) -> bool:
    """Whether FSDP1 was asked for."""
    return scenario.engine == "transformers" and scenario.training.engine_options.get("fsdp_version") == 1


def _flat(scenario: Scenario, architecture: Architecture, ways: Ways, fmt: Format) -> RankPlan:
    """FSDP1: every rank keeps as much; of 4-bit weights the values are cut, what reads them is whole on each."""
    policy, ask = fsdp_policy(scenario, ways.sharded_over), scenario.training
    require_flat(ask, policy, trained_checkpointing(scenario, architecture), architecture)
    quantised = quantised_weights(scenario, architecture, fmt) if ask.method == "qlora" else None
    stored = padded_rows(architecture, policy.ranks)
    if quantised is not None:
        weights = flat_weights(quantised.level(architecture), policy.ranks)
    else:
        weights = plain_weights(stored, policy.shard_bytes)
    return RankPlan(
        0, architecture, stored, weights, FlatSharded(architecture, policy, ask, quantised), policy.compute_bytes,
        policy.shard_bytes, int(policy.ranks > 1), quantised=quantised,
    )  # fmt: skip


def _partitioned(scenario: Scenario, architecture: Architecture, ways: Ways) -> list[RankPlan]:
    """ZeRO: of stages 1 and 2 the last rank meets its own gradients first, rank 0 last."""
    stage, bytes_ = ZERO_STAGES[ways.sharding], COMPUTED_BYTES[scenario.training.precision]
    zero = zero_of(scenario, stage, ways.sharded_over, bytes_)
    tensors, _ = trained_tensors(scenario, architecture, bytes_)
    counts = counts_of(tensors, architecture, zero)
    weights = zero_weights(architecture, zero, counts)
    host = host_bytes(zero, counts, OPTIMIZERS[scenario.training.optimizer].moments)
    flat = partition_of(architecture, counts.part if stage == 3 else counts.parameters)
    arounds: dict[int, Around] = {0: FullyPartitioned(zero, counts)}
    if stage < 3:
        arounds = {index: Partitioned(zero, counts, index) for index in (0, zero.ranks - 1)}
    return [
        RankPlan(index, architecture, flat, weights, around, bytes_, bytes_, int(zero.ranks > 1), host)
        for index, around in arounds.items()
    ]


def _offloaded(plan: RankPlan, elements: int) -> RankPlan:
    """Shards, their gradients and the optimizer's states in pinned host memory (``CPUOffloadPolicy``)."""
    weights = plan.weights.fork()
    on_gpu = [
        (component, name, size, count)
        for component, name, size, count in weights.items()
        if name in ("weights", "rounding of the weights")
    ]
    for component, name, size, count in on_gpu:
        weights.change(component, name, size, -count)
    shard = elements * plan.stored_bytes
    host = {"weights": shard, "gradients": shard, "optimizer_state": 2 * shard}
    return replace(plan, weights=weights, host=host)
