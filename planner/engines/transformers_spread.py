"""transformers over several GPUs of a machine, and with weights that lie on the host: ``device_map`` and accelerate's hooks.

accelerate 1.15 ``hooks.py`` (``AlignDevicesHook``): a layer's inputs are copied to its GPU for its forward; what a module
on the host holds comes to the first GPU for the module's own forward and goes after it. The result goes back to the first
GPU. Caches lie where their layers run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from planner.architecture.counts import layer_indices, parameter_count
from planner.architecture.implementation import implementation_of
from planner.architecture.layers import Architecture, Attention, LatentAttention, Layer, MixtureOfExperts, Recurrent, Weight
from planner.components.attention import mask_sizes
from planner.components.cache import cache_component, held_tensors
from planner.components.inputs import EMBEDDINGS, SHARED, TABLES, hold_inputs
from planner.components.layer import layer_forward, require_modelled
from planner.components.quantised import QuantisedWeights
from planner.components.recurrent.arrangements import is_shared_before
from planner.components.rotary import rotary_embedding
from planner.components.run import Run
from planner.components.states import plain_weights
from planner.components.tape import Course, Held, Level, Peak, Size, Span, highest
from planner.engines.device_map import Share, balanced_shares, kept_share, modules_of, require_placed, share_of_model
from planner.engines.host_loading import loading_host
from planner.engines.shares import share_of
from planner.engines.transformers import Generation, Step, drop, final_norm, generates, inference_run
from planner.engines.transformers_answer import (
    PLAIN_BYTES,
    assumed,
    generation_of,
    phases_of,
    quantised_weights,
    require_modelled_generation,
    static_cache,
    unshared,
)
from planner.explain import terms_of
from planner.faults import Fault, Faults
from planner.footprint import Footprint, GpuFootprint, Host, Phase, Term, judge
from planner.formats.checkpoint import known_bytes
from planner.formats.format import Format
from planner.later import LaterSequence
from planner.machine import CUBLAS_HANDLES, Overheads
from planner.modelled import NotModelled
from planner.record import record
from planner.reserve import generation_reserved, reserved_for_weights
from planner.scenario import Scenario, to_json
from planner.symbolic.amount import largest
from planner.uncertainty import device_band


@record
class Part:
    """One GPU's part in a forward of the whole model.

    ``owned``: the weights that lie here, as a model of its own. ``here``: the layers that run here; of those that lie on the
    host (``fetches``) the weights come module by module.
    """

    whole: Architecture
    owned: Architecture
    share: Share
    here: range
    norm_here: bool
    head_here: bool
    fetches: bool = False

    @property
    def is_first(self) -> bool:
        """Whether tokens come in here, and logits go out."""
        return self.share.index == 0

    @property
    def head_weight(self) -> Weight:
        """The head's, or the embedding's that serves as one."""
        return (self.whole.head or self.whole.embeddings)[0]

    @property
    def fetches_head(self) -> bool:
        """Whether the head's weight comes from the host."""
        return self.fetches and not (self.share.head if self.whole.head else self.share.embeddings)


def spread_answer(
    settled: Scenario, architecture: Architecture, fmt: Format, machine: Overheads, capacity: int | tuple[int, ...],
    notes: Sequence[str], *, cuda: bool,
) -> Footprint:  # fmt: skip
    """The footprint of a generation whose weights lie on several GPUs, or partly on the host.

    ``capacity``: of every GPU, or of each.

    Raises :class:`~planner.faults.Faults` for what a device map can't do, ``NotModelled`` for what no derivation covers.
    """
    _refuse(settled)
    require_modelled_generation(settled)
    require_modelled(architecture, eager=settled.inference.attention == "eager", static=static_cache(settled))
    quantised = quantised_weights(settled, architecture, fmt)
    _require_derived(settled, architecture, quantised)
    dtype_bytes = PLAIN_BYTES[quantised.rest_dtype if quantised is not None else settled.weights]
    work = generation_of(settled, dtype_bytes, quantised, cuda=cuda)
    if work.quantised_cache is not None:
        raise NotModelled(
            "inference.engine_options.cache_implementation: a quantised cache on several devices has no closed form yet"
        )
    capacities = capacity if isinstance(capacity, tuple) else (capacity,) * settled.hardware.gpus
    free = [each - machine.context_bytes for each in capacities]
    parts = _parts(settled, architecture, dtype_bytes, quantised, free)
    steps = [_steps(part, work, fmt, machine) for part in parts]
    phases = [_meters(part, found, work, machine, each) for part, found, each in zip(parts, steps, capacities, strict=True)]
    device_bytes = largest(*(phase.device for one in phases for phase in one))
    uncertainty = largest(*(device_band(one, machine, "inference") for one in phases))
    return Footprint(
        scenario=to_json(settled),
        level="predict",
        parameters=parameter_count(architecture),
        trainable_parameters=0,
        weight_bytes=known_bytes(architecture, fmt),
        gpus=tuple(GpuFootprint(index, capacities[index], one) for index, one in enumerate(phases)),
        host=_host(settled, architecture, fmt, parts, quantised),
        verdict=judge(device_bytes, capacities[0], uncertainty),
        headroom_bytes=capacities[0] - device_bytes,
        uncertainty_bytes=uncertainty,
        terms=LaterSequence(lambda: _terms(steps, phases, architecture, machine)),
        notes=(*notes, *assumed(architecture), *unshared(settled), *_notes(parts), *_overflow(phases[-1], capacities[-1])),
    )


def _refuse(scenario: Scenario) -> None:
    """What a device map can't do."""
    offload, faults = scenario.offload, []
    if scenario.hardware.nodes > 1:
        faults.append(Fault("hardware.nodes", "transformers' device_map spreads a model over the GPUs of one machine; use 1"))
    if offload.weights and scenario.hardware.gpus > 1:
        faults.append(Fault("offload.weights", "a device map fills every GPU before it takes the host; use 0, or one GPU"))
    if faults:
        raise Faults(faults)


def _require_derived(scenario: Scenario, architecture: Architecture, quantised: QuantisedWeights | None) -> None:
    """Raise :class:`NotModelled` for layers, and kinds of offloading, that no derivation covers."""
    if scenario.offload.kv_cache:
        raise NotModelled("offload.kv_cache: a cache that transformers keeps on the host has no closed form yet")
    require_placed(architecture, quantised)
    layers = [layer for layer, _ in layer_indices(architecture.decoder)]
    mixers = [mixer for layer in layers for mixer in layer.sequence]
    if any(isinstance(mixer, Attention) and mixer.kv != "own" for mixer in mixers):
        raise NotModelled("hardware.gpus: layers that read caches of layers on other GPUs have no closed form yet")
    if any(isinstance(mixer, Attention) and mixer.compression is not None for mixer in mixers):
        raise NotModelled("hardware.gpus: compressed caches spread over several GPUs have no closed form yet")
    if any(map(is_shared_before, layers)):
        raise NotModelled("hardware.gpus: blocks whose weights serve layers on several GPUs have no closed form yet")
    if not scenario.offload.weights:
        return
    code = implementation_of(architecture)
    kinds = {
        "quantised weights": quantised is not None,
        "recurrent layers": any(isinstance(mixer, Recurrent) for mixer in mixers),
        "experts that compute every token": _has_experts(layers) and code is not None and code.experts == "dense",
    }
    for kind, found in kinds.items():
        if found:
            raise NotModelled(f"offload.weights: {kind} that come from the host have no closed form yet")


def _has_experts(layers: Sequence[Layer]) -> bool:
    return any(isinstance(mixer, MixtureOfExperts) for layer in layers for mixer in layer.channel)


def _parts(
    scenario: Scenario, architecture: Architecture, dtype_bytes: int, quantised: QuantisedWeights | None, free_bytes: Sequence[int]
) -> list[Part]:
    makes = generates(architecture)
    if scenario.offload.weights:
        share = share_beside_host(scenario, architecture, dtype_bytes)
        layers = range(len(architecture.decoder.layers))
        return [Part(architecture, share_of_model(architecture, share), share, layers, True, makes, fetches=True)]
    shares = balanced_shares(architecture, dtype_bytes, quantised, free_bytes)
    found: list[Part] = []
    for share in shares:
        head = share.head if architecture.head else makes and bool(share.embeddings)
        found.append(Part(architecture, share_of_model(architecture, share), share, share.layers, share.norm, head))
    return found


def lays_on_host(scenario: Scenario, architecture: Architecture | None) -> int | None:
    """Bytes of a value where the layers on the host are known by the prediction; None elsewhere."""
    if architecture is None or architecture.kind != "decoder" or architecture.towers or architecture.decoder.weights:
        return None
    alone = scenario.hardware.gpus * scenario.hardware.nodes == 1 and bool(scenario.offload.weights)
    return PLAIN_BYTES.get(scenario.weights) if alone else None


def makes_rotary(architecture: Architecture) -> bool:
    """Whether a module beside the layers makes cosines and sines."""
    code = implementation_of(architecture)
    if code is not None and code.rotary == "pairs_inline":
        return False
    mixers = (mixer for layer, _ in layer_indices(architecture.decoder) for mixer in layer.sequence)
    return any(isinstance(mixer, LatentAttention) or (isinstance(mixer, Attention) and bool(mixer.rotary_dim)) for mixer in mixers)


def share_beside_host(scenario: Scenario, architecture: Architecture, dtype_bytes: int) -> Share:
    """What stays on the GPU where ``offload.weights`` of the weights lie on the host: modules from the first on."""
    total = sum(module.size_bytes for module in modules_of(architecture, dtype_bytes))
    return kept_share(architecture, dtype_bytes, total - share_of(total, scenario.offload.weights))


def _steps(part: Part, work: Generation, fmt: Format, machine: Overheads) -> list[Step]:
    """Load, prefill and decode of one GPU, with the cuBLAS workspace where something is multiplied."""
    weights = work.quantised.level(part.owned) if work.quantised is not None else plain_weights(part.owned, work.dtype_bytes)
    course = Course()
    course.level = weights.fork()
    course.begin_phase()
    steps = [Step("load", course.peak)]
    course.begin_phase()
    _forward(course, part, inference_run(part.whole, work, work.prompt_tokens), fmt)
    steps.append(Step("prefill", course.peak))
    if generates(part.whole):
        first = _decode(part, weights, work, fmt, work.prompt_tokens)
        last = _decode(part, weights, work, fmt, work.prompt_tokens + work.new_tokens - 1)
        steps.append(Step("decode", highest(first, last)))
    if machine.cublas_workspace_bytes and (len(part.here) or part.head_here):
        for step in steps[1:]:
            step.hold_cublas_workspaces(machine.cublas_workspace_bytes, CUBLAS_HANDLES["inference"])
    return steps


def _decode(part: Part, weights: Level, work: Generation, fmt: Format, past: int) -> Peak:
    """One decode step, with the caches of the layers that run here."""
    course = Course()
    course.level = weights.fork()
    run = inference_run(part.whole, work, 1, past)
    for layer, places in _layers_within(part, part.here):
        for name, size in held_tensors(layer, run, work.prompt_tokens).items():
            course.hold(cache_component(name), name, size, len(places))
    course.begin_phase()
    _forward(course, part, run, fmt)
    return course.peak


def _layers_within(part: Part, layers: range) -> list[tuple[Layer, tuple[int, ...]]]:
    """The distinct layers of a run, and the positions of each."""
    found = ((layer, tuple(place for place in places if place in layers)) for layer, places in layer_indices(part.whole.decoder))
    return [(layer, places) for layer, places in found if places]


def _forward(course: Course, part: Part, run: Run, fmt: Format) -> None:
    """What this GPU holds while the model runs."""
    _hold_inputs(course, part, run)
    blocks = list(_spans(part, run, part.share.layers))
    if part.fetches:
        fetching = replace(run, quantised=QuantisedWeights(fmt, on_host=True))
        blocks += _spans(part, fetching, range(part.share.layers.stop, part.here.stop))
    course.run_stack(blocks, "layers")
    if part.norm_here:
        course.run(final_norm(part.whole, run, saving=False).span, 1, "final norm")
    drop(course, *SHARED)
    if generates(part.whole):
        _hold_logits(course, part, run)


def _hold_inputs(course: Course, part: Part, run: Run) -> None:
    """Hidden states come from the GPU before; masks are made on the first, cosines and sines beside the last norm.

    The first layer's input is the embeddings, which stay: of a second layer's both are there.
    """
    if part.is_first:
        fetched = [weight for weight in part.whole.embeddings if part.fetches and not part.share.embeddings]
        for weight in fetched:
            name, size = _from_host(weight, run)
            course.hold("workspace", name, size, 1, name)
            course.level.change("workspace", name, size, -1)
        hold_inputs(course, part.whole, run)
        if not part.share.rotary:
            drop(course, TABLES)
        if len(part.here) <= 1:
            drop(course, EMBEDDINGS)
        return
    if not len(part.here) and not part.norm_here:
        return
    made = Course()
    hold_inputs(made, part.whole, run)
    drop(made, *(name for name in SHARED if name != "x" and not (name == TABLES and part.share.rotary)))
    for component, name, size, count in list(made.level.items()):
        course.hold(component, name, size, count, "inputs from another GPU")


def _from_host(weight: Weight, run: Run) -> tuple[str, Size]:
    """A weight that comes for its module's forward."""
    return f"{weight.name} from the host", Size(rows=weight.shape[0], width=weight.shape[-1], bytes=run.dtype_bytes)


def _spans(part: Part, run: Run, layers: range) -> Iterator[tuple[Span, tuple[int, ...]]]:
    """What the layers of a run do, each with its own copies of what was made on other GPUs."""
    for layer, places in _layers_within(part, layers):
        span = layer_forward(layer, run, saving=False).span
        copies = list(_copies(part, layer, run))
        if copies:
            above = sum(held.size.bytes for _, held, _ in copies)
            span = replace(span, tops=[(top + above, [*change, *copies]) for top, change in span.tops])
        yield span, places


def _copies(part: Part, layer: Layer, run: Run) -> Iterator[tuple[str, Held, int]]:
    """Masks on every GPU but the first, cosines and sines on every one but that of the last norm, while the layer runs."""
    for mixer in layer.sequence:
        if isinstance(mixer, Attention) and not part.is_first and (mask := mask_sizes(run, mixer)) is not None:
            yield "mask from the first GPU", Held(mask[1], "workspace"), 1
        width = mixer.rotary_dim if isinstance(mixer, Attention) else 0
        width = mixer.qk_rope_head_dim if isinstance(mixer, LatentAttention) else width
        if width and not part.share.rotary:
            yield "cosines and sines from another GPU", Held(rotary_embedding(run, width)[0], "workspace"), 1


def _hold_logits(course: Course, part: Part, run: Run) -> None:
    """Logits of the last position where the head lies, and on the first GPU in fp32, which chooses the next token."""
    logits = Size(batch=run.batch, vocab_size=part.whole.vocab_size, bytes=run.dtype_bytes)
    fetched = _from_host(part.head_weight, run)
    if part.fetches_head:
        course.hold("workspace", *fetched, 1, "head")
    if part.head_here:
        if part.whole.logit_softcap:
            course.hold("logits", "logits before the cap", logits, where="head")
        course.hold("logits", "last logits", logits, where="head")
        if part.fetches_head:
            course.level.change("workspace", *fetched, -1)
    elif part.is_first:
        course.hold("logits", "last logits from the last GPU", logits, where="logits")
    if part.is_first:
        wide = Size(batch=run.batch, vocab_size=part.whole.vocab_size, fp32_bytes=4)
        course.hold("logits", "last logits fp32", wide, where="logits")


def _meters(part: Part, steps: Sequence[Step], work: Generation, machine: Overheads, capacity: int) -> tuple[Phase, ...]:
    levels = {step.name: step.peak.level for step in steps}
    if not machine.context_bytes:
        return phases_of(levels, {}, "inference", machine, capacity)
    loaded = reserved_for_weights(part.owned, work.dtype_bytes, work.quantised.fmt if work.quantised is not None else None)
    return phases_of(levels, generation_reserved(levels, loaded), "inference", machine, capacity)


def _host(
    scenario: Scenario, architecture: Architecture, fmt: Format, parts: Sequence[Part], quantised: QuantisedWeights | None
) -> Host:
    """What lies on the host: weights that no GPU holds, unless they are read from disk; and what loading takes of it."""
    dtype = quantised.rest_dtype if quantised is not None else scenario.weights
    modules, on_host = modules_of(architecture, PLAIN_BYTES[dtype]), 0
    if scenario.offload.weights and scenario.offload.to == "cpu":
        held = sum(module.size_bytes for part in parts for module in modules_of(part.owned, PLAIN_BYTES[dtype]))
        on_host = sum(module.size_bytes for module in modules) - held
    kept = {"weights": on_host} if on_host else {}
    to_disk = bool(scenario.offload.weights) and scenario.offload.to != "cpu"
    return loading_host(architecture, fmt, dtype, kept, to_disk=to_disk, as_stored=scenario.weights == "native")


def _notes(parts: Sequence[Part]) -> list[str]:
    """Which layers lie where, in words."""
    if parts[0].fetches:
        stop, layers = parts[0].share.layers.stop, len(parts[0].here)
        kept = "all layers stay" if stop == layers else f"layers from {stop} on, the last norm and a head of its own lie"
        return [f"device_map: {kept} on the {'GPU' if stop == layers else 'host'}; each of their modules comes for its own forward"]
    runs = (f"GPU {part.share.index}: {_run_in_words(part.share)}" for part in parts)
    return [f"device_map: {', '.join(runs)}; one GPU works at a time"]


def _overflow(phases: Sequence[Phase], capacity: int) -> list[str]:
    """What the map does with weights that the GPUs can't hold."""
    if phases[0].device <= capacity:
        return []
    return ["device_map: auto would lay on the host what the last GPU is shown with; offload.weights plans for that on one GPU"]


def _run_in_words(share: Share) -> str:
    return f"layers {share.layers.start} to {share.layers.stop - 1}" if len(share.layers) else "no layers"


def _terms(
    steps: Sequence[Sequence[Step]], phases: Sequence[tuple[Phase, ...]], architecture: Architecture, machine: Overheads
) -> list[Term]:
    """The terms of every GPU."""
    return [
        replace(term, gpu=index)
        for index, (step, phase) in enumerate(zip(steps, phases, strict=True))
        for term in terms_of(step, phase, architecture, machine, "inference")
    ]
