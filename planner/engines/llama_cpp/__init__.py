"""llama.cpp: what its buffers take, to the byte, by replaying the graphs it reserves."""

from __future__ import annotations

from planner.engines.llama_cpp.footprint import Buffers, LlamaCppFootprint, llama_cpp_footprint
from planner.engines.llama_cpp.placement import CUDA, LOOPBACK, Checkpoint, DeviceKind

__all__ = ["CUDA", "LOOPBACK", "Buffers", "Checkpoint", "DeviceKind", "LlamaCppFootprint", "llama_cpp_footprint"]
