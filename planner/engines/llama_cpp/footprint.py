"""A scenario's answer under llama.cpp: every buffer of every device and of the host, with the terms that make it up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from planner.architecture.layers import Architecture, Attention, LatentAttention
from planner.engines.llama_cpp.buffers import CacheBytes, StateBytes, caches, output_bytes, states, weights_by_device
from planner.engines.llama_cpp.compute import compute_buffers
from planner.engines.llama_cpp.context import Context, context_of
from planner.engines.llama_cpp.families import FAMILIES, Family
from planner.engines.llama_cpp.placement import CUDA, Checkpoint, DeviceKind, Placement, placement_of
from planner.faults import Fault, Faults
from planner.footprint import Term
from planner.formats import GGML_TYPES, FileHeader, Format, gguf_tensors
from planner.memo import remember_by_identity
from planner.modelled import NotModelled
from planner.scenario import Inference, Scenario

VERSION = "llama.cpp 0.5.0-dev (0c1e57098), ggml 0.25.3"
"""The release whose graphs and allocator are replayed."""
OPTIONS = "inference.engine_options."
MOST_SEQUENCES = 256
"""``LLAMA_MAX_SEQ``."""
PLAIN_FILE_TYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
CACHE_NAMES = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "auto": "f16"}
COMPONENTS = ("weights", "kv_cache", "recurrent_state", "workspace", "logits")
LOADED = ("weights",)
PHASES = {"load": LOADED, "decode": COMPONENTS}
"""llama.cpp reserves every buffer before the first token: after loading nothing grows."""


@dataclass(frozen=True, slots=True)
class Buffers:
    """What one device, or the host, holds. Model buffers are ``weights``, compute buffers ``workspace``, outputs ``logits``."""

    weights: int = 0
    kv_cache: int = 0
    recurrent_state: int = 0
    workspace: int = 0
    logits: int = 0

    def components(self, phase: str = "decode") -> dict[str, int]:
        """Bytes by component in a phase: ``load`` or ``decode``."""
        return {name: size for name in PHASES[phase] if (size := int(getattr(self, name)))}

    @property
    def total_bytes(self) -> int:
        """All buffers together."""
        return sum(self.components().values())


@dataclass(frozen=True, slots=True)
class LlamaCppFootprint:
    """Buffers of each device and of the host; ``terms`` name the holder they belong to among their values."""

    devices: tuple[Buffers, ...]
    host: Buffers
    context: Context
    placement: Placement
    terms: tuple[Term, ...]
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
    notes: list[str] = []
    family = _family(architecture)
    options = _options(scenario, architecture, notes)
    _refuse(scenario, architecture, options)
    count = scenario.hardware.gpus * scenario.hardware.nodes if device_count is None else device_count
    file = checkpoint or _checkpoint(architecture, scenario, fmt)
    context = context_of(options, architecture.max_context_tokens)
    placement = placement_of(
        len(architecture.decoder.layers), count, _gpu_layers(scenario, architecture), _integer(options, "n_cpu_moe", 0), kind
    )
    if architecture.max_context_tokens and context.cells > architecture.max_context_tokens:
        notes.append(f"{context.cells} cells a sequence exceed the model's context limit of {architecture.max_context_tokens}")
    return _assembled(architecture, family, context, placement, file, tuple(notes))


def _assembled(
    architecture: Architecture, family: Family, context: Context, placement: Placement, file: Checkpoint, notes: tuple[str, ...]
) -> LlamaCppFootprint:
    weights = weights_by_device(file, placement)
    kept, states_kept = caches(architecture, family, context, placement), states(architecture, context, placement)
    compute = compute_buffers(architecture, family, context, placement, file if placement.offloads else None)
    logits = output_bytes(architecture, context)
    holders = [
        Buffers(
            weights=weights[device],
            kv_cache=sum(cache.total_bytes for cache in kept if cache.device == device),
            recurrent_state=sum(state.total_bytes for state in states_kept if state.device == device),
            workspace=compute[device],
            logits=logits if device == placement.host else 0,
        )
        for device in range(placement.host + 1)
    ]
    terms = [
        *_weight_terms(weights, file, placement),
        *(_cache_term(cache, context, placement) for cache in kept),
        *(_state_term(state, placement) for state in states_kept),
        *(_compute_term(size, device, context, placement, family) for device, size in enumerate(compute) if size),
        _logits_term(architecture, context, logits),
    ]
    return LlamaCppFootprint(tuple(holders[:-1]), holders[-1], context, placement, tuple(terms), notes)


def _family(architecture: Architecture) -> Family:
    found = FAMILIES.get(architecture.model_type)
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
    return Checkpoint(gguf_tensors(architecture, file_type))


def _file_type(scenario: Scenario, fmt: Format) -> str:
    if fmt.file_type:
        return fmt.file_type
    if fmt.name in PLAIN_FILE_TYPES:
        return PLAIN_FILE_TYPES[fmt.name]
    message = f"llama.cpp runs GGUF files, not {scenario.weights}; use bf16, fp16 or gguf:Q4_K_M and its like"
    raise Faults([Fault("weights", message)])


def _options(scenario: Scenario, architecture: Architecture, notes: list[str]) -> dict[str, object]:
    """The options set, and for the rest what the workload asks for, in words among the notes."""
    ask = scenario.inference
    options: dict[str, object] = dict(ask.engine_options)
    cache = CACHE_NAMES.get(ask.kv_cache, ask.kv_cache)
    sequences = _integer(options, "n_seq_max", ask.batch)
    defaults: dict[str, object] = {
        "n_seq_max": ask.batch,
        "n_ctx": _context_tokens(ask, architecture, sequences),
        "flash_attn": ask.attention != "eager",
        "type_k": cache,
        "type_v": cache,
        "n_outputs_max": sequences,
    }
    taken = {name: value for name, value in defaults.items() if name not in options}
    if "n_ctx" in taken:
        notes.append(f"inference.engine_options.n_ctx: {taken['n_ctx']}, the prompt and new tokens of {sequences} slots")
    if "n_outputs_max" in taken:
        notes.append(f"inference.engine_options.n_outputs_max: {sequences}, one token a slot, as llama-server sets it")
    return taken | options


def _context_tokens(ask: Inference, architecture: Architecture, sequences: int) -> int:
    each = ask.max_model_len or (ask.prompt_tokens or 0) + (ask.new_tokens or 0)
    return (each or architecture.max_context_tokens or 0) * sequences


def _gpu_layers(scenario: Scenario, architecture: Architecture) -> int:
    options, share = scenario.inference.engine_options, scenario.offload.weights
    if "n_gpu_layers" in options or not share:
        return _integer(options, "n_gpu_layers", -1)
    return round((1 - share) * (len(architecture.decoder.layers) + 1))


def _refuse(scenario: Scenario, architecture: Architecture, options: Mapping[str, object]) -> None:
    """Raise what llama.cpp itself refuses (``llama_init_from_model``), all at once."""
    faults = _cache_type_faults(architecture, options)
    if _integer(options, "n_seq_max", 1) > MOST_SEQUENCES:
        faults.append(Fault(f"{OPTIONS}n_seq_max", f"llama.cpp serves at most {MOST_SEQUENCES} sequences"))
    faults.extend(
        Fault(f"parallel.{dimension}", "llama.cpp splits a model by layers over its devices; use 1")
        for dimension in ("tensor", "expert", "data", "context")
        if getattr(scenario.parallel, dimension) != 1
    )
    if faults:
        raise Faults(faults)


def _cache_type_faults(architecture: Architecture, options: Mapping[str, object]) -> list[Fault]:
    flash = bool(options["flash_attn"])
    mixers = [mixer for layer in architecture.decoder.layers for mixer in layer.sequence]
    is_latent = any(isinstance(mixer, LatentAttention) for mixer in mixers)
    faults: list[Fault] = []
    for name, width in (("type_k", "head_dim"), ("type_v", "value_head_dim")):
        kind = GGML_TYPES.get(str(options[name]).upper())
        if kind is None:
            faults.append(Fault("inference.kv_cache", f"llama.cpp has no cache type {options[name]}; use f16, q8_0 or q4_0"))
            continue
        widths = {getattr(mixer, width) for mixer in mixers if isinstance(mixer, Attention)}
        wrong = [found for found in sorted(widths) if found % kind.block_values]
        if wrong and flash:
            message = f"blocks of {kind.block_values} values don't divide a head of {wrong[0]}; use f16"
            faults.append(Fault(f"{OPTIONS}{name}", message))
        if kind.is_quantized and not flash and name == ("type_k" if is_latent else "type_v"):
            faults.append(Fault(f"{OPTIONS}{name}", "a quantised cache of values needs flash_attn: true"))
    return faults


def _holder(device: int, placement: Placement) -> str:
    return "host" if device == placement.host else f"device {device}"


def _weight_terms(weights: tuple[int, ...], file: Checkpoint, placement: Placement) -> list[Term]:
    because = f"{VERSION}: -ngl counts the output layer; embeddings stay on the host, a tied head is copied to its device"
    formula = "Σ tensors: bytes, rounded up to the buffer's alignment"
    return [
        Term("weights", formula, {"holder": _holder(device, placement), "tensors": len(file.tensors)}, size, "exact", because)
        for device, size in enumerate(weights)
        if size
    ]


def _cache_term(cache: CacheBytes, context: Context, placement: Placement) -> Term:
    values: dict[str, int | float | str] = {
        "holder": _holder(cache.device, placement), "layers": cache.layers, "streams": cache.streams, "cells": cache.cells,
        "key_bytes": cache.key_bytes, "value_bytes": cache.value_bytes, "type_k": context.type_k, "type_v": context.type_v,
    }  # fmt: skip
    formula = "layers · streams · cells · (key_bytes + value_bytes)"
    because = f"{VERSION} llama-kv-cache.cpp: contexts are padded to 256 cells"
    return Term("kv_cache", formula, values, cache.total_bytes, "derived", because, "decode")


def _state_term(state: StateBytes, placement: Placement) -> Term:
    values: dict[str, int | float | str] = {
        "holder": _holder(state.device, placement), "layers": state.layers, "sequences": state.sequences, "fp32_bytes": 4,
        "conv_values": state.conv_values, "state_values": state.state_values,
    }  # fmt: skip
    formula = "layers · sequences · fp32_bytes · (conv_values + state_values)"
    return Term("recurrent_state", formula, values, state.total_bytes, "derived", f"{VERSION} llama-memory-recurrent.cpp", "decode")


def _compute_term(size: int, device: int, context: Context, placement: Placement, family: Family) -> Term:
    values: dict[str, int | float | str] = {
        "holder": _holder(device, placement), "tokens": context.tokens, "outputs": context.outputs, "cells": context.cells,
        "streams": context.streams, "flash_attn": str(context.flash).lower(),
    }  # fmt: skip
    formula = "highest address of the graph reserved for tokens against full cells"
    because = f"{VERSION} src/models/{family.file}, ggml-alloc.c: a best-fit free list replayed in node order"
    return Term("workspace", formula, values, size, "derived", because, "decode")


def _logits_term(architecture: Architecture, context: Context, size: int) -> Term:
    values: dict[str, int | float | str] = {
        "holder": "host", "vocab_size": architecture.vocab_size, "sequences": context.sequences, "fp32_bytes": 4,
    }  # fmt: skip
    return Term("logits", "vocab_size · sequences · fp32_bytes", values, size, "derived", f"{VERSION} output_reserve", "decode")


def _integer(options: Mapping[str, object], name: str, default: int) -> int:
    value = options.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else default
