"""A scenario answered by the closed forms of transformers: what the engine holds, and what the allocator adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from planner.architecture.counts import layer_groups, parameter_count
from planner.architecture.implementation import implementation_of
from planner.architecture.layers import Architecture, Recurrent
from planner.calibration import PERMILLE, Task
from planner.components.frozen import TRAINED_OVER
from planner.components.layer import require_modelled
from planner.components.quantised import QuantisedWeights, is_known, require_modelled_experts, with_narrow_ends
from planner.components.quantised_cache import BITS_OF_KV_CACHE, cache_quantisation, require_groups
from planner.components.states import plain_weights
from planner.components.tape import Level, separate_bytes
from planner.engines.host_loading import loading_host
from planner.engines.releases import has_single_experts, saves_inputs
from planner.engines.training import (
    has_narrow_ends,
    prepares,
    require_choices,
    require_modelled_training,
    trained_count,
    trained_tensors,
    training_host,
    training_steps,
)
from planner.engines.transformers import Generation, Step, generation_phases
from planner.explain import terms_of
from planner.faults import Fault, Faults
from planner.footprint import Footprint, GpuFootprint, Host, Phase, judge
from planner.formats.checkpoint import known_bytes, resolve_format
from planner.formats.format import Format
from planner.formats.storage import BitsAndBytes4Bit
from planner.later import LaterSequence
from planner.machine import CUBLAS_HANDLES, Overheads
from planner.modelled import NotModelled
from planner.reserve import (
    Asked,
    generation_reserved,
    reserved_for_weights,
    settle_reserved,
    trained_segments,
    training_reserved,
)
from planner.scenario import Parallel, Scenario, to_json
from planner.symbolic.amount import largest
from planner.uncertainty import device_band

PLAIN_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
CACHE_TYPES = ("auto", *BITS_OF_KV_CACHE, "fp8", "fp16", "bf16", "fp32")
"""What a cache may be asked to be: quantised, or in a dtype, which is the model's."""
COMPUTED_IN = {"fp32": "fp32", "amp-fp16": "fp16"}
"""What a quantised base computes in, by the training's precision; bf16 else."""
WITHOUT_KERNELS = (
    "recurrent mixers run the PyTorch code of transformers, as where mamba-ssm, causal-conv1d and flash-linear-attention are not "
    "installed; with them prefill and training hold less"
)


def transformers_answer(
    settled: Scenario,
    architecture: Architecture,
    fmt: Format,
    machine: Overheads,
    capacity: int,
    notes: tuple[str, ...],
    *,
    cuda: bool,
    capacities: tuple[int, ...] = (),
) -> Footprint:
    """The footprint of a settled scenario. ``capacities``: of each GPU where they differ.

    Raises :class:`~planner.modelled.NotModelled` for what no derivation covers.
    """
    if settled.task == "inference" and settled.offload.optimizer:
        raise Faults([Fault("offload.optimizer", "generation has no optimizer; use 0")])
    if settled.task == "inference" and is_spread(settled):
        from planner.engines.transformers_spread import spread_answer  # noqa: PLC0415  loaded for those who ask

        return spread_answer(settled, architecture, fmt, machine, capacities or capacity, notes, cuda=cuda)
    steps = _phases(settled, architecture, fmt, machine, capacity, cuda=cuda)
    phases = _meters(settled, architecture, fmt, steps, machine, capacity)
    footprint = GpuFootprint(0, capacity, phases)
    device_bytes = largest(*(phase.device for phase in phases))
    uncertainty = device_band(phases, machine, settled.task)
    return Footprint(
        scenario=to_json(settled),
        level="predict",
        parameters=parameter_count(architecture),
        trainable_parameters=trained_count(settled, architecture) if settled.task == "training" else 0,
        weight_bytes=known_bytes(architecture, fmt),
        gpus=(footprint,),
        host=_host(settled, architecture, fmt),
        verdict=judge(device_bytes, capacity, uncertainty),
        headroom_bytes=capacity - device_bytes,
        uncertainty_bytes=uncertainty,
        terms=LaterSequence(lambda: terms_of(steps, phases, architecture, machine, settled.task)),
        notes=(*notes, *assumed(architecture), *unshared(settled)),
    )


def _host(scenario: Scenario, architecture: Architecture, fmt: Format) -> Host:
    """What the engine keeps in system memory, and what loading takes of it."""
    training = scenario.task == "training"
    kept = training_host(scenario, architecture, PLAIN_BYTES.get(scenario.weights, 2)) if training else {}
    quantised = quantised_weights(scenario, architecture, fmt)
    dtype = quantised.rest_dtype if quantised is not None else scenario.weights
    return loading_host(architecture, fmt, dtype, kept, as_stored=scenario.weights == "native")


def is_spread(scenario: Scenario) -> bool:
    """Whether weights or cache lie on more than one device."""
    return scenario.hardware.gpus * scenario.hardware.nodes > 1 or bool(scenario.offload.weights or scenario.offload.kv_cache)


def unshared(scenario: Scenario) -> tuple[str, ...]:
    """What a server would share or capture, and ``generate`` does not, or not in what is counted."""
    ask = scenario.inference
    if scenario.task == "training":
        return ()
    found = {
        f"transformers expands {ask.samples} samples to sequences of their own before the prefill": ask.samples > 1,
        "transformers keeps every sequence's prefix itself: inference.shared_prefix saves nothing": ask.shared_prefix > 0,
        "generate compiles the forward for a static cache on a GPU; what its graphs hold is not counted": static_cache(scenario),
    }
    return tuple(note for note, holds in found.items() if holds)


def assumed(architecture: Architecture) -> tuple[str, ...]:
    """What the reader should know: packages taken as absent, a family whose order of operators nobody has read."""
    mixers = (mixer for layer, _ in layer_groups(architecture.decoder) for mixer in layer.sequence)
    notes = (WITHOUT_KERNELS,) if any(isinstance(mixer, Recurrent) for mixer in mixers) else ()
    if architecture.kind != "decoder" or implementation_of(architecture) is not None:
        return notes
    return (*notes, f"activations are those of Llama's blocks: how transformers writes {architecture.model_class} was not compared")


def _phases(
    scenario: Scenario, architecture: Architecture, fmt: Format, machine: Overheads, capacity: int, *, cuda: bool
) -> list[Step]:
    """What the engine holds in each phase, with the cuBLAS workspace from the first matrix product on."""
    require_modelled_training(scenario) if scenario.task == "training" else require_modelled_generation(scenario)
    attention = scenario.training.attention if scenario.task == "training" else scenario.inference.attention
    static = scenario.task == "inference" and static_cache(scenario)
    if architecture.kind == "decoder" or static:
        require_modelled(architecture, eager=attention == "eager", static=static)
    code = implementation_of(architecture)
    if code is not None and code.attention == "bounded" and scenario.weights == "fp16":
        raise NotModelled(f"weights: {architecture.model_class} computes softmax of fp16 scores in fp32: not derived; choose bf16")
    quantised = quantised_weights(scenario, architecture, fmt)
    dtype_bytes = PLAIN_BYTES[quantised.rest_dtype if quantised is not None else scenario.weights]
    weights = quantised.level(architecture) if quantised is not None else plain_weights(architecture, dtype_bytes)
    if scenario.task == "training":
        steps = training_steps(
            scenario, architecture, weights, dtype_bytes, cuda=cuda, quantised=quantised, capacity_bytes=capacity
        )
    else:
        steps = _generation(scenario, architecture, weights, dtype_bytes, quantised, cuda=cuda)
    if machine.cublas_workspace_bytes:
        for step in steps[1:]:
            step.hold_cublas_workspaces(machine.cublas_workspace_bytes, CUBLAS_HANDLES[scenario.task])
    return steps


def static_cache(scenario: Scenario) -> bool:
    """Whether ``generate`` takes the whole cache at once."""
    return scenario.inference.engine_options.get("cache_implementation") == "static"


def quantised_weights(scenario: Scenario, architecture: Architecture, fmt: Format) -> QuantisedWeights | None:
    """How the weights are held when the format is not plain. Raises :class:`NotModelled` where its products are not derived."""
    if not fmt.is_quantized:
        return None
    training = scenario.task == "training"
    if fmt.name.startswith("hqq"):
        raise NotModelled("weights: transformers 5.23 loads no HQQ (quantizers/base.py, get_quantize_ops: not available yet)")
    packed = fmt.name.startswith(("gptq-", "awq-"))
    trains = (fmt.name.partition("-")[0] if packed else fmt.name) in TRAINED_OVER
    if architecture.kind != "decoder" or not is_known(fmt) or (training and not trains):
        what = "training over" if training else "products with"
        raise NotModelled(f"weights: {what} {scenario.weights} weights has no closed form yet")
    code = implementation_of(architecture)
    if code is not None and code.own_linears:
        raise NotModelled(f"weights: {architecture.model_class} has linears of its own, which quantisers of transformers pass over")
    resolved = resolve_format(fmt, architecture)
    if not has_single_experts(scenario, architecture):
        require_modelled_experts(resolved, architecture)
    if training and packed and prepares(scenario.training):
        raise NotModelled(
            "training.engine_options.prepare_for_kbit_training: PEFT casts nothing around GPTQ weights, and around AWQ ones it is "
            "not derived: leave it out"
        )
    options = scenario.training.engine_options if training else {}
    saves = isinstance(resolved.scheme, BitsAndBytes4Bit) and saves_inputs(options.get("bitsandbytes_version"))
    if training:
        rest = "fp32" if prepares(scenario.training) else COMPUTED_IN.get(scenario.training.precision, "bf16")
        resolved = replace(resolved, rest_dtype=rest)
        if has_narrow_ends(scenario.training) and isinstance(resolved.scheme, BitsAndBytes4Bit):
            return replace(with_narrow_ends(resolved, architecture), saves_inputs=saves)
    return QuantisedWeights(resolved, saves_inputs=saves)


def _generation(
    scenario: Scenario, architecture: Architecture, weights: Level, dtype_bytes: int,
    quantised: QuantisedWeights | None, *, cuda: bool,
) -> list[Step]:  # fmt: skip
    work = generation_of(scenario, dtype_bytes, quantised, cuda=cuda)
    if work.quantised_cache is not None:
        require_groups(architecture, work.quantised_cache)
    if architecture.kind != "decoder":
        from planner.engines.transformers_seq2seq import encoding_phases  # noqa: PLC0415  loaded for those who ask

        return encoding_phases(architecture, weights, work)
    return generation_phases(architecture, weights, work)


def generation_of(scenario: Scenario, dtype_bytes: int, quantised: QuantisedWeights | None, *, cuda: bool) -> Generation:
    """What ``generate`` is asked: each sample is a sequence from its prompt on, the last turn reads what is kept of the others."""
    ask = scenario.inference
    new = ask.new_tokens or 1
    prompt = ask.context_tokens - new if ask.conversation.turns > 1 else ask.prompt_tokens or 1
    return Generation(
        ask.batch * ask.samples, prompt, new, dtype_bytes, cuda=cuda, eager=ask.attention == "eager",
        static_cache=static_cache(scenario), quantised=quantised, quantised_cache=cache_quantisation(scenario, prompt),
    )  # fmt: skip


def refuse_generation(scenario: Scenario) -> None:
    """Raise :class:`planner.faults.Faults` for what ``generate`` has no setting for."""
    cache, faults = scenario.inference.kv_cache, []
    if cache not in CACHE_TYPES:
        message = f"transformers has no cache type {cache}; use auto, int8, int4 or int2"
        faults.append(Fault("inference.kv_cache", message))
    if scenario.parallel.sharding != "none":
        faults.append(Fault("parallel.sharding", "generation shards nothing over replicas; use none"))
    faults += [
        Fault(f"parallel.{name}", f"transformers has no such way of spreading a generation; use {use}")
        for name, use in (("pipeline", "1: its device_map lays layers over hardware.gpus"), ("context", "1"), ("data", "1"))
        if getattr(scenario.parallel, name) != 1
    ]
    if faults:
        raise Faults(faults)


def require_modelled_generation(scenario: Scenario) -> None:
    """Raise :class:`NotModelled` for what no derivation covers yet."""
    inference = scenario.inference
    refuse_generation(scenario)
    cache = str(inference.engine_options.get("cache_implementation", "dynamic"))
    require_choices({
        "engine": (scenario.engine, ("transformers",)),
        "inference.attention": (inference.attention, ("sdpa", "flash", "eager")),
        "inference.kv_cache": (inference.kv_cache, ("auto", *BITS_OF_KV_CACHE, "fp8")),
        "inference.engine_options": (cache, ("dynamic", "static", "quantized")),
    })  # fmt: skip
    asked = {
        "speculation: assisted generation": inference.speculation.method != "none",
        "adapters: adapters beside each other": inference.adapters.count > 0,
        "chunked_prefill: a prefill in chunks": inference.chunked_prefill is True,
    }
    for what, is_asked in asked.items():
        if is_asked:
            raise NotModelled(f"inference.{what} by transformers has no closed form yet")
    if scenario.parallel != Parallel():
        raise NotModelled("parallel: transformers' own tensor parallelism (tp_plan) has no closed form yet; a device map needs 1")


def _meters(
    scenario: Scenario, architecture: Architecture, fmt: Format, steps: Sequence[Step], machine: Overheads, capacity: int
) -> tuple[Phase, ...]:
    """The three meters of each phase. On a CPU nothing is reserved beyond what is allocated."""
    levels = {step.name: step.peak.level for step in steps}
    if not machine.context_bytes:
        return phases_of(levels, {}, scenario.task, machine, capacity)
    quantised = quantised_weights(scenario, architecture, fmt)
    dtype = quantised.rest_dtype if quantised is not None else scenario.weights
    loaded = reserved_for_weights(architecture, PLAIN_BYTES[dtype], quantised.fmt if quantised is not None else None)
    if scenario.task == "training":
        trained, rank = trained_tensors(scenario, architecture, PLAIN_BYTES[dtype])
        segments = trained_segments(trained, scenario.training.optimizer, rank)
        asked = asked_of(steps, is_regular=scenario.training.checkpointing == "full")
        reserved = training_reserved(levels, loaded, segments, asked)
    else:
        reserved = generation_reserved(levels, loaded)
    return phases_of(levels, reserved, scenario.task, machine, capacity)


def asked_of(steps: Sequence[Step], *, is_regular: bool) -> Asked:
    """What a step of training asks of the allocator. ``is_regular``: its layers leave tensors of one size alone."""
    forward, backward = (next(step for step in steps if step.name == name) for name in ("forward", "backward"))
    logits = (forward.logits_bytes, forward.largest_logits_bytes)
    if forward.blocks is None or backward.blocks is None:
        return Asked(*logits)
    blocks = separate_bytes([*forward.blocks.logits, *backward.blocks.logits])
    stack = (forward.blocks.stack_bytes, forward.blocks.slack_bytes)
    return Asked(*logits, blocks, *stack, is_regular=is_regular)


def phases_of(
    levels: Mapping[str, Level], reserved: Mapping[str, int], task: Task, machine: Overheads, capacity: int
) -> tuple[Phase, ...]:
    """The three meters of each phase from what is live and what is ``reserved`` for it."""
    figures = [level.total for level in levels.values()]
    if machine.context_bytes:
        slack = machine.slack_permille(task)
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
