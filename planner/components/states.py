"""What stays on the device for the whole run: weights and buffers."""

from __future__ import annotations

from math import prod

from planner.architecture.counts import iter_weights, layer_groups
from planner.architecture.implementation import implementation_of
from planner.architecture.layers import Architecture, Attention
from planner.components.tape import Level, Size, rounded
from planner.formats import Format, placed_weights, weight_bytes
from planner.formats.checkpoint import names_single_layers
from planner.formats.storage import Stored
from planner.memo import remember_by_identity

FP32_BYTES = 4
POSITIONS = "computed positions"
XGLM_OFFSET = 2
SHARED_CODES = ("nested_quant_map",)
"""A file holds it for every weight, the device once (bitsandbytes ``functional.py``, ``name2qmap``)."""


@remember_by_identity(64)
def plain_weights(architecture: Architecture, dtype_bytes: int) -> Level:
    """Weights in one 16- or 32-bit dtype, with the allocator's rounding and the rotary frequencies as workspace."""
    level = Level()
    payload = held = tensors = wide = 0
    for _, weight, times in iter_weights(architecture):
        if not weight.is_buffer:
            count = times * weight.count
            kept_wide = weight.dtype == "fp32" and dtype_bytes != FP32_BYTES
            each = prod(weight.shape) * (FP32_BYTES if kept_wide else dtype_bytes)
            tensors += count
            payload += count * each
            held += count * rounded(each)
            wide += count * prod(weight.shape) * kept_wide
    values = {"parameters": (payload - wide * FP32_BYTES) // dtype_bytes + wide, "bytes": dtype_bytes}
    formula = "parameters · bytes"
    if wide:
        values |= {"in_fp32": wide, "more_bytes": FP32_BYTES - dtype_bytes}
        formula = "parameters · bytes + in_fp32 · more_bytes"
    level.change("weights", "weights", Size.stated(payload, formula, **values), 1)
    if held > payload:
        size = Size.stated(held - payload, "each tensor rounded up to 512 bytes", tensors=tensors)
        level.change("workspace", "rounding of the weights", size, 1)
    _rotary_buffers(level, architecture)
    _hold_positions(level, architecture, dtype_bytes)
    _listed_buffers(level, architecture, dtype_bytes)
    return level


@remember_by_identity(64)
def stored_weights(architecture: Architecture, fmt: Format, dtype_bytes: int) -> Level:
    """Weights in a quantised format (:func:`planner.formats.resolve_format`): values, what reads them, and rounding."""
    level = Level()
    totals = {"weights": 0, "quantization_state": 0}
    tensors = rounding = 0
    shared: set[Stored] = set()
    for place in placed_weights(architecture, unfold=names_single_layers(fmt)):
        count = place.times * place.weight.count
        if place.weight.is_buffer:
            continue
        for stored in weight_bytes(fmt, place.weight, place.path, in_decoder=place.in_decoder).tensors:
            if stored.name in SHARED_CODES:
                shared.add(stored)
                continue
            totals["weights" if stored.is_payload else "quantization_state"] += count * stored.size_bytes
            rounding += count * (rounded(stored.size_bytes) - stored.size_bytes)
            tensors += count
    for stored in shared:
        totals["quantization_state"] += stored.size_bytes
        rounding += rounded(stored.size_bytes) - stored.size_bytes
    for component, total in totals.items():
        if total:
            size = Size.stated(total, f"Σ of every weight as {fmt.label} stores it", bytes=total)
            level.change(component, component.replace("_", " "), size, 1)
    if rounding:
        size = Size.stated(rounding, "each tensor rounded up to 512 bytes", tensors=tensors)
        level.change("workspace", "rounding of the weights", size, 1)
    _rotary_buffers(level, architecture)
    _hold_positions(level, architecture, dtype_bytes)
    _listed_buffers(level, architecture, dtype_bytes)
    return level


def _rotary_buffers(level: Level, architecture: Architecture) -> None:
    """``inv_freq`` and ``original_inv_freq``: fp32, half the rotated width each.

    Layers of GPT-J and CodeGen have a table of positions each. GPTBigCode's model still holds the causal mask of all positions
    that no layer reads; GPT-Neo's layers have one each.
    """
    mixers = [mixer for layer, _ in layer_groups(architecture.decoder) for mixer in layer.sequence]
    rotary_dim = max((mixer.rotary_dim for mixer in mixers if isinstance(mixer, Attention)), default=0)
    code = implementation_of(architecture)
    if code is not None and code.rotary in ("pairs_inline", "pairs_in_fp32") and architecture.max_context_tokens:
        sinusoids = Size(positions=architecture.max_context_tokens, rotary_dim=rotary_dim, fp32_bytes=4)
        level.change("workspace", "sinusoids of each layer", sinusoids, len(architecture.decoder.layers))
    elif code is not None and code.triangles != "none" and architecture.max_context_tokens:
        triangle = Size(rows=architecture.max_context_tokens, columns=architecture.max_context_tokens, bool_bytes=1)
        count = len(architecture.decoder.layers) if code.triangles == "layers" else 1
        level.change("workspace", "causal mask of all positions", triangle, count)
    elif rotary_dim:
        level.change("workspace", "rotary frequencies", Size(half_rotary_dim=rotary_dim // 2, fp32_bytes=4), 2)


def _hold_positions(level: Level, architecture: Architecture, dtype_bytes: int) -> None:
    code = implementation_of(architecture)
    table = _position_table(architecture, FP32_BYTES if code is not None and code.narrows_positions else dtype_bytes)
    if table is not None:
        level.change("workspace", POSITIONS, table, 1)


def _position_table(architecture: Architecture, dtype_bytes: int) -> Size | None:
    """Of the computed positions that are a buffer of the model: XGLM's with two rows more, CTRL's in fp32 as it is loaded."""
    code, tokens = implementation_of(architecture), architecture.max_context_tokens
    if code is None or not tokens or not (code.computes_positions or code.narrows_positions):
        return None
    rows = tokens if code.narrows_positions else tokens + XGLM_OFFSET
    return Size(positions=rows, hidden_size=architecture.hidden_size, bytes=dtype_bytes)


def narrow_positions(level: Level, architecture: Architecture, dtype_bytes: int) -> None:
    """What the first forward makes of a table of positions that was loaded in fp32, where the family casts it."""
    code = implementation_of(architecture)
    loaded, cast = _position_table(architecture, FP32_BYTES), _position_table(architecture, dtype_bytes)
    if code is not None and code.narrows_positions and loaded is not None and cast is not None:
        level.change("workspace", POSITIONS, loaded, -1)
        level.change("workspace", POSITIONS, cast, 1)


def _listed_buffers(level: Level, architecture: Architecture, dtype_bytes: int) -> None:
    """Buffers the architecture lists: balancing biases of routers, decay tables of lightning attention."""
    for _, weight, times in iter_weights(architecture):
        if weight.is_buffer:
            factors = {f"dim{index}": extent for index, extent in enumerate(weight.shape)}
            size = Size(**factors, bytes=FP32_BYTES if weight.dtype == "fp32" else dtype_bytes)
            level.change("workspace", f"buffer {weight.name.rpartition('.')[2]}", size, times * weight.count)
