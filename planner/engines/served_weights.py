"""What a server loads beside the checkpoint, and in which dtype the model runs: adapters, drafts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from planner.architecture.counts import parameter_count as counted_parameters
from planner.architecture.layers import Architecture, LatentAttention, SequenceMixer
from planner.engines.eagle import head_mixers, head_parameters
from planner.faults import Fault, Faults
from planner.formats import Format, resolve_format, weight_bytes
from planner.formats.storage import DTYPE_BITS
from planner.memo import remember_by_identity
from planner.scenario import Scenario
from planner.sharding import Split, rank_weight

parameter_count = remember_by_identity(64)(counted_parameters)


@remember_by_identity(64)
def running(architecture: Architecture) -> Architecture:
    """The model as it runs: what its config keeps in fp32 runs in bf16 unless fp32 is asked for (``_resolve_auto_dtype``)."""
    return replace(architecture, dtype="bf16") if architecture.dtype == "fp32" else architecture


def value_bytes(architecture: Architecture, fmt: Format) -> int:
    """Bytes of an activation: of the plain format, else the model's own dtype; what is stored in fp32 runs in 16 bit."""
    name = fmt.name if fmt.name in ("bf16", "fp16", "fp32") else architecture.dtype
    bits = DTYPE_BITS.get(name, 16)
    return 4 if fmt.name == "fp32" else min(2, max(2, bits // 8))


def with_declared_cache(scenario: Scenario, fmt: Format, follows: Mapping[str, tuple[str, ...]]) -> tuple[Scenario, list[str]]:
    """The scenario with the cache type that the checkpoint declares, where none is asked for, and in words that it is taken.

    ``follows``: the types that the engine takes from a config, by the beginning of its format's name.
    """
    kinds = next((kinds for start, kinds in follows.items() if fmt.name.startswith(start)), ())
    if scenario.inference.kv_cache != "auto" or fmt.kv_cache not in kinds:
        return scenario, []
    asked = replace(scenario, inference=replace(scenario.inference, kv_cache=fmt.kv_cache))
    return asked, [f"inference.kv_cache: {fmt.kv_cache}, as the checkpoint's config asks; bf16 keeps it in 16 bit"]


def adapters_bytes(architecture: Architecture, scenario: Scenario, layers: range, split: Split, *, experts: bool = False) -> int:
    """Slots for low-rank adapters: rank · (in + out) 16-bit values for every linear layer of one rank, whether used or not.

    vLLM ``lora/layers``: of A and B the one that reads or makes what the ranks cut is cut like it, the other is whole.
    ``experts``: routed ones have slots each (``fused_moe.py``).
    """
    asked, roles = scenario.inference.adapters, ("linear", "expert") if experts else ("linear",)
    total = 0
    for index in layers if asked.count else ():
        layer = architecture.decoder.layers[index]
        for mixer in (*layer.sequence, *layer.channel):
            for weight in mixer.weights:
                if weight.role in roles and len(weight.shape) == 2:
                    held = rank_weight(weight, mixer, split)
                    total += 2 * asked.rank * held.count * sum(held.shape)
    return total * asked.count


@remember_by_identity(64)
def absorbed_bytes(architecture: Architecture, fmt: Format, layers: range, tensor: int, *, contiguous: bool) -> int:
    """Copies of latent attention's up projection on one rank, which decoding multiplies into queries and outputs.

    vLLM takes views of a 16-bit projection and turns a quantised one back into 16 bit (``MLAAttention``
    ``process_weights_after_loading``). ``contiguous``: SGLang copies it in any case, as stored where that is fp8
    (``deepseek_weight_loader.py`` ``post_load_weights``).
    """
    resolved = resolve_format(fmt, architecture)
    total = 0
    for index in layers:
        for mixer in architecture.decoder.layers[index].sequence:
            if not isinstance(mixer, LatentAttention):
                continue
            weight = next((found for found in mixer.weights if found.name.endswith("kv_b_proj.weight")), None)
            if weight is None:
                continue
            values = weight.shape[0] * weight.shape[1]
            stored = weight_bytes(resolved, weight, f"{architecture.decoder.name}.{index}.").total_bytes
            if contiguous:
                total += values // tensor * (1 if resolved.scheme.dtype.startswith("fp8") and stored < 2 * values else 2)
            elif stored < 2 * values:
                total += values // tensor * 2
    return total


def draft_bytes(
    architecture: Architecture, scenario: Scenario, draft: Architecture | None, fmt: Format, dtype_bytes: int, tensor: int
) -> tuple[int, str]:
    """Weights of what proposes tokens, on one rank, and in words where they come from."""
    ask = scenario.inference.speculation
    if ask.method in ("none", "ngram"):
        return 0, ask.method
    if ask.method == "mtp":
        if not architecture.unbuilt:
            raise Faults([Fault("inference.speculation.method", "the model has no multi-token-prediction modules; use ngram")])
        return _prediction_bytes(architecture, fmt, tensor), "the checkpoint's multi-token-prediction modules, in its format"
    if draft is not None and ask.method == "eagle":
        held = head_parameters(ask.draft or {}, draft, architecture, tensor)
        return held * dtype_bytes, f"an EAGLE head of {held} parameters on each rank, which reads the model's embedding"
    if draft is not None:
        return parameter_count(draft) * dtype_bytes // tensor, f"a draft model of {parameter_count(draft)} parameters"
    parameters = ask.draft_parameters
    if parameters is None:
        raise Faults([Fault("inference.speculation.draft_parameters", f"method {ask.method} needs the draft's size")])
    cached = "its cache that of one layer like the model's" if ask.method == "eagle" else "its cache not counted"
    return parameters * dtype_bytes // tensor, f"a draft of {parameters} parameters, {cached}"


@remember_by_identity(64)
def _prediction_bytes(architecture: Architecture, fmt: Format, tensor: int) -> int:
    """Multi-token-prediction modules on one rank: their blocks cut like the model's, what joins them copied."""
    resolved = resolve_format(fmt, architecture)
    total = 0
    for stack in architecture.unbuilt:
        total += sum(weight_bytes(resolved, weight, in_decoder=False).total_bytes for weight in stack.weights)
        for layer in stack.layers:
            path = f"{stack.name}.0."
            mixed = (weight for mixer in (*layer.sequence, *layer.channel) for weight in mixer.weights)
            total += sum(weight_bytes(resolved, weight, path).total_bytes for weight in mixed) // tensor
            total += sum(weight_bytes(resolved, weight, path).total_bytes for norm in layer.norms for weight in norm.weights)
    return total


def proposing_mixers(architecture: Architecture, scenario: Scenario, draft: Architecture | None) -> tuple[SequenceMixer, ...]:
    """The layers of what proposes tokens that keep a cache of their own."""
    method = scenario.inference.speculation.method
    if method == "eagle":
        return head_mixers(draft, architecture)
    stacks = architecture.unbuilt if method == "mtp" else (draft.decoder,) if draft is not None and method == "draft" else ()
    return tuple(mixer for stack in stacks for layer in stack.layers for mixer in layer.sequence)


def has_latent(architecture: Architecture) -> bool:
    """Whether any layer caches compressed latents."""
    return any(isinstance(mixer, LatentAttention) for layer in architecture.decoder.layers for mixer in layer.sequence)
