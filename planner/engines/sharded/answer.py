"""A training over several GPUs answered: the footprint of each distinct rank, and of the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from planner.architecture.counts import parameter_count
from planner.architecture.layers import Architecture
from planner.components.autocast import has_wide_norms
from planner.components.layer import require_modelled
from planner.components.trainable import trainable_parameters
from planner.engines.sharded.layout import ZERO_STAGES, Ways, refuse, ways_of
from planner.engines.sharded.megatron import megatron_steps
from planner.engines.sharded.plans import COMPUTED_BYTES, RankPlan, is_flat, rank_plans
from planner.engines.training import require_modelled_training, trained_tensors, training_steps
from planner.engines.transformers import Step
from planner.engines.transformers_answer import asked_of, assumed, phases_of
from planner.explain import terms_of
from planner.footprint import OUTSIDE_ALLOCATED, Footprint, GpuFootprint, Host, Phase, Term, judge
from planner.formats.checkpoint import known_bytes
from planner.formats.format import Format
from planner.later import LaterSequence
from planner.machine import CUBLAS_HANDLES, Overheads
from planner.modelled import NotModelled
from planner.reserve import reserved_for_weights, trained_segments, training_reserved
from planner.scenario import Hardware, Offload, Parallel, Scenario, to_json
from planner.symbolic.amount import largest
from planner.uncertainty import device_band
from planner.units import GIB

FP32_BYTES = 4
METHODS = ("full", "lora", "dora")
"""What a sharding is derived for."""
COLLECTIVE_BYTES = int(0.6 * GIB)
"""NCCL's buffers on each GPU of a communicator: 544 to 688 MB on A100 with NVLink, as published."""
COLLECTIVE_BAND_BYTES = int(0.3 * GIB)


def sharded_answer(
    settled: Scenario, architecture: Architecture, fmt: Format, machine: Overheads, capacity: int, notes: tuple[str, ...],
    *, cuda: bool,
) -> Footprint:  # fmt: skip
    """The footprint of a settled training with one GPU entry for each distinct rank.

    Raises :class:`~planner.modelled.NotModelled` for what no derivation covers, :class:`~planner.faults.Faults` for what
    the frameworks refuse.
    """
    ways = ways_of(settled)
    refuse(settled, architecture, ways)
    require_choices(settled, architecture, ways)
    plans = rank_plans(settled, architecture, ways, fmt)
    answers = [_rank_answer(settled, plan, ways, machine, capacity, cuda=cuda) for plan in plans]
    gpus = tuple(GpuFootprint(plan.index, capacity, phases) for plan, (_, phases) in zip(plans, answers, strict=True))
    device_bytes = largest(*(phase.device for gpu in gpus for phase in gpu.phases))
    uncertainty = largest(*(device_band(gpu.phases, machine, "training") for gpu in gpus))
    uncertainty += COLLECTIVE_BAND_BYTES * plans[0].collectives * cuda
    return Footprint(
        scenario=to_json(settled),
        level="predict",
        parameters=parameter_count(architecture),
        trainable_parameters=trainable_parameters(architecture, settled.training),
        weight_bytes=known_bytes(architecture, fmt),
        gpus=gpus,
        host=_host(plans, ways),
        verdict=judge(device_bytes, capacity, uncertainty),
        headroom_bytes=capacity - device_bytes,
        uncertainty_bytes=uncertainty,
        terms=LaterSequence(lambda: _terms(plans, answers, machine, settled)),
        notes=(*notes, *assumed(architecture), *_notes(plans, ways)),
    )


def one_rank(scenario: Scenario, ways: Ways, architecture: Architecture) -> Scenario:
    """The step of one rank as a scenario of one GPU: what it computes with, without what is around it.

    FSDP and DeepSpeed compute in the dtype that they gather or cast to, without masters; replicas as one GPU does. Accelerate
    leaves autocast on around FSDP1, which makes fp32 of what layer norms read over a 4-bit base.
    """
    ask = scenario.training
    hardware = Hardware(**{**vars(scenario.hardware), "gpus": 1, "nodes": 1})
    alone: dict[str, object] = {"hardware": hardware, "parallel": Parallel(), "offload": Offload()}
    work: dict[str, object] = {"engine": "transformers", "sequence": (ask.sequence or 1) // ways.context}
    if ways.sharding != "none":
        dtype = "fp32" if COMPUTED_BYTES[ask.precision] == FP32_BYTES else "bf16"
        options = dict(ask.engine_options)
        if ways.sharding in ZERO_STAGES or ask.precision.startswith("amp"):
            options["autocast_adapter_dtype"] = False  # adapters are computed in the same dtype
        alone["weights"] = dtype
        # of a sharded 4-bit base the adapters are computed as beside a plain one
        method = "lora" if ask.method == "qlora" else ask.method
        widens = ask.method == "qlora" and ask.precision.startswith("amp") and has_wide_norms(architecture)
        precision = ask.precision if ask.precision == "fp8" or (widens and is_flat(scenario)) else dtype
        work |= {"precision": precision, "method": method, "engine_options": options}
    return Scenario(**{**vars(scenario), **alone, "training": type(ask)(**{**vars(ask), **work})})


def require_choices(scenario: Scenario, architecture: Architecture, ways: Ways) -> None:
    """Raise :class:`NotModelled` for what no derivation covers."""
    ask = scenario.training
    if scenario.engine == "megatron":
        if ask.objective != "sft":
            raise NotModelled(f"training.objective: {ask.objective} is TRL's; engine megatron has no such step here")
        return
    if ways.sharding != "none" and ask.precision not in COMPUTED_BYTES:
        raise NotModelled(f"training.precision: {ask.precision} over several GPUs has no closed form yet")
    _require_alone(scenario, ways)
    cut = ask.method in METHODS or (ask.method == "qlora" and ways.sharding == "fsdp" and is_flat(scenario))
    if ways.sharding != "none" and not cut:
        raise NotModelled(f"training.method: {ask.method} with sharding {ways.sharding} has no closed form yet")
    spread = (ways.sharding, ways.tensor, ways.pipeline, ways.context) != ("none", 1, 1, 1)
    if ask.objective != "sft" and spread:
        raise NotModelled(f"training.objective: {ask.objective} over several GPUs is derived for replicas of the whole model alone")
    if architecture.kind != "decoder" and (ways.sharding != "none" or ways.tensor > 1):
        raise NotModelled(f"{architecture.model_class}: only replicas of encoders are modelled over several GPUs")
    if ask.engine_options.get("contiguous_gradients") is False:
        raise NotModelled("training.engine_options.contiguous_gradients: reductions without a bucket have no closed form yet")
    require_modelled_training(one_rank(scenario, ways, architecture))
    if architecture.kind == "decoder":
        require_modelled(architecture, eager=ask.attention == "eager")


def _require_alone(scenario: Scenario, ways: Ways) -> None:
    """Raise :class:`NotModelled` for what is derived for one GPU, or for few of the ways to spread it."""
    ask = scenario.training
    if ask.precision == "fp8" and (ways.tensor > 1 or (ways.sharding != "none" and not _gathers_16_bit(scenario, ways))):
        raise NotModelled(
            "training.precision: fp8 over several GPUs is derived for replicas, and for engine fsdp with fsdp_version 2, which "
            "gathers parameters in 16 bit (accelerate's plugin gathers them in FP8)"
        )
    if ask.objective == "ppo":
        raise NotModelled("training.objective: ppo over several GPUs has no closed form yet")


def _gathers_16_bit(scenario: Scenario, ways: Ways) -> bool:
    return scenario.engine == "fsdp" and ways.sharding == "fsdp" and not is_flat(scenario)


def _rank_answer(
    scenario: Scenario, plan: RankPlan, ways: Ways, machine: Overheads, capacity: int, *, cuda: bool
) -> tuple[list[Step], tuple[Phase, ...]]:
    if plan.stage is not None:
        steps = megatron_steps(scenario, plan.computed, ways, plan.stage)
    else:
        alone = one_rank(scenario, ways, plan.computed)
        steps = training_steps(
            alone, plan.computed, plan.weights, plan.compute_bytes, plan.around, cuda=cuda, quantised=plan.quantised,
            capacity_bytes=capacity,
        )  # fmt: skip
    if machine.cublas_workspace_bytes:
        for step in steps[1:]:
            step.hold_cublas_workspaces(machine.cublas_workspace_bytes, CUBLAS_HANDLES["training"])
    return steps, _meters(scenario, plan, ways, steps, machine, capacity)


def _meters(
    scenario: Scenario, plan: RankPlan, ways: Ways, steps: Sequence[Step], machine: Overheads, capacity: int
) -> tuple[Phase, ...]:
    """The three meters; outside the allocator the CUDA context and NCCL. On a CPU nothing is beyond what is allocated."""
    levels = {step.name: step.peak.level for step in steps}
    if not machine.context_bytes:
        return phases_of(levels, {}, "training", machine, capacity)
    outside = replace(machine, context_bytes=machine.context_bytes + plan.collectives * COLLECTIVE_BYTES)
    stored = plan.quantised.fmt if plan.quantised is not None else None
    loaded = reserved_for_weights(plan.stored, plan.stored_bytes, stored)
    regular = ways.sharding == "none" and scenario.training.checkpointing == "full"
    asked = asked_of(steps, is_regular=regular) if plan.stage is None else None
    segments = None
    if ways.sharding == "none" and plan.stage is None:
        trained, rank = trained_tensors(scenario, plan.computed, plan.stored_bytes)
        segments = trained_segments(trained, scenario.training.optimizer, rank)
    reserved = training_reserved(levels, loaded, segments, asked)
    waiting = plan.around.waiting_bytes
    reserved = {name: size + waiting * (name != "load") for name, size in reserved.items()}
    return phases_of(levels, reserved, "training", outside, capacity)


def _host(plans: Sequence[RankPlan], ways: Ways) -> Host:
    """What all ranks keep in host memory, on all machines together."""
    components = {name: size * ways.ranks for name, size in plans[0].host.items()}
    return Host(sum(components.values()), components)


def _notes(plans: Sequence[RankPlan], ways: Ways) -> tuple[str, ...]:
    spread = {"tensor": ways.tensor, "pipeline": ways.pipeline, "context": ways.context, "data": ways.data}
    told = " × ".join(f"{name} {count}" for name, count in spread.items() if count > 1)
    ranks = ", ".join(str(plan.index) for plan in plans)
    if ways.ranks == 1:
        return ()
    return (f"{ways.ranks} ranks ({told}; sharding {ways.sharding}); shown: rank {ranks}, the others hold no more",)


SOURCES = {
    "none": "torch 2.13 torch/nn/parallel/distributed.py and its reducer",
    "fsdp": "torch 2.13 torch/distributed/fsdp/_fully_shard",
    **dict.fromkeys(("zero1", "zero2"), "DeepSpeed 0.19 deepspeed/runtime/zero/stage_1_and_2.py"),
    "zero3": "DeepSpeed 0.19 deepspeed/runtime/zero/stage3.py, partitioned_param_coordinator.py",
}
MEGATRON = "Megatron Core 0.20 and the layers of Transformer Engine"
OF_SHARDING = ("weights", "gradients", "optimizer_state", "master_weights", "communication")
"""Components whose size a sharding decides."""
FLAT = "torch 2.4 to 2.13 torch/distributed/fsdp/_runtime_utils.py, _flat_param.py"


def _sourced(term: Term, scenario: Scenario) -> Term:
    """A term with the source of what a framework makes of it."""
    if scenario.engine == "megatron" and term.component not in OUTSIDE_ALLOCATED and "cuBLAS" not in term.formula:
        return replace(term, because=MEGATRON, certainty="modelled")
    if term.component in OF_SHARDING:
        return replace(term, because=FLAT if is_flat(scenario) else SOURCES[ways_of(scenario).sharding])
    return term


def _terms(
    plans: Sequence[RankPlan], answers: Sequence[tuple[list[Step], tuple[Phase, ...]]], machine: Overheads, scenario: Scenario
) -> tuple[Term, ...]:
    """The terms of every distinct rank."""
    found = [
        replace(term, gpu=plan.index) if len(plans) > 1 else term
        for plan, (steps, phases) in zip(plans, answers, strict=True)
        for term in _rank_terms(plan, steps, phases, machine, scenario)
    ]
    return tuple(found)


def _rank_terms(
    plan: RankPlan, steps: list[Step], phases: tuple[Phase, ...], machine: Overheads, scenario: Scenario
) -> tuple[Term, ...]:
    found = tuple(_sourced(term, scenario) for term in terms_of(steps, phases, plan.computed, machine, scenario.task))
    if not (machine.context_bytes and plan.collectives):
        return found
    size = plan.collectives * COLLECTIVE_BYTES
    values = {"communicators": plan.collectives, "bytes": COLLECTIVE_BYTES}
    because = "NCCL communicators as published, 544 to 688 MB on A100 with NVLink"
    more = [Term("cuda_context", "NCCL: communicators · bytes", values, size, "modelled", because, phase.name) for phase in phases]
    return (*found, *more)
