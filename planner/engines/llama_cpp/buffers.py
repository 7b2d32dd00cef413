"""What llama.cpp allocates beside the compute buffer, device by device: weights, key-value caches, states, logits.

Source: llama.cpp ``src/llama-model.cpp`` (``load_tensors``), ``llama-kv-cache.cpp``, ``llama-memory-recurrent.cpp``,
``llama-context.cpp`` (``output_reserve``), 0.5.0-dev; ggml 0.25.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from planner.architecture.layers import Architecture, Attention, LatentAttention, Layer, Recurrent, SequenceMixer
from planner.engines.llama_cpp.context import Context
from planner.engines.llama_cpp.families import Family
from planner.engines.llama_cpp.placement import HOST, Checkpoint, Placement
from planner.engines.llama_cpp.sketch import window_of
from planner.formats import GGML_TYPES, GgufTensor
from planner.memo import remember_by_identity

FP32_BYTES = 4
INPUT_TENSORS = ("token_embd.weight", "position_embd.weight", "token_types.weight", "per_layer_token_embd.weight")
"""Tensors of the input layer, which always stays on the host; beside them, norms of the embeddings."""
OF_FIRST_LAYER = ("per_layer_model_proj", "per_layer_proj")
"""Beginnings of names of tensors that are loaded as the first layer's, though they are for all."""
EXPERTS = "_exps."
NOT_PRODUCTS = ("norm", "conv", "ssm_a", "rope_f", "bias")
"""Parts of names of matrices that are not multiplied with."""


@dataclass(frozen=True, slots=True)
class CacheBytes:
    """The key-value cache of the layers that share its cells, on one device."""

    device: int
    layers: int
    cells: int
    streams: int
    key_bytes: int
    value_bytes: int
    """Of one cell of one layer."""

    @property
    def total_bytes(self) -> int:
        """Of all its layers."""
        return self.layers * self.streams * self.cells * (self.key_bytes + self.value_bytes)


@dataclass(frozen=True, slots=True)
class StateBytes:
    """The recurrent states of equal layers on one device: convolution columns and recurrent values in fp32."""

    device: int
    layers: int
    sequences: int
    conv_values: int
    state_values: int

    @property
    def total_bytes(self) -> int:
        """Of all its layers."""
        return self.layers * self.sequences * FP32_BYTES * (self.conv_values + self.state_values)


@remember_by_identity(256)
def weights_by_device(checkpoint: Checkpoint, placement: Placement) -> tuple[int, ...]:
    """Bytes of the model buffer of each device and, last, of the host.

    A tied head is a second copy of the embeddings where it is not on the host; rotary factors are kept once a device.
    """
    host = placement.host
    sizes = [0] * (host + 1)

    def add(tensor: GgufTensor, device: int) -> None:
        if device != host and placement.row_shares and _is_split(tensor):
            for other, size in enumerate(placement.kind.split_bytes(tensor, placement.row_shares)):
                sizes[other] += size
        else:
            sizes[device] += (placement.kind if device != host else HOST).weight_bytes(tensor)

    is_tied = all(tensor.name != "output.weight" for tensor in checkpoint.tensors)
    for tensor in checkpoint.tensors:
        for device in holders_of(tensor, placement):
            add(tensor, device)
        if is_tied and tensor.name == "token_embd.weight" and placement.output != host:
            add(tensor, placement.output)
    return tuple(sizes)


def holders_of(tensor: GgufTensor, placement: Placement) -> tuple[int, ...]:
    """The devices that load a tensor."""
    if tensor.name.startswith(OF_FIRST_LAYER):
        return (placement.layers[0],)
    if tensor.layer >= 0:
        return ((placement.experts if EXPERTS in tensor.name else placement.layers)[tensor.layer],)
    if tensor.name.startswith("rope_f"):
        return tuple(sorted(set(placement.layers)))
    is_input = tensor.name in INPUT_TENSORS or tensor.name.startswith("token_embd_norm")
    return (placement.host if is_input else placement.output,)


def _is_split(tensor: GgufTensor) -> bool:
    """Whether a split buffer takes it: matrices of plain products (``GGML_OP_MUL_MAT``)."""
    return len(tensor.shape) == 2 and not any(part in tensor.name for part in NOT_PRODUCTS)


def caches(architecture: Architecture, family: Family, context: Context, placement: Placement) -> tuple[CacheBytes, ...]:
    """The key-value caches: one for full attention, one for sliding windows, apart by device and width."""
    counts: dict[tuple[int, int, int, int], int] = {}
    kinds = _cache_kinds(architecture, family, placement, context.type_k, context.type_v, context.flash)
    for (device, window, keys, values), layers in kinds.items():
        key = (device, context.window_cells(window) if window else context.cells, keys, values)
        counts[key] = counts.get(key, 0) + layers
    return tuple(
        CacheBytes(device, layers, cells, context.streams, keys, values) for (device, cells, keys, values), layers in counts.items()
    )


@remember_by_identity(256)
def _cache_kinds(
    architecture: Architecture,
    family: Family,
    placement: Placement,
    type_k: str,
    type_v: str,
    flash: bool,  # noqa: FBT001
) -> dict[tuple[int, int, int, int], int]:
    """How many layers have a cache on a device, of a window, with keys and values of so many bytes a cell."""
    counts: dict[tuple[int, int, int, int], int] = {}

    def count(*key: int) -> None:
        found = (key[0], key[1], key[2], key[3])
        counts[found] = counts.get(found, 0) + 1

    mixers = _placed(architecture.decoder.layers, placement)
    widest = max((mixer.num_kv_heads * mixer.value_head_dim for _, mixer in mixers if isinstance(mixer, Attention)), default=0)
    for device, mixer in mixers:
        if isinstance(mixer, Attention) and mixer.kv == "own":
            window = window_of(mixer) if family.windows else 0
            values = mixer.num_kv_heads * mixer.value_head_dim if flash else widest
            count(device, window, _row(type_k, mixer.num_kv_heads * mixer.head_dim), _row(type_v, values))
        elif isinstance(mixer, LatentAttention):
            count(device, 0, _row(type_k, mixer.kv_lora_rank + mixer.qk_rope_head_dim), 0)
            if mixer.indexer is not None:
                count(device, 0, _row(type_k, mixer.indexer.head_dim), 0)
    return counts


def states(architecture: Architecture, context: Context, placement: Placement) -> tuple[StateBytes, ...]:
    """The recurrent states; the newest column of a convolution is not kept."""
    kinds = _state_kinds(architecture, placement)
    return tuple(StateBytes(device, layers, context.sequences, conv, values) for (device, conv, values), layers in kinds.items())


@remember_by_identity(256)
def _state_kinds(architecture: Architecture, placement: Placement) -> dict[tuple[int, int, int], int]:
    counts: dict[tuple[int, int, int], int] = {}
    for device, mixer in _placed(architecture.decoder.layers, placement):
        if isinstance(mixer, Recurrent):
            key = (device, (mixer.conv_kernel - 1) * mixer.conv_channels if mixer.conv_kernel else 0, mixer.state_numel)
            counts[key] = counts.get(key, 0) + 1
    return counts


def output_bytes(architecture: Architecture, context: Context) -> int:
    """Logits in fp32 of one token a slot, in host memory."""
    return prod((FP32_BYTES, architecture.vocab_size, context.sequences))


def _placed(layers: Sequence[Layer], placement: Placement) -> list[tuple[int, SequenceMixer]]:
    return [
        (placement.cache_device(device), mixer)
        for layer, device in zip(layers, placement.layers, strict=True)
        for mixer in layer.sequence
    ]


def _row(type_name: str, values: int) -> int:
    return GGML_TYPES[type_name].row_bytes(values)
