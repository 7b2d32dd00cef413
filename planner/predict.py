"""How a question becomes an answer: settle the defaults, let the engine lay out its phases, add what the machine adds.

``predict`` is pure and instant: scenario, architecture and GPU in, footprint out. What it has no derivation for makes
the verdict ``unknown``, with the reason among the notes and everything that is known (parameters, weights) still said.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

from planner.architecture.counts import parameter_count
from planner.architecture.layers import Architecture
from planner.calibration import PERMILLE
from planner.components.layer import NotModelled, require_modelled
from planner.components.quantised import QuantisedWeights, is_known
from planner.components.states import STATE_TENSORS, optimizer_states, optimizer_transient, plain_weights
from planner.components.tape import Level
from planner.defaults import settle
from planner.engines.served import SERVED, serving_answer
from planner.engines.transformers import Generation, Step, TrainingStep, generation_phases, training_phases
from planner.explain import terms_of
from planner.faults import Fault, Faults
from planner.footprint import Footprint, GpuFootprint, Phase, judge
from planner.formats import BytesUnknown, Format, UnknownFormat, checkpoint_bytes, parse_format, resolve_format
from planner.gpu import Gpu
from planner.later import LaterMapping, LaterSequence
from planner.machine import Overheads, overheads
from planner.repeat import answer, counts_of, fields_of, question_of, with_counts
from planner.reserve import generation_reserved, reserved_for_weights, settle_reserved, training_reserved
from planner.scenario import Scenario, to_json
from planner.symbolic.amount import largest

Device = Literal["cuda", "cpu"]
RESERVED_BAND = 10
"""One part in so many is the half-width of the error of ``reserved``: nine in ten replays of traced models lie within it
(planner/reserve.py)."""
CUBLAS_HANDLES = {"inference": 1, "training": 2}
"""Threads that multiply matrices: autograd's backward runs on one of its own, with a cuBLAS handle of its own."""
PLAIN_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def predict(
    scenario: Scenario, architecture: Architecture, gpu: Gpu, native: Format | None = None, *, device: Device = "cuda"
) -> Footprint:
    """The footprint of a scenario.

    ``native``: the format of the checkpoint (default: plain, in the config's dtype). ``device``: ``cpu`` predicts the
    same run on a CPU, where reserved equals allocated and device is the process's own growth. Terms are worked out when
    they are looked at. Raises :class:`planner.faults.Faults` for choices that contradict each other.
    """
    names, values = counts_of(scenario)

    def fields(*counts: int) -> dict[str, Any]:
        return fields_of(answer_alone(with_counts(scenario, names, counts), architecture, gpu, native, device))

    question = question_of(scenario, names, architecture, gpu, native, device)
    whole = cache(lambda: answer_alone(scenario, architecture, gpu, native, device))
    return Footprint(
        **answer(question, fields, values),
        terms=LaterSequence(lambda: whole().terms),
        limits=LaterMapping(lambda: _limits(scenario, architecture, gpu, native, whole())),
        speed=LaterMapping(lambda: _speed(scenario, architecture, gpu, native)),
        extra=LaterMapping(lambda: whole().extra),
    )


def _limits(
    scenario: Scenario, architecture: Architecture, gpu: Gpu, native: Format | None, found: Footprint
) -> dict[str, int | None]:
    from planner.solve import Asked, limits  # noqa: PLC0415  asks many predictions of its own

    settled, _ = settle(scenario, architecture, _stored(scenario, architecture, native))
    return limits(Asked(settled, architecture, gpu, native), found.limits)


def _speed(scenario: Scenario, architecture: Architecture, gpu: Gpu, native: Format | None) -> dict[str, float | str | None]:
    from planner.speed import speed  # noqa: PLC0415  for those who look

    settled, _ = settle(scenario, architecture, _stored(scenario, architecture, native))
    fmt = native if native is not None and settled.weights == "native" else _format(settled.weights)
    return speed(settled, architecture, fmt, gpu)


def _stored(scenario: Scenario, architecture: Architecture, native: Format | None) -> str:
    """The format of the checkpoint; serving engines run in 16 bit what it keeps in fp32 (vLLM ``_resolve_auto_dtype``)."""
    if native is not None and native.is_quantized:
        return "native"
    return "bf16" if scenario.engine in SERVED and architecture.dtype == "fp32" else architecture.dtype


def answer_alone(scenario: Scenario, architecture: Architecture, gpu: Gpu, native: Format | None, device: Device) -> Footprint:
    """The footprint worked out from the scenario alone, whatever was asked before."""
    settled, notes = settle(scenario, architecture, _stored(scenario, architecture, native))
    fmt = native if native is not None and settled.weights == "native" else _format(settled.weights)
    notes = (*notes, *architecture.notes)
    machine = overheads(gpu if device == "cuda" else None)
    capacity = settled.hardware.capacity_bytes or gpu.capacity_bytes
    try:
        if settled.task == "inference" and settled.engine == "llama.cpp":
            from planner.engines.llama_cpp.answer import llama_cpp_answer  # noqa: PLC0415  loaded for those who ask

            return llama_cpp_answer(settled, architecture, fmt, machine, capacity, notes)
        if settled.task == "inference" and settled.engine in SERVED:
            return serving_answer(settled.engine)(settled, architecture, fmt, gpu, machine, capacity, notes)
        steps = _phases(settled, architecture, fmt, device, machine)
    except (NotModelled, BytesUnknown) as reason:
        return _unknown(settled, architecture, fmt, capacity, (*notes, f"unknown: {reason}"))
    phases = _meters(settled, architecture, fmt, steps, machine, capacity)
    parameters = parameter_count(architecture)
    footprint = GpuFootprint(0, capacity, phases)
    device_bytes = largest(*(phase.device for phase in phases))
    uncertainty = (
        machine.context_band_bytes + largest(*(p.reserved - p.components.get("weights", 0) for p in phases)) // RESERVED_BAND
    )
    return Footprint(
        scenario=to_json(settled),
        level="predict",
        parameters=parameters,
        trainable_parameters=parameters if settled.task == "training" else 0,
        weight_bytes=_weight_bytes(architecture, fmt),
        gpus=(footprint,),
        verdict=judge(device_bytes, capacity, uncertainty),
        headroom_bytes=capacity - device_bytes,
        uncertainty_bytes=uncertainty,
        terms=LaterSequence(lambda: terms_of(steps, phases, architecture, machine, settled.task)),
        notes=notes,
    )


def _format(name: str) -> Format:
    try:
        return parse_format(name)
    except UnknownFormat as error:
        raise Faults([Fault("weights", str(error))]) from error


def _phases(scenario: Scenario, architecture: Architecture, fmt: Format, device: Device, machine: Overheads) -> list[Step]:
    """What the engine holds in each phase, with the cuBLAS workspace from the first matrix product on."""
    _require_modelled_options(scenario)
    attention = scenario.training.attention if scenario.task == "training" else scenario.inference.attention
    static = scenario.task == "inference" and _static_cache(scenario)
    if architecture.kind == "decoder" or scenario.task == "training" or static:
        require_modelled(architecture, training=scenario.task == "training", eager=attention == "eager", static=static)
    quantised = _quantised(scenario, architecture, fmt)
    dtype_bytes = PLAIN_BYTES[quantised.rest_dtype if quantised is not None else scenario.weights]
    weights = quantised.level(architecture) if quantised is not None else plain_weights(architecture, dtype_bytes)
    if scenario.task == "training":
        steps = _training(scenario, architecture, weights, dtype_bytes, device)
    else:
        steps = _generation(scenario, architecture, weights, dtype_bytes, device, quantised)
    if machine.cublas_workspace_bytes:
        for step in steps[1:]:
            step.hold_cublas_workspaces(machine.cublas_workspace_bytes, CUBLAS_HANDLES[scenario.task])
    return steps


def _static_cache(scenario: Scenario) -> bool:
    return scenario.inference.engine_options.get("cache_implementation") == "static"


def _quantised(scenario: Scenario, architecture: Architecture, fmt: Format) -> QuantisedWeights | None:
    """How the weights are held when the format is not plain. Raises :class:`NotModelled` where its products are not derived."""
    if not fmt.is_quantized:
        return None
    if scenario.task == "training" or architecture.kind != "decoder" or not is_known(fmt):
        raise NotModelled(f"weights: products with {scenario.weights} weights have no closed form yet")
    return QuantisedWeights(resolve_format(fmt, architecture))


def _generation(
    scenario: Scenario, architecture: Architecture, weights: Level, dtype_bytes: int, device: Device,
    quantised: QuantisedWeights | None,
) -> list[Step]:  # fmt: skip
    ask = scenario.inference
    work = Generation(
        ask.batch, ask.prompt_tokens or 1, ask.new_tokens or 1, dtype_bytes, cuda=device == "cuda", eager=ask.attention == "eager",
        static_cache=_static_cache(scenario), quantised=quantised,
    )  # fmt: skip
    if architecture.kind != "decoder":
        from planner.engines.transformers_seq2seq import encoding_phases  # noqa: PLC0415  loaded for those who ask

        return encoding_phases(architecture, weights, work)
    return generation_phases(architecture, weights, work)


def _training(scenario: Scenario, architecture: Architecture, weights: Level, dtype_bytes: int, device: Device) -> list[Step]:
    ask, cuda = scenario.training, device == "cuda"
    states = optimizer_states(architecture, ask.optimizer, dtype_bytes, cuda=cuda)
    work = TrainingStep(
        ask.batch, ask.sequence or 1, dtype_bytes, ask.checkpointing == "full", ask.gradient_accumulation, cuda=cuda,
        eager=ask.attention == "eager",
    )  # fmt: skip
    transient = optimizer_transient(architecture, ask.optimizer, dtype_bytes)
    return training_phases(architecture, weights, states, work, transient)


def _require_modelled_options(scenario: Scenario) -> None:
    """Raise :class:`NotModelled` for what no derivation covers yet."""
    inference, training = scenario.inference, scenario.training
    asked: dict[str, tuple[str, tuple[str, ...]]] = {
        "engine": (scenario.engine, ("transformers",)),
    }
    if scenario.task == "inference":
        asked |= {
            "inference.attention": (inference.attention, ("sdpa", "flash", "eager")),
            "inference.kv_cache": (inference.kv_cache, ("auto",)),
            "inference.engine_options": (
                str(inference.engine_options.get("cache_implementation", "dynamic")),
                ("dynamic", "static"),
            ),
        }
    else:
        asked |= {
            "training.method": (training.method, ("full",)),
            "training.precision": (training.precision, ("bf16", "fp32")),
            "training.optimizer": (training.optimizer, tuple(STATE_TENSORS)),
            "training.checkpointing": (training.checkpointing, ("none", "full")),
            "training.loss": (training.loss, ("default",)),
            "training.attention": (training.attention, ("sdpa", "flash", "eager")),
        }
    for field, (value, modelled) in asked.items():
        if value not in modelled:
            raise NotModelled(f"{field}: {value} has no closed form yet")
    spread = scenario.parallel, scenario.offload, scenario.hardware.gpus, scenario.hardware.nodes
    if spread != (type(scenario.parallel)(), type(scenario.offload)(), 1, 1):
        raise NotModelled("several GPUs and offloading have no closed form yet")


def _meters(
    scenario: Scenario, architecture: Architecture, fmt: Format, steps: Sequence[Step], machine: Overheads, capacity: int
) -> tuple[Phase, ...]:
    """The three meters of each phase. On a CPU nothing is reserved beyond what is allocated."""
    levels = {step.name: step.peak.level for step in steps}
    figures = [level.total for level in levels.values()]
    if machine.context_bytes:
        quantised = _quantised(scenario, architecture, fmt)
        dtype = quantised.rest_dtype if quantised is not None else scenario.weights
        loaded = reserved_for_weights(architecture, PLAIN_BYTES[dtype], quantised.fmt if quantised is not None else None)
        reserved = (training_reserved if scenario.task == "training" else generation_reserved)(levels, loaded)
        slack = machine.slack_permille(scenario.task)
        if slack != PERMILLE:
            reserved = {name: level.total + (reserved[name] - level.total) * slack // PERMILLE for name, level in levels.items()}
        figures = settle_reserved(reserved, levels, capacity - machine.context_bytes)
    phases: list[Phase] = []
    for (name, level), reserved_bytes in zip(levels.items(), figures, strict=True):
        components = level.components()
        if machine.context_bytes:
            components |= {"allocator_slack": reserved_bytes - level.total, "cuda_context": machine.context_bytes}
        phases.append(Phase(name, level.total, reserved_bytes, reserved_bytes + machine.context_bytes, components))
    return tuple(phases)


def _weight_bytes(architecture: Architecture, fmt: Format) -> int | None:
    try:
        return checkpoint_bytes(architecture, fmt).total_bytes
    except BytesUnknown:
        return None


def _unknown(scenario: Scenario, architecture: Architecture, fmt: Format, capacity: int, notes: tuple[str, ...]) -> Footprint:
    """Everything that is known when a phase is not: parameters and weights; weights beyond every card's memory do not fit."""
    weights = _weight_bytes(architecture, fmt)
    cards = scenario.hardware.gpus * scenario.hardware.nodes
    too_large = weights is not None and not scenario.offload.weights and weights > cards * capacity
    return Footprint(
        scenario=to_json(scenario),
        level="predict",
        parameters=parameter_count(architecture),
        trainable_parameters=0,
        weight_bytes=weights,
        gpus=(GpuFootprint(0, capacity, ()),),
        verdict="does_not_fit" if too_large else "unknown",
        notes=notes,
    )
