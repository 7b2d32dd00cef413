"""One GPU as the arithmetic sees it: how much memory it offers, how fast it reads and computes, what joins it to others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from planner.calibration import Calibration
from planner.record import record

CapacityBasis = Literal["cuda", "nvml", "working_set", "marketing"]
METAL_SMALL_BYTES = 32 * 2**30
"""Up to this much memory Metal recommends two thirds of it, above it three quarters (ggml_metal_init logs of M1 to M3;
recent macOS releases allow more)."""
PCIE_BYTES_PER_S_PER_LANE = {3: 8e9 / 8 * 128 / 130, 4: 16e9 / 8 * 128 / 130, 5: 32e9 / 8 * 128 / 130, 6: 64e9 / 8 * 242 / 256}
"""Payload of one lane in one direction: transfer rate times line coding (128b/130b; FLIT 242/256 from generation 6)."""


BF16_SINCE = (8, 0)
"""The compute capability from which NVIDIA's cards compute in bf16."""


@record
class MigProfile:
    """One way to slice a card: ``count`` instances (None: not published) of ``slices``/7 compute and ``memory_bytes``."""

    name: str
    slices: int
    memory_bytes: int
    count: int | None = None


@record
class Gpu:
    """One device as its driver offers it; None is "not known", never zero.

    ``memory_bytes`` is the size it is sold by (10⁹ bytes to the GB). ``flops`` are dense peak operations a second by
    dtype (fp16, bf16, fp8, int8, fp4) with fp32 accumulation where the source tells; a dtype without native units is
    absent. Links are in one direction: ``link`` joins GPUs, ``host_link`` (NVLink-C2C) joins the GPU to its CPU.
    """

    name: str
    vendor: str
    arch: str
    target: str
    memory_bytes: int
    compute_capability: tuple[int, int] | None = None
    form: str = ""
    memory_type: str = ""
    unified: bool = False
    nvml_total_bytes: int | None = None
    cuda_total_bytes: int | None = None
    bandwidth_bytes_per_s: int | None = None
    flops: Mapping[str, int] = field(default_factory=dict, hash=False)
    link: str | None = None
    link_bytes_per_s: int | None = None
    pcie_generation: int | None = None
    pcie_lanes: int | None = None
    host_link_bytes_per_s: int | None = None
    tdp_w: int | None = None
    mig: tuple[MigProfile, ...] = ()
    aliases: tuple[str, ...] = ()
    notes: str = ""
    confidence: str = ""
    source: str = ""
    calibration: Calibration | None = None
    """What was measured of this card on this machine."""
    beside: tuple[Gpu, ...] = field(default=(), hash=False)
    """The other cards of a machine whose cards differ, in the order of devices."""

    @property
    def lacks_bf16(self) -> bool:
        """Whether it is known to be older than bf16."""
        return self.compute_capability is not None and self.compute_capability < BF16_SINCE

    @property
    def capacity_basis(self) -> CapacityBasis:
        """Where ``capacity_bytes`` comes from, best first."""
        if self.cuda_total_bytes is not None:
            return "cuda"
        if self.nvml_total_bytes is not None:
            return "nvml"
        return "working_set" if self.target == "metal" else "marketing"

    @property
    def capacity_bytes(self) -> int:
        """What a process can hope to allocate on an idle card.

        CUDA's total where known; else NVML's, which is up to 3 % larger; else for Metal its recommended working set;
        else the size it is sold by, which stays below NVML's total on every card where that is known.
        """
        if self.cuda_total_bytes is not None:
            return self.cuda_total_bytes
        if self.nvml_total_bytes is not None:
            return self.nvml_total_bytes
        if self.target == "metal":
            return metal_working_set_bytes(self.memory_bytes * 2**30 // 10**9)
        return self.memory_bytes

    @property
    def pcie_bytes_per_s(self) -> float | None:
        """Payload bandwidth of the PCIe slot in one direction."""
        if self.pcie_generation is None or self.pcie_lanes is None:
            return None
        return PCIE_BYTES_PER_S_PER_LANE[self.pcie_generation] * self.pcie_lanes

    @property
    def host_bytes_per_s(self) -> float | None:
        """The faster way between host memory and the GPU, one direction: NVLink-C2C or PCIe."""
        return self.host_link_bytes_per_s or self.pcie_bytes_per_s

    def flops_for(self, dtype: str) -> int | None:
        """Dense peak FLOP/s in ``dtype``; None where the card has no native units for it or the rate is not known."""
        return self.flops.get(dtype)


def metal_working_set_bytes(memory_bytes: int) -> int:
    """Metal's default ``recommendedMaxWorkingSetSize`` on a machine with ``memory_bytes`` of unified memory."""
    return memory_bytes * 2 // 3 if memory_bytes <= METAL_SMALL_BYTES else memory_bytes * 3 // 4
