"""A scenario's answer under llama.cpp: every buffer of every device and of the host, with the terms that make it up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from planner.architecture.layers import Architecture, Attention, Recurrent
from planner.engines.beside import DRAFT, read_beside
from planner.engines.llama_cpp.context import Context, context_of
from planner.engines.llama_cpp.families import FAMILIES, UNCONVERTED, WRAPPERS, Family
from planner.engines.llama_cpp.laid import COMPONENTS, PHASES, VERSION, Buffers, Laid
from planner.engines.llama_cpp.options import (
    cache_type_faults,
    cpu_expert_layers,
    draft_options,
    gpu_layers,
    integer,
    options_of,
    refuse,
    split_of,
)
from planner.engines.llama_cpp.overrides import host_experts
from planner.engines.llama_cpp.placement import CUDA, Checkpoint, DeviceKind, Placement, placement_of
from planner.faults import Fault, Faults
from planner.footprint import Term
from planner.formats import GGML_TYPES, FileHeader, Format, GgufTensor, gguf_tensors
from planner.later import LaterSequence
from planner.memo import remember_by_identity
from planner.modelled import NotModelled
from planner.scenario import Scenario

__all__ = ["COMPONENTS", "PHASES", "VERSION", "Buffers", "LlamaCppFootprint", "Plan", "llama_cpp_footprint", "plan_of"]

VOCABULARY_DIFFERENCE = 128
"""``SPEC_VOCAB_MAX_SIZE_DIFFERENCE``: vocabularies that differ by more are no longer taken for the same."""
PLAIN_FILE_TYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}


@dataclass(frozen=True, slots=True)
class Plan:
    """The models of a scenario laid out: the one asked for first, the one that drafts for it second.

    ``options``: those of each model's context.
    """

    models: tuple[Laid, ...]
    options: tuple[Mapping[str, object], ...]
    notes: tuple[str, ...]

    def contexts(self, n_ctx: int) -> tuple[Context, ...]:
        """The contexts that ``n_ctx`` makes: a draft's has as many cells and slots as the target's."""
        first = context_of(dict(self.options[0]) | {"n_ctx": n_ctx}, None)
        total = first.cells * first.streams
        return first, *(context_of(dict(options) | {"n_ctx": total}, None) for options in self.options[1:])

    def buffers(self) -> tuple[Buffers, ...]:
        """What each device and, last, the host holds."""
        first, *others = (laid.buffers() for laid in self.models)
        for other in others:
            first = tuple(one + beside for one, beside in zip(first, other, strict=True))
        return first

    def terms(self) -> list[Term]:
        """What makes up every buffer."""
        return [term for laid in self.models for term in laid.terms()]


@dataclass(frozen=True, slots=True)
class LlamaCppFootprint:
    """Buffers of each device and of the host; ``terms`` name the holder they belong to among their values."""

    devices: tuple[Buffers, ...]
    host: Buffers
    context: Context
    placement: Placement
    terms: LaterSequence[Term]
    notes: tuple[str, ...]


def llama_cpp_footprint(
    architecture: Architecture,
    scenario: Scenario,
    fmt: Format,
    device_count: int | None = None,
    *,
    kind: DeviceKind = CUDA,
    checkpoint: Checkpoint | None = None,
) -> LlamaCppFootprint:
    """Every buffer llama.cpp allocates for an inference scenario.

    ``device_count``: GPUs (default: the scenario's; 0 runs on the host alone). ``checkpoint``: the tensors of a file at
    hand; without it the file's header, or the converter's and quantiser's rules say them. Raises
    :class:`planner.faults.Faults` for what llama.cpp refuses and :class:`NotModelled` for a graph that is not derived.
    """
    plan = plan_of(architecture, scenario, fmt, Where(device_count, kind, checkpoint))
    *devices, host = plan.buffers()
    laid = plan.models[0]
    return LlamaCppFootprint(tuple(devices), host, laid.context, laid.placement, LaterSequence(plan.terms), plan.notes)


@dataclass(frozen=True, slots=True)
class Where:
    """How many devices there are (None: the scenario's), of which kind, and the tensors of a file at hand."""

    count: int | None = None
    kind: DeviceKind = CUDA
    checkpoint: Checkpoint | None = None


def plan_of(architecture: Architecture, scenario: Scenario, fmt: Format, where: Where | None = None) -> Plan:
    """Where everything goes; errors of :func:`llama_cpp_footprint`."""
    where = where or Where()
    kind = where.kind
    notes: list[str] = []
    family = _family(architecture)
    options = options_of(scenario, architecture, notes)
    count = scenario.hardware.gpus * scenario.hardware.nodes if where.count is None else where.count
    refuse(scenario, architecture, options, count)
    file = where.checkpoint or _checkpoint(architecture, scenario, fmt)
    placement = _placement(architecture, options, gpu_layers(scenario, options, architecture), count, kind, file)
    context = context_of(options, architecture.max_context_tokens)
    models, asked = [Laid(architecture, family, context, placement, file)], [options]
    if scenario.inference.speculation.method == "draft":
        asked.append(draft_options(options))
        models.append(_draft(scenario, fmt, asked[1], models[0], count, kind))
    notes.extend(_placement_notes(placement, options))
    notes.extend(_uneven(architecture, context))
    if architecture.max_context_tokens and context.cells > architecture.max_context_tokens:
        limit = architecture.max_context_tokens
        notes.append(
            f"{context.cells} cells a sequence exceed the model's context limit of {limit}: llama-server caps its slots at it"
        )
    return Plan(tuple(models), tuple(asked), tuple(notes))


def _draft(scenario: Scenario, fmt: Format, options: Mapping[str, object], target: Laid, count: int, kind: DeviceKind) -> Laid:
    """The draft model beside the one it drafts for (``server_context::load_model``)."""
    config = scenario.inference.speculation.draft
    if config is None:
        raise NotModelled("a draft model under llama.cpp needs its config: give inference.speculation.draft")
    architecture = _read(config)
    faults = cache_type_faults(architecture, options)
    vocabularies = architecture.vocab_size, target.architecture.vocab_size
    if abs(vocabularies[0] - vocabularies[1]) > VOCABULARY_DIFFERENCE:
        message = f"llama.cpp refuses a draft model of {vocabularies[0]} tokens for a vocabulary of {vocabularies[1]}"
        faults.append(Fault("inference.speculation.draft", message))
    if faults:
        raise Faults(faults)
    file = _converted(architecture, fmt.file_type or PLAIN_FILE_TYPES.get(fmt.name, "F16"))
    placement = _placement(architecture, options, integer(options, "n_gpu_layers", -1), count, kind, file)
    context = context_of(dict(options) | {"n_ctx": target.context.cells * target.context.streams}, None)
    return Laid(architecture, _family(architecture), context, placement, file, "draft")


@remember_by_identity(16)
def _read(config: Mapping[str, object]) -> Architecture:
    return read_beside(config, DRAFT)


def _placement(
    architecture: Architecture, options: Mapping[str, object], layers: int, count: int, kind: DeviceKind, file: Checkpoint
) -> Placement:
    return placement_of(
        len(architecture.decoder.layers),
        count,
        layers,
        cpu_expert_layers(options, architecture),
        kind,
        split=split_of(options),
        caches_on_host=options.get("offload_kqv") is False,
        host_experts=host_experts(options, file.tensors),
    )


def _uneven(architecture: Architecture, context: Context) -> list[str]:
    """A prompt batch that slots don't share evenly, at which graphs of these layers fail an assertion of ggml's."""
    mixers = (mixer for layer in architecture.decoder.layers for mixer in layer.sequence)
    asked = min(context.ubatch_tokens, context.cells * context.streams)
    if asked % context.sequences == 0 or not any(isinstance(one, Recurrent) and one.kind in EVENLY_SHARED for one in mixers):
        return []
    return [f"n_ubatch {asked} is no multiple of n_seq_max {context.sequences}: this release aborts on such a model; change either"]


EVENLY_SHARED = ("kimi_delta", "lightning")


def _placement_notes(placement: Placement, options: Mapping[str, object]) -> list[str]:
    notes = []
    if placement.device_count > 1 and not options.get("tensor_split") and options.get("split_mode", "layer") == "layer":
        notes.append("layers are split evenly; llama.cpp splits by the memory it finds free on each device: set tensor_split")
    if placement.host in placement.layers and options.get("use_mmap", True):
        notes.append("weights that the CPU computes with are counted once; repacked ones stay in the mapped file too (--no-repack)")
    if placement.row_shares:
        notes.append("split_mode row: products spread over devices take memory for a moment that is not counted")
    return notes


def _family(architecture: Architecture) -> Family:
    wraps = architecture.model_type in WRAPPERS and architecture.decoder_type
    found = FAMILIES.get(architecture.decoder_type if wraps else architecture.model_type)
    if found is None and architecture.model_type in UNCONVERTED:
        raise NotModelled(
            f"llama.cpp runs no {architecture.model_type}: its converter makes no GGUF file of it; use another engine"
        )
    if found is None:
        raise NotModelled(f"llama.cpp's graph of {architecture.model_type} is not derived")
    return found


def _checkpoint(architecture: Architecture, scenario: Scenario, fmt: Format) -> Checkpoint:
    if fmt.header is not None and fmt.header.gguf:
        return _of_file(fmt.header)
    return _converted(architecture, _file_type(scenario, fmt))


@remember_by_identity(16)
def _of_file(header: FileHeader) -> Checkpoint:
    return Checkpoint(header.gguf)


@remember_by_identity(64)
def _converted(architecture: Architecture, file_type: str) -> Checkpoint:
    tensors = gguf_tensors(architecture, file_type)
    heads = [mixer.head_dim for layer in architecture.decoder.layers for mixer in layer.sequence if isinstance(mixer, Attention)]
    if _family(architecture).rotary_factors and heads:
        tensors = (*tensors, GgufTensor("rope_freqs.weight", (max(heads) // 2,), GGML_TYPES["F32"]))
    return Checkpoint(tensors)


def _file_type(scenario: Scenario, fmt: Format) -> str:
    if fmt.file_type:
        return fmt.file_type
    if fmt.name in PLAIN_FILE_TYPES:
        return PLAIN_FILE_TYPES[fmt.name]
    message = f"llama.cpp runs GGUF files, not {scenario.weights}; use bf16, fp16 or gguf:Q4_K_M and its like"
    raise Faults([Fault("weights", message)])
