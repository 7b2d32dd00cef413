"""What a machine adds outside the tensors: context, cuBLAS workspaces, what the allocator keeps. Defaults until measured.

Every figure here is ``modelled``: a typical value of published runs, with its source, replaced by a calibration.
"""

from __future__ import annotations

from planner.calibration import PERMILLE, Calibration, Task
from planner.footprint import Certainty
from planner.gpu import Gpu
from planner.record import record
from planner.units import MIB

CONTEXT_MIB = {"Ampere": 256, "Ada": 453, "Hopper": 500, "Blackwell": 749, "Blackwell Ultra": 749}
"""CUDA context by architecture with lazily loaded kernels (CUDA 11.7 and later): RTX 3090 under torch 2.7, RTX 4090
under llama.cpp, RTX PRO 6000 Blackwell as published; Hopper from the upper end of published 250 to 500 MiB."""
OTHER_CONTEXT_MIB = 400
CONTEXT_BAND = 0.5
"""The context grows as kernels load, and differs between driver releases: published values spread by half."""
CUBLAS_WORKSPACE_BYTES = 8519680
"""cuBLAS workspace per handle and stream: 2 · 4096 KiB + 8 · 16 KiB (ATen/cuda/CUDABlas.cpp, before sm_90)."""
CUBLAS_WORKSPACE_HOPPER_BYTES = 32 * MIB
"""The same from sm_90 on (4096 KiB · 8)."""
GRAPH_BYTES = MIB
"""What the driver takes for one captured graph: the least that vLLM 0.20 assumes (``profile_cudagraph_memory``)."""
CUBLAS_HANDLES = {"inference": 1, "training": 2}
"""Threads that multiply matrices: autograd's backward runs on one of its own, with a cuBLAS handle of its own."""


@record
class Overheads:
    """Bytes outside the tensors on one device."""

    context_bytes: int
    context_band_bytes: int
    cublas_workspace_bytes: int
    source: str
    certainty: Certainty = "modelled"
    calibration: Calibration | None = None
    graph_bytes: int = GRAPH_BYTES

    @property
    def graph_certainty(self) -> Certainty:
        """Whether the bytes of a graph were measured here."""
        return "modelled" if self.calibration is None or self.calibration.graph_bytes is None else "measured"

    def slack_permille(self, task: Task) -> int:
        """What the allocator holds beside live tensors, in thousandths of what is modelled."""
        return PERMILLE if self.calibration is None else self.calibration.slack_permille(task)


def overheads(gpu: Gpu | None) -> Overheads:
    """A GPU's calibration, and the catalog's defaults for what was not measured; nothing for a CPU (None)."""
    if gpu is None:
        return Overheads(0, 0, 0, "no CUDA on a CPU")
    context = CONTEXT_MIB.get(gpu.arch, OTHER_CONTEXT_MIB) * MIB
    band, measured = int(context * CONTEXT_BAND), gpu.calibration
    if measured is None:
        return Overheads(context, band, _workspace_bytes(gpu), f"default of the {gpu.arch} architecture, not measured here")
    if measured.context_bytes is not None:
        context, band = measured.context_bytes, measured.context_band_bytes
    workspace = _workspace_bytes(gpu) if measured.cublas_workspace_bytes is None else measured.cublas_workspace_bytes
    certainty: Certainty = "modelled" if measured.context_bytes is None else "measured"
    graph = GRAPH_BYTES if measured.graph_bytes is None else measured.graph_bytes
    return Overheads(context, band, workspace, measured.source, certainty, measured, graph)


def _workspace_bytes(gpu: Gpu) -> int:
    return CUBLAS_WORKSPACE_HOPPER_BYTES if (gpu.compute_capability or (0, 0)) >= (9, 0) else CUBLAS_WORKSPACE_BYTES
