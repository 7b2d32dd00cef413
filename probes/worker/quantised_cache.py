"""transformers' quantised key-value cache without the libraries behind it, for rehearsals where nothing is computed.

The library's own layer decides when the newest tokens are quantised; here is what one quantisation makes, keeps and undoes.
Sources: optimum-quanto 0.2.7 (tensor/optimizers/max_optimizer.py, library/quantize.py, tensor/packed.py, tensor/qbits.py)
and HQQ 0.2 (core/quantize.py), both with a scale and a shift for each group of values; HQQ's search for them is left out.
"""

from __future__ import annotations

from math import prod
from typing import Any
from unittest import mock

import torch

from .errors import WorkerError

BACKENDS = ("quanto", "hqq", "fp8")
_FIELD = "scenario.inference.engine_options"
_BITS = {"quanto": (2, 4), "hqq": (1, 2, 4, 8)}
_DEFAULTS = {"cache_nbits": 4, "cache_q_group_size": 64, "cache_residual_length": 128}
_BITS_OF_KV_CACHE = {"int2": 2, "int4": 4, "int8": 8}


def cache_kind(kv_cache: str, options: Any) -> str:
    """dynamic, static or quantized: an option says it, else the format of the cache does."""
    asked = options.get("cache_implementation")
    return str(asked) if asked else "quantized" if kv_cache == "fp8" or kv_cache in _BITS_OF_KV_CACHE else "dynamic"


def backend_of(kv_cache: str, options: Any) -> str:
    """quanto, hqq or fp8: what an option names, else what can hold the format."""
    asked = options.get("cache_backend")
    if asked:
        return str(asked)
    return {"fp8": "fp8", "int8": "hqq"}.get(kv_cache, "quanto")


def make_quantised_cache(config: Any, kv_cache: str, options: Any, fake: bool) -> Any:
    """The cache ``generate`` would make. Raises :class:`WorkerError` for what the library refuses or lacks."""
    from transformers import QuantizedCache

    backend = backend_of(kv_cache, options)
    settings = _settings(backend, kv_cache, options)
    try:
        if fake and backend != "fp8":
            return _played(config, settings)
        return QuantizedCache(backend=backend, config=config, **settings)
    except ImportError as error:
        name = {"quanto": "optimum-quanto", "hqq": "hqq"}[backend]
        message = f"{_FIELD}.cache_implementation: the quantized cache needs {name}: python -m pip install {name}, or rehearse"
        raise WorkerError("missing_package", message, _FIELD) from error
    except (ValueError, TypeError) as error:
        raise WorkerError("unsupported", f"{_FIELD}.cache_implementation: {' '.join(str(error).split())[:300]}", _FIELD) from error


def flushes(cache: Any, steps: int) -> list[int]:
    """The decode steps around which the newest tokens are quantised: every so many as they may be."""
    lengths = {layer.residual_length for layer in getattr(cache, "layers", ()) if hasattr(layer, "residual_length")}
    return sorted({edge for length in lengths for step in range(length, steps + 1, length) for edge in (step - 1, step)})


def _settings(backend: str, kv_cache: str, options: Any) -> dict[str, int]:
    """Keyword arguments of the library's class; fp8 takes none."""
    if backend not in BACKENDS:
        raise WorkerError("bad_order", f"{_FIELD}.cache_backend: must be one of {', '.join(BACKENDS)}", f"{_FIELD}.cache_backend")
    if backend == "fp8":
        return {}
    found = {name: int(options.get(name, default)) for name, default in _DEFAULTS.items()}
    found["cache_nbits"] = int(options.get("cache_nbits", _BITS_OF_KV_CACHE.get(kv_cache, _DEFAULTS["cache_nbits"])))
    if found["cache_nbits"] not in _BITS[backend]:
        known = ", ".join(map(str, _BITS[backend]))
        message = f"{_FIELD}.cache_nbits: {backend} has {known}, not {found['cache_nbits']}"
        raise WorkerError("bad_order", message, f"{_FIELD}.cache_nbits")
    return {name.removeprefix("cache_"): value for name, value in found.items()}


def _played(config: Any, settings: dict[str, int]) -> Any:
    """The library's cache with layers that quantise as its packages would. Raises ValueError as it does."""
    from transformers import cache_utils

    class PlayedLayer(cache_utils.QuantizedLayer):  # type: ignore[misc,unused-ignore]
        """Quantises by groups along a row of values."""

        def _quantize(self, tensor: torch.Tensor, axis: int) -> Any:  # type: ignore[override,unused-ignore]
            return *quantise_groups(tensor, self.nbits, self.q_group_size), tuple(tensor.shape)

        def _dequantize(self, q_tensor: Any) -> torch.Tensor:
            packed, scale, shift, shape = q_tensor
            return dequantise_groups(packed, scale, shift, shape)

    with mock.patch.object(cache_utils, "QuantoQuantizedLayer", PlayedLayer):
        return cache_utils.QuantizedCache(backend="quanto", config=config, **settings)


def quantise_groups(tensor: torch.Tensor, bits: int, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(packed, scale, shift) of a tensor: values as uint8, several a byte; 16-bit scale and shift a group.

    Raises ValueError where the values are not whole groups.
    """
    if tensor.numel() % group:
        message = f"groups of {group} do not divide {tensor.numel()} values"
        raise ValueError(message)
    grouped = tensor.reshape(-1, group)
    low, high = grouped.amin(1, keepdim=True), grouped.amax(1, keepdim=True)
    scale, shift = (high - low) / (2**bits - 1), -low
    values = torch.clamp(torch.round((grouped + shift) / scale), 0, 2**bits - 1).to(torch.uint8)
    return _pack(values, bits), scale, shift


def dequantise_groups(packed: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor of ``shape`` in the scale's dtype; the unpacked values live until it is made."""
    values = torch.empty(scale.shape[0], prod(shape) // scale.shape[0], dtype=torch.uint8, device=packed.device)
    made = scale * values
    made -= shift
    return made.reshape(shape)


def _pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    each = max(1, 8 // bits)
    rows = -(-values.shape[0] // each)
    packed = torch.zeros(rows, values.shape[1], dtype=torch.uint8, device=values.device)
    for index in range(each):
        part = values[index * rows : (index + 1) * rows]
        packed[: part.shape[0]] |= part << (bits * index)
    return packed
