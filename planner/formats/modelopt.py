"""NVIDIA Model Optimizer's checkpoints: one algorithm for the model, or one a layer.

Source: TensorRT-Model-Optimizer ``export/quant_utils.py``; every quantised module also has an fp32 input scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.formats.format import HEAD, LINEARS_AND_EXPERTS, Format, Override
from planner.formats.readers import from_header_only, module_names, unquantized
from planner.formats.storage import WHOLE, Scaled

if TYPE_CHECKING:
    from planner.faults import Reader


def modelopt(reader: Reader) -> Format:
    """A ``quantization_config`` or ``hf_quant_config.json`` of Model Optimizer. Bad values are noted on ``reader``."""
    algorithm = reader.string("quant_algo", "").upper()
    keeps = next((module_names(reader, key) for key in ("exclude_modules", "ignore") if reader.has(key)), ())
    if not algorithm:
        return unquantized()
    if algorithm == "MIXED_PRECISION":
        return _mixed(reader, keeps)
    scheme = modelopt_algorithm(algorithm, _group_size(reader))
    if scheme is None:
        return from_header_only("modelopt", f"quant_algo {algorithm[:60]} keeps scales its config does not describe")
    roles = LINEARS_AND_EXPERTS | HEAD
    return Format(f"modelopt {algorithm.lower()}", f"Model Optimizer {algorithm}", scheme, roles, keeps=keeps or ("lm_head",))


def modelopt_algorithm(algorithm: str, group_size: int) -> Scaled | None:
    """How one algorithm stores a weight; None for those with scales beyond what a config tells."""
    known = {
        "FP8": Scaled("fp8", 8, (WHOLE, WHOLE), 32, tensor_bytes=4),
        "FP8_PER_CHANNEL_PER_TOKEN": Scaled("fp8", 8, (1, WHOLE), 32),
        "FP8_PB_WO": Scaled("fp8", 8, (128, 128), 32),
        "NVFP4": Scaled("nvfp4", 4, (1, group_size), 8, tensor_bytes=8),
        "W4A16_NVFP4": Scaled("nvfp4", 4, (1, group_size), 8, tensor_bytes=4),
        "MXFP4": Scaled("mxfp4", 4, (1, 32), 8),
    }
    return known.get(algorithm)


def _mixed(reader: Reader, keeps: tuple[str, ...]) -> Format:
    layers = reader.child("quantized_layers")
    by_scheme: dict[Scaled, list[str]] = {}
    for name in layers.names():
        layer = layers.child(name)
        scheme = modelopt_algorithm(layer.string("quant_algo", "").upper(), _group_size(layer))
        if scheme is None:
            return from_header_only("modelopt", "a layer's quant_algo is not one whose layout is known")
        by_scheme.setdefault(scheme, []).append(name)
    if not by_scheme:
        return from_header_only("modelopt", "MIXED_PRECISION without quantized_layers")
    overrides = tuple(Override(tuple(names), scheme) for scheme, names in by_scheme.items())
    only = tuple(name for names in by_scheme.values() for name in names)
    scheme = next(iter(by_scheme))
    return Format(
        "modelopt mixed",
        "Model Optimizer, mixed",
        scheme,
        LINEARS_AND_EXPERTS | HEAD,
        keeps=keeps,
        only=only,
        overrides=overrides,
    )


def _group_size(reader: Reader) -> int:
    return reader.integer("group_size", 16, minimum=1, maximum=2**24)
