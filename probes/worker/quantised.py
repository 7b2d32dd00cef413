"""Linear layers with quantised weights, for rehearsals where nothing is computed: which layers, and in which layout.

The layouts themselves, with the moments at which a whole 16-bit weight exists, are in :mod:`.bitsandbytes_layout`,
:mod:`.packed_layout` and :mod:`.scaled_layout`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from . import bitsandbytes_real
from .bitsandbytes_layout import Linear4bit, Linear8bit
from .errors import WorkerError
from .packed_layout import AwqLinear, GptqLinear
from .product import QuantisedLinear
from .scaled_layout import BlockFp8Linear, Fp8Experts, Mxfp4Experts, StackedExperts, TensorFp8Linear

FORMATS = ("nf4", "nf4-dq", "fp4", "fp4-dq", "int8", "fp8", "fp8-block", "mxfp4", "gptq-intB-gG", "awq-int4-gG")
"""Names that are known; B bits (2, 3, 4, 8) and groups of G, -1 for one group a row."""
_FIELD = "scenario.weights"
_GROUPED = re.compile(r"(gptq-int[2348]|awq-int4)(?:-g(-1|[1-9]\d{0,4}))?")
_DEFAULT_GROUP = 128
_EXPERTS: dict[str, Callable[[nn.Module], StackedExperts]] = {"mxfp4": Mxfp4Experts, "fp8": Fp8Experts, "fp8-block": Fp8Experts}
QUANTISED = (QuantisedLinear, StackedExperts)
Make = Callable[[nn.Module], QuantisedLinear]


def is_quantised(weights: str) -> bool:
    """Whether this module knows the format."""
    return _maker(weights) is not None or weights in _EXPERTS


def quantise(model: Any, weights: str, skip: Iterable[str], *, real: bool = False) -> None:
    """Replace what the format's quantiser in transformers replaces. ``skip`` names modules that stay, by path or last part.

    ``real``: by layers that compute, of a package that has to be installed. Raises :class:`WorkerError` for an unknown format and
    for a model with nothing to quantise.
    """
    if not is_quantised(weights):
        message = f"{_FIELD}: {weights!r} is not rehearsed; choose one of {', '.join(FORMATS)}"
        raise WorkerError("unsupported", message, _FIELD)
    skipped = {*skip, *_head_paths(model)}
    make: Callable[[nn.Module], nn.Module] | None = bitsandbytes_real.maker(weights) if real else _maker(weights)
    if make is not None:
        _replace_linears(model, make, skipped, in_decoder_only=bool(_GROUPED.fullmatch(weights)))
    if weights in _EXPERTS:
        _replace_experts(model, _EXPERTS[weights])
    if not any(isinstance(module, QUANTISED) or _is_real(module) for module in model.modules()):
        message = f"{_FIELD}: {weights} finds nothing to quantise in {type(model).__name__}"
        raise WorkerError("unsupported", message, _FIELD)


def quantisation_state(model: nn.Module) -> list[torch.Tensor]:
    """Scales, zeros, orders and codes of the quantised layers."""
    return [
        buffer
        for layer in model.modules()
        if isinstance(layer, QUANTISED)
        for name, buffer in layer.named_buffers(recurse=False)
        if name not in layer.VALUES
    ] + [tensor for layer in model.modules() if _is_real(layer) for tensor in bitsandbytes_real.state_of(layer)]


def parameters_of(model: nn.Module) -> tuple[int, int]:
    """How many parameters the model has, packed ones counted as the values they stand for, and the bytes they take."""
    count = sum(parameter.numel() for parameter in model.parameters())
    size_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    for layer in (module for module in model.modules() if isinstance(module, QUANTISED)):
        stored = sum(getattr(layer, name).numel() for name, _ in layer.named_parameters(recurse=False) if not name.endswith("bias"))
        count += layer.values - stored
        size_bytes += sum(buffer.numel() * buffer.element_size() for buffer in layer.buffers(recurse=False))
    real: list[Any] = [module for module in model.modules() if _is_real(module)]
    for own in real:
        count += own.values - own.weight.numel()
        size_bytes += sum(tensor.numel() * tensor.element_size() for tensor in bitsandbytes_real.state_of(own))
    return count, size_bytes


def _maker(weights: str) -> Make | None:
    shared: dict[str, torch.Tensor] = {}
    simple: dict[str, Make] = {
        "nf4": Linear4bit,
        "fp4": Linear4bit,
        "nf4-dq": lambda linear: Linear4bit(linear, shared),
        "fp4-dq": lambda linear: Linear4bit(linear, shared),
        "int8": Linear8bit,
        "fp8": TensorFp8Linear,
        "fp8-block": BlockFp8Linear,
    }
    if weights in simple:
        return simple[weights]
    found = _GROUPED.fullmatch(weights)
    if found is None:
        return None
    group = int(found[2] or _DEFAULT_GROUP)
    bits = int(found[1][-1])
    return (lambda linear: AwqLinear(linear, group)) if found[1][0] == "a" else (lambda linear: GptqLinear(linear, bits, group))


def _is_real(module: nn.Module) -> bool:
    """Whether it is a layer of a package of its own (:mod:`.bitsandbytes_real`)."""
    return hasattr(module, "values") and type(module).__module__.startswith("bitsandbytes")


def _replace_linears(model: nn.Module, make: Callable[[nn.Module], nn.Module], skipped: set[str], *, in_decoder_only: bool) -> None:
    for name, module in list(model.named_modules()):
        for child_name, child in list(module.named_children()):
            path = f"{name}.{child_name}" if name else child_name
            inside = not in_decoder_only or any(part.isdigit() for part in path.split("."))
            if inside and _is_linear(child) and not skipped & {child_name, path}:
                setattr(module, child_name, make(child))


def _replace_experts(model: nn.Module, make: Callable[[nn.Module], StackedExperts]) -> None:
    """Stacked experts, which other quantisers leave alone."""
    for module in list(model.modules()):
        for child_name, child in list(module.named_children()):
            if all(isinstance(getattr(child, name, None), nn.Parameter) for name in StackedExperts.VALUES):
                setattr(module, child_name, make(child))


def _is_linear(module: nn.Module) -> bool:
    """nn.Linear and GPT-2's transposed kind (integrations/bitsandbytes.py, replace_with_bnb_linear)."""
    return type(module) is nn.Linear or type(module).__name__ == "Conv1D"


def _head_paths(model: Any) -> set[str]:
    """The output embeddings are never quantised (quantizers/base.py, get_keys_to_not_convert)."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return {path for path, module in model.named_modules() if module is head} if head is not None else set()
