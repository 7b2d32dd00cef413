"""Which parameters train: all, a head, or adapters through PEFT on a frozen, possibly quantised base."""

from __future__ import annotations

from typing import Any

from torch import nn

from .errors import WorkerError
from .order import Order, Training
from .quantised import Linear4bit, quantise_linears

ADAPTER_METHODS = ("lora", "dora", "qlora")
_TARGETS_FIELD = "scenario.training.lora.targets"


def apply_method(model: Any, order: Order) -> Any:
    """The model to train, made from the built one while it is on meta. Raises :class:`WorkerError`."""
    training = order.training
    if training.method == "freeze":
        _train_head_only(model)
    if training.method == "qlora":
        quantise_linears(model, order.weights if order.weights != "native" else "nf4", _skipped(order))
    return _with_adapters(model, training) if training.method in ADAPTER_METHODS else model


def _train_head_only(model: Any) -> None:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        raise WorkerError("unsupported", "method freeze trains the head, and this model has none", "scenario.training.method")
    model.requires_grad_(False)
    head.requires_grad_(True)


def _skipped(order: Order) -> tuple[str, ...]:
    return tuple(order.training.options.get("quant_skip_modules", ("lm_head",)))


def _with_adapters(model: Any, training: Training) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise WorkerError("missing_package", f"{training.method} needs peft: python -m pip install peft") from error
    _check_targets(model, training.lora.targets)
    config = LoraConfig(
        r=training.lora.rank,
        lora_alpha=training.lora.alpha,
        target_modules=list(training.lora.targets),
        use_dora=training.method == "dora",
    )
    fp32 = bool(training.options.get("autocast_adapter_dtype", True))
    adapted = get_peft_model(model, config, autocast_adapter_dtype=fp32)
    _mark_copies(adapted)
    return adapted


def _check_targets(model: nn.Module, targets: tuple[str, ...]) -> None:
    paths = [name for name, _ in model.named_modules()]
    missing = [target for target in targets if not any(f".{path}".endswith(f".{target}") for path in paths)]
    if missing or not targets:
        linears = {path.rpartition(".")[2] for path, module in model.named_modules() if isinstance(module, nn.Linear)}
        faulty = f"{', '.join(missing)} not in this model" if missing else "is empty"
        message = f"{_TARGETS_FIELD}: {faulty}; its linear layers are {', '.join(sorted(linears)) or 'none'}"
        raise WorkerError("bad_order", message, _TARGETS_FIELD)


def _mark_copies(model: nn.Module) -> None:
    """PEFT copies a 4-bit layer's result before it adds the adapter's (peft, tuners/lora/bnb.py)."""
    for module in model.modules():
        base = getattr(module, "base_layer", None)
        if isinstance(base, Linear4bit):
            base.copies_result = True
