"""What a serving engine's weights take once loaded: parameters of one rank, rotary tables, the allocator's unsplit tails.

vLLM prints it as "Model loading took", SGLang as "mem usage" of "Load weight end".
"""

from __future__ import annotations

from planner.allocator.options import MIB
from planner.architecture.layers import Architecture, Attention, LatentAttention
from planner.formats import Format
from planner.formats.checkpoint import resolve_format
from planner.memo import remember_by_identity
from planner.sharding import StageWeights

ALIGNMENT_BYTES = 512
LARGE_BYTES = 10 * MIB
SEGMENT_BYTES = 2 * MIB
TAIL_BYTES = 1 * MIB
"""c10/cuda/CUDACachingAllocator.cpp: from 10 MiB on a tensor gets a segment of its own in steps of 2 MiB, and a rest of
at most 1 MiB is not split off: it counts as allocated."""
TABLES_BY_LAYER_TYPE = ("gemma3", "gemma4", "olmo3")
"""Windowed layers turn with a base or scaling of their own (vLLM 0.19 ``models/gemma3.py``, ``models/olmo2.py``)."""
MXFP4_COLUMNS, MXFP4_ROWS = 256, 256
"""triton_kernels' layouts of MXFP4 experts on Hopper: values padded along the input, scales along the output to 32 · 8 warps."""


def allocated_bytes(size_bytes: int) -> int:
    """What the caching allocator counts for one tensor in a segment of its own."""
    size = -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    if size < LARGE_BYTES:
        return size
    segment = -(-size // SEGMENT_BYTES) * SEGMENT_BYTES
    return segment if segment - size <= TAIL_BYTES else size


@remember_by_identity(256)
def loaded_bytes(stage: StageWeights) -> int:
    """Parameters of one rank as the allocator counts them, fused projections as one tensor."""
    return sum(allocated_bytes(size) * times for size, times in stage.tensor_bytes())


@remember_by_identity(256)
def rotary_bytes(architecture: Architecture, dtype_bytes: int) -> int:
    """Cosines and sines of every position up to the model's limit, one table for each kind of them (``rotary_embedding/``)."""
    by_layer_type = architecture.model_type.startswith(TABLES_BY_LAYER_TYPE)
    tables: set[tuple[int, bool]] = set()
    for layer in architecture.decoder.layers:
        for mixer in layer.sequence:
            if isinstance(mixer, Attention):
                tables.add((mixer.rotary_dim, by_layer_type and mixer.window_tokens is not None))
            elif isinstance(mixer, LatentAttention):
                tables.add((mixer.qk_rope_head_dim, False))
    return (architecture.max_context_tokens or 0) * sum(width for width, _ in tables) * dtype_bytes


def mxfp4_padding_bytes(architecture: Architecture, fmt: Format, stage: StageWeights, tensor: int, experts: int, arch: str) -> int:
    """What padding adds to MXFP4 experts on Hopper."""
    if arch != "Hopper" or resolve_format(fmt, architecture).scheme.dtype not in ("mxfp4", "fp4"):
        return 0
    total = 0
    for index in stage.layers:
        for mixer in architecture.decoder.layers[index].channel:
            for weight in mixer.weights:
                if weight.role == "expert":
                    rows, columns = weight.shape[-2], weight.shape[-1]
                    rows, columns = (rows, columns) if experts > 1 else _cut(weight.name, rows, columns, tensor)
                    total += weight.count // experts * _padded(rows, columns)
    return total


def _cut(name: str, rows: int, columns: int, tensor: int) -> tuple[int, int]:
    return (rows, columns // tensor) if "down" in name else (rows // tensor, columns)


def _padded(rows: int, columns: int) -> int:
    wide = -(-columns // MXFP4_COLUMNS) * MXFP4_COLUMNS
    tall = -(-rows // MXFP4_ROWS) * MXFP4_ROWS
    return rows * (wide - columns) // 2 + (tall - rows) * columns // 32
