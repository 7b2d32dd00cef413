"""Which device holds which layer: ``-ngl``, ``--n-cpu-moe``, several devices.

Source: llama.cpp ``src/llama-model.cpp`` (``load_tensors``), ``src/llama-context.cpp``, 0.5.0-dev; ``ggml-cuda.cu`` (0.25.3).
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.engines.llama_cpp.context import padded
from planner.formats import GgufTensor


@dataclass(frozen=True, slots=True)
class DeviceKind:
    """A backend's habits: addresses are multiples of ``alignment_bytes``, rows of quantised weights of ``row_values``.

    ``offloads``: it computes large batches with the host's weights. ``copies_cache``: its fused attention works on an f16
    copy of caches of other types.
    """

    name: str
    alignment_bytes: int
    row_values: int = 1
    offloads: bool = False
    copies_cache: bool = False

    def weight_bytes(self, tensor: GgufTensor) -> int:
        """A weight in this backend's model buffer: the last row of a quantised matrix is padded."""
        size = tensor.size_bytes
        missing = -tensor.shape[-1] % self.row_values if tensor.kind.is_quantized else 0
        if missing:
            size += tensor.kind.row_bytes(padded(missing, tensor.kind.block_values))
        return padded(size, self.alignment_bytes)


HOST = DeviceKind("CPU", 32)
CUDA = DeviceKind("CUDA", 128, 512, offloads=True, copies_cache=True)
"""``ggml-cuda.cu``: ``MATRIX_ROW_PADDING`` 512, ``ggml_cuda_flash_attn_ext_get_alloc_size``."""
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
    """

    layers: tuple[int, ...]
    experts: tuple[int, ...]
    output: int
    device_count: int
    kind: DeviceKind = CUDA
    pipelined: bool = False

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


def placement_of(
    layer_count: int, device_count: int, gpu_layers: int = -1, cpu_expert_layers: int = 0, kind: DeviceKind = CUDA
) -> Placement:
    """The last ``gpu_layers`` layers (the output counted as one; −1: all) on the devices, in equal runs.

    ``cpu_expert_layers``: how many first layers keep their routed experts on the host.
    """
    asked = layer_count + 1 if gpu_layers < 0 else gpu_layers
    on_devices = min(asked, layer_count + 1) if device_count else 0
    start = layer_count + 1 - on_devices
    devices = [device_count if index < start else (index - start) * device_count // on_devices for index in range(layer_count + 1)]
    *layers, output = devices
    experts = [device_count if index < cpu_expert_layers else device for index, device in enumerate(layers)]
    pipelined = device_count > 1 and asked > layer_count and not cpu_expert_layers
    return Placement(tuple(layers), tuple(experts), output, device_count, kind, pipelined)
