"""Which parameters train: all, a head, or adapters through PEFT on a frozen, possibly quantised base."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn

from .bitsandbytes_layout import Linear4bit, Linear8bit
from .errors import WorkerError
from .order import Order, Training
from .product import QuantisedLinear
from .quantised import is_quantised, quantise

ADAPTER_METHODS = ("lora", "dora", "qlora")
QLORA_DEFAULT = "nf4"
_TARGETS_FIELD = "scenario.training.lora.targets"


def apply_method(model: Any, order: Order) -> Any:
    """The model to train, made from the built one while it is on meta. Raises :class:`WorkerError`."""
    training = order.training
    if training.method == "freeze":
        _train_head_only(model)
    quantised = is_quantised(order.weights)
    if training.method == "dora" and quantised:
        message = f"scenario.weights: DoRA over {order.weights} is not rehearsed; choose qlora, or 16-bit weights"
        raise WorkerError("unsupported", message, "scenario.weights")
    if training.method == "qlora" or (training.method == "lora" and quantised):
        quantise(model, order.weights if order.weights != "native" else QLORA_DEFAULT, _skipped(training))
    return _with_adapters(model, training) if training.method in ADAPTER_METHODS else model


def _train_head_only(model: Any) -> None:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        raise WorkerError("unsupported", "method freeze trains the head, and this model has none", "scenario.training.method")
    model.requires_grad_(False)
    head.requires_grad_(True)


def _skipped(training: Training) -> tuple[str, ...]:
    names = training.options.get("quant_skip_modules", ())
    return tuple(part.strip() for part in names.split(",")) if isinstance(names, str) else tuple(names)


def _with_adapters(model: Any, training: Training) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise WorkerError("missing_package", f"{training.method} needs peft: python -m pip install peft") from error
    _check_targets(model, training.lora.targets)
    if training.options.get("prepare_for_kbit_training"):
        cast_unquantised(model)
    config = LoraConfig(
        r=training.lora.rank,
        lora_alpha=training.lora.alpha,
        lora_dropout=training.lora.dropout,
        target_modules=list(training.lora.targets),
        use_dora=training.method == "dora",
    )
    fp32 = bool(training.options.get("autocast_adapter_dtype", True))
    adapted = get_peft_model(model, config, autocast_adapter_dtype=fp32)
    _run_as_over_bitsandbytes(adapted)
    return adapted


def cast_unquantised(model: nn.Module) -> None:
    """16-bit parameters become fp32: embeddings, norms, the head (peft/utils/other.py, prepare_model_for_kbit_training)."""
    for parameter in model.parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.to(torch.float32)


def _check_targets(model: nn.Module, targets: tuple[str, ...]) -> None:
    paths = [name for name, _ in model.named_modules()]
    missing = [target for target in targets if not any(f".{path}".endswith(f".{target}") for path in paths)]
    if missing or not targets:
        linears = {path.rpartition(".")[2] for path, module in model.named_modules() if isinstance(module, nn.Linear)}
        faulty = f"{', '.join(missing)} not in this model" if missing else "is empty"
        message = f"{_TARGETS_FIELD}: {faulty}; its linear layers are {', '.join(sorted(linears)) or 'none'}"
        raise WorkerError("bad_order", message, _TARGETS_FIELD)


def _run_as_over_bitsandbytes(model: nn.Module) -> None:
    """PEFT has a class of its own for layers of bitsandbytes, which does not know these stand-ins."""
    for module in model.modules():
        base = getattr(module, "base_layer", None)
        if isinstance(base, (Linear4bit, Linear8bit)):
            module.forward = MethodType(_forward_over_bitsandbytes, module)


def _forward_over_bitsandbytes(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """4-bit results are copied; autocast is left to cast, else inputs go to the adapter's dtype and results come back.

    peft, tuners/lora/bnb.py.
    """
    base: QuantisedLinear = layer.base_layer
    result = base(x)
    if isinstance(base, Linear4bit):
        result = result.clone()
    converts = not torch.is_autocast_enabled("cpu")
    for name in layer.active_adapters:
        if name not in layer.lora_A:
            continue
        first, second, expected = layer.lora_A[name], layer.lora_B[name], result.dtype
        x = x.to(first.weight.dtype) if converts else x
        if name in layer.lora_variant:
            result = layer.lora_variant[name].forward(layer, active_adapter=name, x=x, result=result)
            result = result.to(expected) if converts else result
            continue
        output = second(first(layer.lora_dropout[name](x))) * layer.scaling[name]
        output = output.to(expected) if converts else output
        result = result + output
    return result
