"""Which parameters train: all, named modules, or what PEFT adds to a frozen, possibly quantised base."""

from __future__ import annotations

import re
from collections.abc import Collection
from types import MethodType
from typing import Any

import torch
from torch import nn

from .bitsandbytes_layout import Linear4bit, Linear8bit
from .errors import WorkerError
from .order import Order, Training
from .packed_layout import AwqLinear
from .product import QuantisedLinear
from .quantised import is_quantised, quantise

LOW_RANK = ("lora", "dora", "qlora")
VIRTUAL = ("prompt", "prefix")
ALL_LINEAR = "all-linear"
_FEED_FORWARD = ("down_proj", "fc2", "fc_out", "dense_4h_to_h", "mlp.c_proj", "w2", "wo", "output_linear")
"""The last linear of a feed-forward block, whose input IA³ scales (peft, utils/constants.py)."""
QLORA_DEFAULT = "nf4"
_TARGETS_FIELD = "scenario.training.lora.targets"


def apply_method(model: Any, order: Order) -> Any:
    """The model to train, made from the built one while it is on meta. Raises :class:`WorkerError`."""
    training = order.training
    if training.method == "freeze":
        _freeze(model, training.trainable)
    quantised = is_quantised(order.weights)
    if training.method == "dora" and quantised:
        message = f"scenario.weights: DoRA over {order.weights} is not rehearsed; choose qlora, or 16-bit weights"
        raise WorkerError("unsupported", message, "scenario.weights")
    if training.method == "qlora" and not quantised and order.weights != "native":
        message = f"scenario.weights: qlora adapts quantised weights, and {order.weights} are none; choose nf4, or the method lora"
        raise WorkerError("unsupported", message, "scenario.weights")
    if training.method == "qlora" or (training.method == "lora" and quantised):
        quantise(model, order.weights if order.weights != "native" else QLORA_DEFAULT, _skipped(training), real=not order.fake)
    if training.method in ("full", "freeze"):
        return model
    adapted = _with_peft(model, training)
    if quantised and training.objective != "sft":
        _narrow_adapters(adapted)
    return adapted


def _narrow_adapters(model: nn.Module) -> None:
    """TRL's trainers hold adapters over quantised weights in bf16 (TRL 1.16, trainer/dpo_trainer.py)."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_magnitude_vector" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)


def _freeze(model: Any, names: tuple[str, ...]) -> None:
    """What is not in a module of ``names`` (a run of parts of a path) is frozen; without names all but the head."""
    if not names:
        _train_head_only(model)
        return
    model.requires_grad_(False)
    chosen = [p for path, p in model.named_parameters() if any(f".{name}." in f".{path}." for name in names)]
    if not chosen:
        field = "scenario.training.trainable"
        modules = ", ".join(sorted({path.rpartition(".")[2] for path, _ in model.named_modules() if path})[:40])
        raise WorkerError("bad_order", f"{field}: {', '.join(names)} not in this model; its modules are {modules}", field)
    for parameter in chosen:
        parameter.requires_grad_(True)


def _train_head_only(model: Any) -> None:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        raise WorkerError("unsupported", "method freeze trains the head, and this model has none", "scenario.training.method")
    model.requires_grad_(False)
    head.requires_grad_(True)


def _skipped(training: Training) -> tuple[str, ...]:
    names = training.options.get("quant_skip_modules", ())
    return tuple(part.strip() for part in names.split(",")) if isinstance(names, str) else tuple(names)


def is_adapter(name: str) -> bool:
    """Whether a parameter was added by PEFT."""
    return any(part in name for part in ("lora_", "ia3_l", "prompt_encoder", "vera_", "hada_", "lokr_"))


def _with_peft(model: Any, training: Training) -> Any:
    try:
        import peft
    except ImportError as error:
        raise WorkerError("missing_package", f"{training.method} needs peft: python -m pip install peft") from error
    if training.options.get("prepare_for_kbit_training"):
        cast_unquantised(model)
    if training.method in VIRTUAL:
        kind = peft.PromptTuningConfig if training.method == "prompt" else peft.PrefixTuningConfig
        return peft.get_peft_model(model, kind(task_type="CAUSAL_LM", num_virtual_tokens=training.virtual_tokens))
    _check_targets(model, training.lora.targets)
    config = _CONFIGS.get(training.method, _low_rank_config)(peft, training)
    fp32 = bool(training.options.get("autocast_adapter_dtype", True))
    try:
        adapted = peft.get_peft_model(model, config, autocast_adapter_dtype=fp32)
    except ValueError as error:
        raise WorkerError("unsupported", f"{_TARGETS_FIELD}: PEFT refuses: {error}", _TARGETS_FIELD) from error
    if _casts_back(training) and any(isinstance(module, Linear4bit) for module in adapted.modules()):
        _narrow_ends(adapted)
    _run_as_over_quantised(adapted)
    return adapted


def _low_rank_config(peft: Any, training: Training) -> Any:
    lora = training.lora
    return peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=ALL_LINEAR if lora.targets == (ALL_LINEAR,) else list(lora.targets),
        use_dora=training.method == "dora",
        use_rslora=lora.rslora,
    )


def _scaling_config(peft: Any, training: Training) -> Any:
    """IA³ scales what a feed-forward block's last linear reads, and what the other targets make."""
    targets = training.lora.targets
    named = ".*" if targets == (ALL_LINEAR,) else _ending_in(targets)
    return peft.IA3Config(
        target_modules=ALL_LINEAR if targets == (ALL_LINEAR,) else named,
        feedforward_modules=f"(?={_ending_in(_FEED_FORWARD)}$){named}",
    )


def _targets(training: Training) -> str | list[str]:
    targets = training.lora.targets
    return ALL_LINEAR if targets == (ALL_LINEAR,) else list(targets)


def _vera_config(peft: Any, training: Training) -> Any:
    return peft.VeraConfig(r=training.lora.rank, vera_dropout=training.lora.dropout, target_modules=_targets(training))


def _whole_config(peft: Any, training: Training) -> Any:
    """LoHa and LoKr, whose product is a whole matrix."""
    lora, kind = training.lora, peft.LoHaConfig if training.method == "loha" else peft.LoKrConfig
    return kind(r=lora.rank, alpha=lora.alpha or 2 * lora.rank, target_modules=_targets(training))


_CONFIGS = {"ia3": _scaling_config, "vera": _vera_config, "loha": _whole_config, "lokr": _whole_config}


def _ending_in(names: tuple[str, ...]) -> str:
    """A pattern of the paths that end in one of ``names``."""
    return rf"(.*\.)?({'|'.join(map(re.escape, names))})"


def cast_unquantised(model: nn.Module) -> None:
    """16-bit parameters become fp32: embeddings, norms, the head (peft/utils/other.py, prepare_model_for_kbit_training)."""
    for parameter in model.parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.to(torch.float32)


def _casts_back(training: Training) -> bool:
    """Whether TRL's trainer casts embeddings and head back after the preparation (before 0.27)."""
    found = re.match(r"v?(\d+)\.(\d+)", str(training.options.get("trl_version", "")))
    older = found is not None and (int(found[1]), int(found[2])) < (0, 27)
    prepared = bool(training.options.get("prepare_for_kbit_training"))
    return older and prepared and training.precision == "amp-bf16" and training.objective == "sft"


def _narrow_ends(model: nn.Module) -> None:
    """Embeddings and head in bf16 beside fp32 norms (TRL 0.26, models/utils.py, peft_module_casting_to_bf16)."""
    for name, module in model.named_modules():
        ends = any(part in name for part in ("lm_head", "embed_tokens", "wte", "wpe"))
        if ends and "norm" not in name and getattr(module, "weight", None) is not None and module.weight.dtype == torch.float32:
            module.to(torch.bfloat16)


def _check_targets(model: nn.Module, targets: tuple[str, ...]) -> None:
    if targets == (ALL_LINEAR,):
        return
    paths = [name for name, _ in model.named_modules()]
    turned = _turned_names(model)
    missing = [
        target
        for target in targets
        if target.rpartition(".")[2] not in turned and not any(f".{path}".endswith(f".{target}") for path in paths)
    ]
    if missing or not targets:
        linears = {path.rpartition(".")[2] for path, module in model.named_modules() if isinstance(module, nn.Linear)}
        faulty = f"{', '.join(missing)} not in this model" if missing else "is empty"
        message = f"{_TARGETS_FIELD}: {faulty}; its linear layers are {', '.join(sorted(linears)) or 'none'}"
        raise WorkerError("bad_order", message, _TARGETS_FIELD)


def _turned_names(model: nn.Module) -> Collection[str]:
    """Linears of experts by the names they had in transformers 4: PEFT adapts what became of them in their place."""
    try:
        from peft.utils import transformers_weight_conversion as conversion
    except ImportError:
        return ()
    kinds = getattr(conversion, "_MODEL_TO_CONVERSION_PATTERN", {})
    names: dict[str, dict[str, str]] = getattr(conversion, "_MOE_TARGET_MODULE_MAPPING", {})
    return names.get(kinds.get(getattr(model.config, "model_type", ""), ""), {})


def _run_as_over_quantised(model: nn.Module) -> None:
    """PEFT has classes of its own for layers of bitsandbytes and AWQ, which do not know these stand-ins."""
    for module in model.modules():
        base = getattr(module, "base_layer", None)
        if isinstance(base, (Linear4bit, Linear8bit, AwqLinear)):
            module.forward = MethodType(_forward_over_quantised, module)


def _forward_over_quantised(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """4-bit results are copied; autocast is left to cast, else inputs go to the adapter's dtype and results come back.

    peft, tuners/lora/bnb.py; over AWQ results come back before they are scaled (awq.py).
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
        output = second(first(layer.lora_dropout[name](x)))
        if isinstance(base, AwqLinear):
            output = (output.to(expected) if converts else output) * layer.scaling[name]
        else:
            output = output * layer.scaling[name]
            output = output.to(expected) if converts else output
        result = result + output
    return result
