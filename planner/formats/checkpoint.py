"""All weights of a model under a format: what they take, of what kind, and which stay in 16 bit."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from planner.architecture.counts import layer_indices, layer_weights
from planner.architecture.layers import MixtureOfExperts, Weight
from planner.formats.format import Format, weight_bytes
from planner.formats.patterns import names_layers
from planner.memo import remember_by_identity
from planner.record import record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from planner.architecture.layers import Architecture, Role, Stack
    from planner.formats.gguf_file import GgufTensor
    from planner.formats.header import FileHeader

SHOWN_NAMES = 1000

_GGUF_ROLES: tuple[tuple[str, Role], ...] = (
    ("norm", "norm"),
    (".bias", "bias"),
    ("ffn_gate_inp", "router"),
    ("_exps.", "expert"),
    ("_embd", "embedding"),
    ("token_types", "embedding"),
    ("conv", "conv"),
)


@record
class PlacedWeight:
    """A weight with the path before its name, how often it occurs, and whether the decoder's layers own it."""

    path: str
    weight: Weight
    times: int
    in_decoder: bool


@record
class FormatBytes:
    """What the weights of a model take. ``total_bytes`` = ``payload_bytes`` + ``quantization_state_bytes``.

    ``buffer_bytes`` of the total belong to buffers that the checkpoint keeps beside its parameters.
    ``kept``: the modules a quantised format leaves unquantised, equal layers as one (``model.layers.*.``).
    """

    total_bytes: int
    payload_bytes: int
    quantization_state_bytes: int
    buffer_bytes: int
    by_role: Mapping[Role, int]
    by_dtype: Mapping[str, int]
    kept: tuple[str, ...]
    notes: tuple[str, ...]


class BytesUnknown(ValueError):
    """The bytes can't be told from a config; the message says why and what would tell them."""


@remember_by_identity(256)
def checkpoint_bytes(architecture: Architecture, fmt: Format, *, skip: tuple[str, ...] = ()) -> FormatBytes:
    """The bytes of every weight transformers builds (or llama.cpp's converter writes), tied ones once.

    ``skip``: further modules to leave unquantised. A file's header comes first where it alone decides (GGUF, and
    schemes whose config does not tell). Raises :class:`BytesUnknown` for a format only a header can size.
    """
    if fmt.header is not None and (fmt.file_type or fmt.unknown):
        return _header_bytes(fmt.header)
    if fmt.unknown:
        raise BytesUnknown(f"{fmt.name}: {fmt.unknown}")
    if fmt.file_type:
        return _gguf_bytes(architecture, fmt)
    resolved = replace(resolve_format(fmt, architecture), keeps=(*fmt.keeps, *skip))
    return _sum(resolved, placed_weights(architecture, unfold=names_single_layers(resolved)))


def known_bytes(architecture: Architecture, fmt: Format) -> int | None:
    """All bytes of the checkpoint, None where they can't be told."""
    try:
        return checkpoint_bytes(architecture, fmt).total_bytes
    except BytesUnknown:
        return None


KEEP_DTYPE = ("nf4", "fp4", "int8", "hqq")
"""Formats whose quantisers leave a model's dtype as it is (transformers 5, ``quantizers/base.py`` ``update_dtype``)."""


def resolve_format(fmt: Format, architecture: Architecture) -> Format:
    """``fmt`` with what depends on the model filled in: the dtype of what it leaves alone, roles, notes that apply.

    Beside quantised weights nothing is held in fp32 for want of a dtype in the config (quantizers of transformers,
    ``update_dtype``), but for bitsandbytes', whose quantisers take the checkpoint's dtype.
    """
    has_experts = any(isinstance(mixer, MixtureOfExperts) for layer in architecture.decoder.layers for mixer in layer.channel)
    declared = architecture.dtype != "fp32" or any(key.endswith("dtype") for key in architecture.sources)
    declared = declared or fmt.name.startswith(KEEP_DTYPE)
    resolved = fmt.for_model(has_experts=has_experts, dtype=architecture.dtype if declared else "bf16")
    return resolved if has_experts else replace(resolved, notes=())


def placed_weights(architecture: Architecture, *, unfold: bool = False) -> Iterator[PlacedWeight]:
    """Every weight with its place; ``unfold``: each layer by itself (``model.layers.7.``), else equal ones as one."""
    final = architecture.final_norm.weights if architecture.final_norm else ()
    for weight in (*architecture.embeddings, *architecture.head, *final):
        yield PlacedWeight("", weight, 1, in_decoder=False)
    for stack in (architecture.decoder, *architecture.towers):
        yield from _stack_weights(stack, unfold=unfold, in_decoder=stack is architecture.decoder)


def _stack_weights(stack: Stack, *, unfold: bool, in_decoder: bool) -> Iterator[PlacedWeight]:
    for layer, indices in layer_indices(stack):
        paths = [f"{stack.name}.{index}." for index in indices] if unfold else [f"{stack.name}.*."]
        times = 1 if unfold else len(indices)
        for path in paths:
            for weight in layer_weights(layer):
                yield PlacedWeight(path, weight, times, in_decoder)
    for weight in stack.weights:
        yield PlacedWeight("", weight, 1, in_decoder)


def names_single_layers(fmt: Format) -> bool:
    """Whether a format treats layers apart by their number, so that equal layers can't be taken as one."""
    patterns = (*fmt.keeps, *fmt.only, *(pattern for override in fmt.overrides for pattern in override.patterns))
    return names_layers(patterns)


def _sum(fmt: Format, places: Iterator[PlacedWeight]) -> FormatBytes:
    payload = state = buffers = 0
    by_role: Counter[Role] = Counter()
    by_dtype: Counter[str] = Counter()
    kept: dict[str, None] = {}
    for place in places:
        size = weight_bytes(fmt, place.weight, place.path, in_decoder=place.in_decoder)
        total = size.total_bytes * place.times
        payload += size.payload_bytes * place.times
        state += size.overhead_bytes * place.times
        buffers += total if place.weight.is_buffer else 0
        by_role[place.weight.role] += total
        by_dtype[size.dtype] += total
        if fmt.quantizes and len(size.tensors) == 1 and len(place.weight.shape) > 1 and len(kept) < SHOWN_NAMES:
            kept[(place.path + place.weight.name).removesuffix(".weight")] = None
    return FormatBytes(payload + state, payload, state, buffers, dict(by_role), dict(by_dtype), tuple(kept), fmt.notes)


def _header_bytes(header: FileHeader) -> FormatBytes:
    """What the file itself says. Its scales and codebooks are tensors like others, so all of it is payload."""
    by_role: Counter[Role] = Counter()
    for tensor in header.gguf:
        by_role[_gguf_role(tensor)] += tensor.size_bytes
    total = header.total_bytes
    return FormatBytes(total, total, 0, 0, dict(by_role), dict(header.bytes_by_dtype), (), ("sizes are from the file's header",))


def _gguf_bytes(architecture: Architecture, fmt: Format) -> FormatBytes:
    """A GGUF file holds scales inside its blocks: what they add to the values counts as quantisation state."""
    from planner.formats.gguf_file import gguf_tensors  # noqa: PLC0415  loaded for those who ask

    try:
        tensors = gguf_tensors(architecture, fmt.file_type)
    except ValueError as error:
        raise BytesUnknown(str(error)) from error
    by_role: Counter[Role] = Counter()
    by_dtype: Counter[str] = Counter()
    for tensor in tensors:
        size_bytes = tensor.size_bytes
        by_role[_gguf_role(tensor)] += size_bytes
        by_dtype[tensor.kind.name] += size_bytes
    total = sum(by_dtype.values())
    kept = tuple(tensor.name for tensor in tensors if not tensor.kind.is_quantized and len(tensor.shape) > 1)
    notes = ("vision and audio towers are a file of their own (mmproj) and not counted",) if architecture.towers else ()
    return FormatBytes(total, total, 0, 0, dict(by_role), dict(by_dtype), kept[:SHOWN_NAMES], notes)


def _gguf_role(tensor: GgufTensor) -> Role:
    if tensor.name == "output.weight":
        return "head"
    return next((role for part, role in _GGUF_ROLES if part in tensor.name), "linear" if len(tensor.shape) > 1 else "other")
