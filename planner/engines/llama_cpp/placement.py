"""Which device holds which layer: ``-ngl``, ``--tensor-split``, ``--split-mode``, ``--n-cpu-moe``, ``--no-kv-offload``.

Source: llama.cpp ``src/llama-model.cpp`` (``load_tensors``), ``src/llama-context.cpp``, 0.5.0-dev; ``ggml-cuda.cu`` (0.25.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from planner.engines.llama_cpp.context import padded
from planner.formats import GgufTensor


@dataclass(frozen=True, slots=True)
class DeviceKind:
    """A backend's habits: addresses are multiples of ``alignment_bytes``, rows of quantised weights of ``row_values``.

    ``offloads``: it computes large batches with the host's weights. ``copies_cache``: its fused attention works on an f16
    copy of caches of other types. ``split_rows``: matrices spread by rows are cut at multiples of so many.
    """

    name: str
    alignment_bytes: int
    row_values: int = 1
    offloads: bool = False
    copies_cache: bool = False
    split_rows: int = 1

    def weight_bytes(self, tensor: GgufTensor) -> int:
        """A weight in this backend's model buffer: the last row of a quantised matrix is padded."""
        size = tensor.size_bytes
        missing = -tensor.shape[-1] % self.row_values if tensor.kind.is_quantized else 0
        if missing:
            size += tensor.kind.row_bytes(padded(missing, tensor.kind.block_values))
        return padded(size, self.alignment_bytes)

    def split_bytes(self, tensor: GgufTensor, shares: Sequence[Fraction]) -> list[int]:
        """A matrix spread by rows over devices: bytes on each (``ggml_backend_cuda_split_buffer_type_get_alloc_size``)."""
        rows, width, low, sizes = tensor.shape[0], tensor.shape[-1], 0, []
        for index, share in enumerate(accumulated(shares)):
            high = rows if index == len(shares) - 1 else int(rows * share)
            high -= 0 if high == rows else high % self.split_rows
            size = (high - low) * tensor.kind.row_bytes(width)
            if high > low and width % self.row_values:
                size += tensor.kind.row_bytes(padded(-width % self.row_values, tensor.kind.block_values))
            sizes.append(padded(size, self.alignment_bytes))
            low = high
        return sizes


HOST = DeviceKind("CPU", 32)
CUDA = DeviceKind("CUDA", 128, 512, offloads=True, copies_cache=True, split_rows=128)
"""``ggml-cuda.cu``: ``MATRIX_ROW_PADDING`` 512, ``ggml_cuda_flash_attn_ext_get_alloc_size``, ``get_mmq_y_host`` since Volta."""
LOOPBACK = DeviceKind("RPC", 32)
"""A remote device that is itself a CPU."""


@dataclass(frozen=True, eq=False, slots=True)
class Checkpoint:
    """The tensors of a GGUF file."""

    tensors: tuple[GgufTensor, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """Which device holds what: devices of one kind, numbered from 0, the host after the last.

    ``layers``: the device of each layer; ``experts``: that of its routed experts; ``output``: of final norm and head.
    ``pipelined``: several devices hold the whole model between them and work on several batches at a time.
    ``row_shares``: shares of every matrix on each device where matrices are spread by rows. ``caches_on_host``: caches and
    recurrent states stay in host memory.
    """

    layers: tuple[int, ...]
    experts: tuple[int, ...]
    output: int
    device_count: int
    kind: DeviceKind = CUDA
    pipelined: bool = False
    row_shares: tuple[Fraction, ...] = ()
    caches_on_host: bool = False

    @property
    def host(self) -> int:
        """The number of the host."""
        return self.device_count

    @property
    def alignments(self) -> tuple[int, ...]:
        """Of each device's buffers, the host's last."""
        return (self.kind.alignment_bytes,) * self.device_count + (HOST.alignment_bytes,)

    @property
    def offloads(self) -> bool:
        """Whether a device computes with weights of the host."""
        everything = (*self.layers, *self.experts, self.output)
        return self.kind.offloads and self.device_count > 0 and self.host in everything

    def cache_device(self, device: int) -> int:
        """Where the caches of a layer on ``device`` are."""
        return self.host if self.caches_on_host else device


@dataclass(frozen=True, slots=True)
class Split:
    """How a model is spread over devices: ``mode`` none, layer or row; ``shares`` (empty: even) in device order."""

    mode: str = "layer"
    shares: tuple[Fraction, ...] = ()
    main: int = 0

    def over(self, device_count: int) -> tuple[Fraction, ...]:
        """The share of each device; they add up to one. With one device used alone it has all."""
        if self.mode == "none":
            return tuple(Fraction(index == self.main) for index in range(device_count))
        given = [*self.shares, *[Fraction(0)] * device_count][:device_count]
        total = sum(given)
        return tuple(share / total for share in given) if total else tuple(Fraction(1, device_count) for _ in range(device_count))


EVEN = Split()


def accumulated(shares: Sequence[Fraction]) -> list[Fraction]:
    """Where each device's part ends."""
    ends, end = [], Fraction(0)
    for share in shares:
        end += share
        ends.append(end)
    return ends


@lru_cache(256)
def placement_of(
    layer_count: int,
    device_count: int,
    gpu_layers: int = -1,
    cpu_expert_layers: int = 0,
    kind: DeviceKind = CUDA,
    *,
    host_experts: frozenset[int] = frozenset(),
    split: Split = EVEN,
    caches_on_host: bool = False,
) -> Placement:
    """The last ``gpu_layers`` layers (the output counted as one; −1: all) on the devices, in runs as long as their shares.

    ``cpu_expert_layers``: how many first layers keep their routed experts on the host; ``host_experts``: which others do.
    """
    asked = layer_count + 1 if gpu_layers < 0 else gpu_layers
    on_devices = min(asked, layer_count + 1) if device_count else 0
    start = layer_count + 1 - on_devices
    shares = split.over(device_count)
    ends = accumulated(shares)

    def device_of(index: int) -> int:
        if index < start:
            return device_count
        return next(number for number, end in enumerate(ends) if end > Fraction(index - start, on_devices))

    *layers, output = (device_of(index) for index in range(layer_count + 1))
    experts = [
        device_count if index < cpu_expert_layers or index in host_experts else device for index, device in enumerate(layers)
    ]
    whole = asked > layer_count and not cpu_expert_layers and not host_experts and not caches_on_host
    return Placement(
        tuple(layers),
        tuple(experts),
        output,
        device_count,
        kind,
        pipelined=device_count > 1 and whole and split.mode == "layer",
        row_shares=shares if split.mode == "row" and device_count > 1 else (),
        caches_on_host=caches_on_host and device_count > 0,
    )
