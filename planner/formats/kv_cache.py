"""The type that a checkpoint asks servers to keep keys and values in, beside how its weights are stored.

compressed-tensors and Model Optimizer write ``kv_cache_scheme`` (the arguments of a quantisation), Model Optimizer's own
file ``kv_cache_quant_algo``. Engines follow it where they are asked for no type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.faults import Reader

BY_BITS = {8: "fp8", 4: "nvfp4"}
BY_ALGORITHM = {"FP8": "fp8", "NVFP4": "nvfp4"}


def declared_kv_cache(reader: Reader) -> str:
    """``fp8``, ``nvfp4``, or empty where the config asks for nothing that is known."""
    scheme = reader.raw("kv_cache_scheme")
    if isinstance(scheme, Mapping):
        bits = scheme.get("num_bits")
        return BY_BITS.get(bits, "") if isinstance(bits, int) and scheme.get("type", "float") == "float" else ""
    algorithm = scheme or reader.raw("kv_cache_quant_algo")
    return BY_ALGORITHM.get(algorithm.upper(), "") if isinstance(algorithm, str) else ""
