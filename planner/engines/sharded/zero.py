"""DeepSpeed's ZeRO (Rajbhandari et al. 2020) as DeepSpeed 0.19 lays it out (deepspeed/runtime/zero).

Stages 1 and 2 (``stage_1_and_2.py``): parameters lie in one flat tensor, aligned to twice the ranks; each rank keeps fp32
masters and optimizer states of its part. In the backward a gradient is copied into a bucket of ``reduce_bucket_size`` elements
(two with ``overlap_comm``), which lives as long as the backward; what a rank owns is copied out of it into
``grads_in_partition``. The step lays these together, casts them to fp32, and drops the narrow ones.

Stage 3 (``stage3.py``, ``partitioned_param_coordinator.py``): parameters are partitioned too. Prefetching runs ahead by
``stage3_prefetch_bucket_size`` at every module, so that about ``stage3_max_live_parameters`` are gathered at any time;
parameters below ``stage3_param_persistence_threshold`` always are. Bucket and partitioned gradients stay from the start; a
reduction lays the bucket out by ranks in a copy (``reduce_scatter_coalesced``).
"""

from __future__ import annotations

from math import prod

from planner.architecture.counts import iter_weights
from planner.architecture.layers import Architecture
from planner.components.states import plain_weights
from planner.components.tape import Course, Held, Level, Size
from planner.components.trainable import Trainable
from planner.engines.around import Around, Moment
from planner.engines.sharded.moves import Move, moves
from planner.memo import remember_by_identity
from planner.record import record
from planner.scenario import Scenario

FP32_BYTES = 4
NORM_BYTES = 8
"""Norms of gradients are taken in fp64 (``get_grad_norm_direct``)."""


@record
class Zero:
    """One scenario's ZeRO settings: DeepSpeed's own names and defaults (``zero/config.py``), elements not bytes."""

    stage: int
    ranks: int
    compute_bytes: int
    reduce_bucket_size: int = 500_000_000
    allgather_bucket_size: int = 500_000_000
    overlap_comm: bool = True
    max_live_parameters: int = 1_000_000_000
    prefetch_bucket_size: int = 50_000_000
    param_persistence_threshold: int = 100_000
    sub_group_size: int = 1_000_000_000
    accumulates: bool = False
    offload_optimizer: float = 0.0
    offload_parameters: bool = False
    to_nvme: bool = False


def zero_of(scenario: Scenario, stage: int, ranks: int, compute_bytes: int) -> Zero:
    """The settings of a scenario. ``overlap_comm`` is on, as the written config file says."""
    ask, offload = scenario.training, scenario.offload
    given = {name.removeprefix("stage3_"): value for name, value in ask.engine_options.items()}
    names = ("reduce_bucket_size", "allgather_bucket_size", "overlap_comm", "max_live_parameters", "prefetch_bucket_size",
             "param_persistence_threshold", "sub_group_size")  # fmt: skip
    return Zero(
        stage, ranks, compute_bytes, accumulates=ask.gradient_accumulation > 1, offload_optimizer=offload.optimizer,
        offload_parameters=bool(offload.weights), to_nvme=offload.to == "nvme",
        **{name: given[name] for name in names if name in given},  # type: ignore[arg-type]
    )  # fmt: skip


@record
class Counts:
    """Elements of a model's parameters.

    Of all: how many, a rank's part in stage 3, those that stay gathered; of the trained: how many, a rank's part, the largest.
    """

    parameters: int
    part: int
    persistent: int
    trained: int
    partition: int
    largest: int


@remember_by_identity(64)
def counts_of(tensors: tuple[Trainable, ...], architecture: Architecture, zero: Zero) -> Counts:
    """``tensors``: the trained ones.

    Stage 3 cuts every parameter by itself; the others cut the trained ones laid together, aligned to two elements a rank.
    """
    sizes = [(prod(w.shape) * w.count, times) for _, w, times in iter_weights(architecture) if not w.is_buffer]
    added = [(tensor.numel, tensor.times) for tensor in tensors if ".lora_" in tensor.name]
    trained = [(tensor.numel, tensor.times) for tensor in tensors]
    part, own = (sum(-(-size // zero.ranks) * times for size, times in found) for found in (sizes + added, trained))
    total = sum(size * times for size, times in trained)
    return Counts(
        parameters=sum(size * times for size, times in sizes + added),
        part=part,
        persistent=sum(size * times for size, times in sizes + added if size < zero.param_persistence_threshold),
        trained=total,
        partition=own if zero.stage == 3 else -(-total // (2 * zero.ranks)) * 2,
        largest=max(size for size, _ in trained),
    )


def zero_weights(architecture: Architecture, zero: Zero, counts: Counts) -> Level:
    """What stays on the GPU from the start, without optimizer states."""
    level = plain_weights(architecture, zero.compute_bytes).fork()
    if zero.stage == 3:
        _drop_weights(level)
        if not zero.offload_parameters:
            level.change("weights", "partitioned parameters", Size(elements=counts.part, bytes=zero.compute_bytes), 1)
        level.change("weights", "persistent parameters", Size(elements=counts.persistent, bytes=zero.compute_bytes), 1)
        bucket = Size(reduce_bucket_size=zero.reduce_bucket_size, bytes=zero.compute_bytes)
        level.change("communication", "gradient bucket", bucket, 1)
        if not zero.offload_optimizer:
            level.change("gradients", "partitioned gradients", Size(elements=counts.partition, bytes=zero.compute_bytes), 1)
    else:
        if counts.trained == counts.parameters:
            _drop_weights(level)
        flat = Size(elements=counts.partition * zero.ranks, bytes=zero.compute_bytes)
        level.change("weights" if counts.trained == counts.parameters else "adapters", "flat parameters", flat, 1)
        if zero.offload_optimizer:
            away = Size(largest=counts.largest, bytes=zero.compute_bytes)
            level.change("communication", "gradient on its way to the host", away, 1)
    masters = Size(elements=on_device(counts.partition, zero), fp32_bytes=FP32_BYTES)
    level.change("master_weights", "fp32 partition", masters, 1)
    return level


def _drop_weights(level: Level) -> None:
    for component, name, size, count in list(level.items()):
        if name in ("weights", "rounding of the weights"):
            level.change(component, name, size, -count)


def on_device(elements: int, zero: Zero) -> int:
    """Elements of the partition whose states the GPU keeps."""
    return elements - int(elements * zero.offload_optimizer)


def host_bytes(zero: Zero, counts: Counts, moments: int) -> dict[str, int]:
    """This rank's pinned host memory: masters, their gradients and states, and the 16-bit copy on its way back.

    On NVMe four buffers of the largest parameter's states stay in memory (``aio`` ``buffer_count``).
    """
    away = counts.partition - on_device(counts.partition, zero)
    found: dict[str, int] = {}
    if away and zero.to_nvme:
        found["workspace"] = 4 * (moments + 2) * FP32_BYTES * min(zero.sub_group_size, -(-counts.largest // zero.ranks))
    elif away:
        found |= {
            "master_weights": away * FP32_BYTES,
            "gradients": away * FP32_BYTES,
            "optimizer_state": away * moments * FP32_BYTES,
        }
    if away:
        found["communication"] = (away if zero.stage < 3 else 0) * zero.compute_bytes
    if zero.offload_parameters and not zero.to_nvme:
        found["weights"] = counts.part * zero.compute_bytes
    return {name: size for name, size in found.items() if size}


class Partitioned(Around):
    """ZeRO stages 1 and 2 around a step of one rank."""

    def __init__(self, zero: Zero, counts: Counts, rank: int) -> None:
        self.zero, self.counts = zero, counts
        self.is_last = rank == zero.ranks - 1
        self._whole = zero.stage == 1 and not zero.overlap_comm
        self.holds_gradients = not self._whole

    def adds_gradients(self, *, accumulating: bool) -> bool:
        """Gradients are copied into buckets as they come; stage 1 without overlap reduces them when all are there."""
        return accumulating or not self._whole

    def owned(self, tensors: tuple[Trainable, ...]) -> tuple[Trainable, ...]:
        """One flat tensor."""
        return (Trainable((on_device(self.counts.partition, self.zero),), FP32_BYTES, 1, "partition"),) if tensors else ()

    def stored(self, tensors: tuple[Trainable, ...]) -> tuple[Trainable, ...]:  # noqa: ARG002  laid in the flat parameters
        """Adapters lie with all trained parameters."""
        return ()

    def at(self, moment: Moment, course: Course) -> None:
        """Buckets for the backward, the partition's gradients from their first reduction on, their cast in the step."""
        buckets: list[Move] = [("gradient bucket", self._bucket, 1 + self.zero.overlap_comm)]
        part: list[Move] = [] if self.zero.offload_optimizer else [("gradients of the partition", self._part, 1)]
        first = "head backward" if not self._whole else "end"
        if moment == "forward" and self.zero.accumulates and not self._whole:
            course.run(moves(part), 1, "gradients of earlier micro-batches")
        if moment == first:
            course.run(moves(buckets), 1, "reduce")
        if moment == ("end" if self._whole or not self.is_last else "layers backward"):
            course.run(moves(part), 1, "reduce")
        if moment == "end":
            self._finish(course, buckets)
        if moment == "optimizer" and not self.zero.offload_optimizer:
            course.run(moves(self._to_fp32(part)), 1, "step of the optimizer")

    def _finish(self, course: Course, buckets: list[Move]) -> None:
        gone = [(name, held, -count) for name, held, count in buckets]
        whole = [
            (name, Held(size, component), -count)
            for component, name, size, count in course.level.items()
            if component == "gradients" and self._whole and name != "gradients of the partition"
        ]
        again = self.zero.accumulates and not self._whole and not self.zero.offload_optimizer
        summed: list[Move] = [("gradients of the partition", self._part, -1)] * again
        course.run(moves([*whole, *gone, *summed]), 1, "reduce")

    def _to_fp32(self, part: list[Move]) -> list[Move]:
        elements, zero = self.counts.partition, self.zero
        largest = min(self.counts.largest, elements)
        norm = Held(Size(largest_parameter=largest, fp64_bytes=NORM_BYTES), "workspace")
        flat = Held(Size(elements=elements, bytes=zero.compute_bytes), "gradients")
        wide = Held(Size(elements=elements, fp32_bytes=FP32_BYTES), "gradients")
        return [
            ("gradient in fp64", norm, 1), ("gradient in fp64", norm, -1), ("flat gradients", flat, 1),
            ("fp32 gradients", wide, 1), ("flat gradients", flat, -1), *((name, held, -count) for name, held, count in part),
        ]  # fmt: skip

    @property
    def _bucket(self) -> Held:
        return Held(Size(reduce_bucket_size=self.zero.reduce_bucket_size, bytes=self.zero.compute_bytes), "communication")

    @property
    def _part(self) -> Held:
        return Held(Size(elements=self.counts.partition, bytes=self.zero.compute_bytes), "gradients")


class FullyPartitioned(Around):
    """ZeRO stage 3 around a step of one rank."""

    holds_gradients = True

    def __init__(self, zero: Zero, counts: Counts) -> None:
        self.zero, self.counts = zero, counts

    def adds_gradients(self, *, accumulating: bool) -> bool:
        """Gradients are copied into the bucket as they come."""
        return accumulating or self.holds_gradients

    def owned(self, tensors: tuple[Trainable, ...]) -> tuple[Trainable, ...]:
        """One flat tensor for every sub-group."""
        left, found = on_device(self.counts.partition, self.zero), []
        whole, rest = divmod(left, self.zero.sub_group_size)
        if whole:
            found.append(Trainable((self.zero.sub_group_size,), FP32_BYTES, whole, "sub-group"))
        if rest:
            found.append(Trainable((rest,), FP32_BYTES, 1, "last sub-group"))
        return tuple(found) if tensors else ()

    def stored(self, tensors: tuple[Trainable, ...]) -> tuple[Trainable, ...]:  # noqa: ARG002  laid in the flat parameters
        """Adapters lie with all trained parameters."""
        return ()

    def at(self, moment: Moment, course: Course) -> None:
        """Live parameters from the forward to the end of the backward, a reduction's copy, the step's fp32 gradients."""
        if moment == "forward":
            course.run(moves([("live parameters", self._live, 1), ("prefetched", self._ahead, 1)]), 1, "all-gather")
        elif moment == "head backward":
            course.run(moves([("bucket by ranks", self._copy, 1)]), 1, "reduce-scatter")
        elif moment == "end":
            held = (("bucket by ranks", self._copy), ("live parameters", self._live), ("prefetched", self._ahead))
            course.run(moves([(name, each, -1) for name, each in held]), 1, "reduce-scatter")
        elif moment == "optimizer" and not self.zero.offload_optimizer:
            group = min(self.zero.sub_group_size, self.counts.partition)
            wide = Held(Size(sub_group=group, fp32_bytes=FP32_BYTES), "gradients")
            course.run(moves([("fp32 gradients", wide, 1)]), 1, "step of the optimizer")

    @property
    def _live(self) -> Held:
        zero, gathers = self.zero, self.zero.ranks > 1 or self.zero.offload_parameters
        live = min(self.counts.parameters - self.counts.persistent, zero.max_live_parameters) * gathers
        return Held(Size(live_parameters=live, bytes=zero.compute_bytes), "weights")

    @property
    def _ahead(self) -> Held:
        ahead = min(self.zero.prefetch_bucket_size, self.counts.parameters)
        return Held(Size(prefetch_bucket_size=ahead, bytes=self.zero.compute_bytes), "communication")

    @property
    def _copy(self) -> Held:
        copied = min(self.zero.reduce_bucket_size, self.counts.trained)
        return Held(Size(reduced=copied, bytes=self.zero.compute_bytes), "communication")
