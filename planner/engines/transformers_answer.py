"""A scenario answered by the closed forms of transformers: what the engine holds, and what the allocator adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from planner.architecture.counts import iter_weights, layer_groups, parameter_count
from planner.architecture.implementation import implementation_of
from planner.architecture.layers import Architecture, Recurrent
from planner.calibration import PERMILLE
from planner.components.frozen import TRAINED_OVER
from planner.components.layer import require_modelled
from planner.components.quantised import QuantisedWeights, is_known
from planner.components.states import plain_weights
from planner.components.tape import Level
from planner.components.trainable import trainable_parameters
from planner.engines.training import require_choices, require_modelled_training, require_one_gpu, training_host, training_steps
from planner.engines.transformers import Generation, Step, generation_phases
from planner.explain import terms_of
from planner.footprint import Footprint, GpuFootprint, Host, Phase, judge
from planner.formats.checkpoint import known_bytes, resolve_format
from planner.formats.format import EXPERTS, Format
from planner.later import LaterSequence
from planner.machine import CUBLAS_HANDLES, Overheads
from planner.modelled import NotModelled
from planner.reserve import generation_reserved, reserved_for_weights, settle_reserved, training_reserved
from planner.scenario import Scenario, to_json
from planner.symbolic.amount import largest

RESERVED_BAND = 10
"""One part in so many is the half-width of the error of ``reserved``: nine in ten replays of traced models lie within it
(planner/reserve.py)."""
PLAIN_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
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
) -> Footprint:
    """The footprint of a settled scenario. Raises :class:`~planner.modelled.NotModelled` for what no derivation covers."""
    steps = _phases(settled, architecture, fmt, machine, cuda=cuda)
    phases = _meters(settled, architecture, fmt, steps, machine, capacity)
    footprint = GpuFootprint(0, capacity, phases)
    device_bytes = largest(*(phase.device for phase in phases))
    uncertainty = (
        machine.context_band_bytes + largest(*(p.reserved - p.components.get("weights", 0) for p in phases)) // RESERVED_BAND
    )
    return Footprint(
        scenario=to_json(settled),
        level="predict",
        parameters=parameter_count(architecture),
        trainable_parameters=trainable_parameters(architecture, settled.training) if settled.task == "training" else 0,
        weight_bytes=known_bytes(architecture, fmt),
        gpus=(footprint,),
        host=_host(settled, architecture),
        verdict=judge(device_bytes, capacity, uncertainty),
        headroom_bytes=capacity - device_bytes,
        uncertainty_bytes=uncertainty,
        terms=LaterSequence(lambda: terms_of(steps, phases, architecture, machine, settled.task)),
        notes=(*notes, *_assumed(architecture)),
    )


def _host(scenario: Scenario, architecture: Architecture) -> Host:
    """What the engine keeps in system memory."""
    if scenario.task != "training":
        return Host()
    components = training_host(scenario, architecture, PLAIN_BYTES.get(scenario.weights, 2))
    return Host(sum(components.values()), components)


def _assumed(architecture: Architecture) -> tuple[str, ...]:
    """What the reader should know: packages taken as absent, a family whose order of operators nobody has read."""
    mixers = (mixer for layer, _ in layer_groups(architecture.decoder) for mixer in layer.sequence)
    notes = (WITHOUT_KERNELS,) if any(isinstance(mixer, Recurrent) for mixer in mixers) else ()
    if architecture.kind != "decoder" or implementation_of(architecture.model_type) is not None:
        return notes
    return (*notes, f"activations are those of Llama's blocks: how transformers writes {architecture.model_class} was not compared")


def _phases(scenario: Scenario, architecture: Architecture, fmt: Format, machine: Overheads, *, cuda: bool) -> list[Step]:
    """What the engine holds in each phase, with the cuBLAS workspace from the first matrix product on."""
    require_modelled_training(scenario) if scenario.task == "training" else _require_modelled_generation(scenario)
    attention = scenario.training.attention if scenario.task == "training" else scenario.inference.attention
    static = scenario.task == "inference" and _static_cache(scenario)
    if architecture.kind == "decoder" or scenario.task == "training" or static:
        require_modelled(architecture, training=scenario.task == "training", eager=attention == "eager", static=static)
    quantised = _quantised(scenario, architecture, fmt)
    dtype_bytes = PLAIN_BYTES[quantised.rest_dtype if quantised is not None else scenario.weights]
    weights = quantised.level(architecture) if quantised is not None else plain_weights(architecture, dtype_bytes)
    if scenario.task == "training":
        steps = training_steps(scenario, architecture, weights, dtype_bytes, cuda=cuda, quantised=quantised)
    else:
        steps = _generation(scenario, architecture, weights, dtype_bytes, quantised, cuda=cuda)
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
    training = scenario.task == "training"
    if architecture.kind != "decoder" or not is_known(fmt) or (training and fmt.name not in TRAINED_OVER):
        what = "training over" if training else "products with"
        raise NotModelled(f"weights: {what} {scenario.weights} weights has no closed form yet")
    code = implementation_of(architecture.model_type)
    if code is not None and code.own_linears:
        raise NotModelled(f"weights: {architecture.model_class} has linears of its own, which quantisers of transformers pass over")
    resolved = resolve_format(fmt, architecture)
    experts = any(weight.role == "expert" for _, weight, _ in iter_weights(architecture))
    if experts and resolved.quantizes & EXPERTS:
        raise NotModelled(f"weights: products with experts held in {fmt.name} have no closed form yet")
    if training:
        resolved = replace(resolved, rest_dtype=COMPUTED_IN.get(scenario.training.precision, "bf16"))
    return QuantisedWeights(resolved)


def _generation(
    scenario: Scenario, architecture: Architecture, weights: Level, dtype_bytes: int,
    quantised: QuantisedWeights | None, *, cuda: bool,
) -> list[Step]:  # fmt: skip
    ask = scenario.inference
    work = Generation(
        ask.batch, ask.prompt_tokens or 1, ask.new_tokens or 1, dtype_bytes, cuda=cuda, eager=ask.attention == "eager",
        static_cache=_static_cache(scenario), quantised=quantised,
    )  # fmt: skip
    if architecture.kind != "decoder":
        from planner.engines.transformers_seq2seq import encoding_phases  # noqa: PLC0415  loaded for those who ask

        return encoding_phases(architecture, weights, work)
    return generation_phases(architecture, weights, work)


def _require_modelled_generation(scenario: Scenario) -> None:
    """Raise :class:`NotModelled` for what no derivation covers yet."""
    inference = scenario.inference
    cache = str(inference.engine_options.get("cache_implementation", "dynamic"))
    require_choices({
        "engine": (scenario.engine, ("transformers",)),
        "inference.attention": (inference.attention, ("sdpa", "flash", "eager")),
        "inference.kv_cache": (inference.kv_cache, ("auto",)),
        "inference.engine_options": (cache, ("dynamic", "static")),
    })  # fmt: skip
    require_one_gpu(scenario)


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
