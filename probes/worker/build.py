"""The real architecture from its config, without weights: first on the meta device, then with memory or fake."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from . import bitsandbytes_real
from .adapters import apply_method
from .errors import WorkerError
from .flash import IMPLEMENTATION as FLASH
from .flash import play_flash
from .float8 import convert
from .layers import LAYER_KEYS, keep_layers
from .order import Order
from .quantised import FORMATS, is_quantised, quantise

DTYPES = {
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
}  # fmt: skip
_AUTO_CLASSES = (
    "AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForImageTextToText", "AutoModelForSpeechSeq2Seq",
    "AutoModelForMaskedLM", "AutoModel",
)  # fmt: skip
_OF_TWO_STACKS = ("AutoModelForSeq2SeqLM", "AutoModelForSpeechSeq2Seq")
_ATTENTIONS = {"auto": None, "sdpa": "sdpa", "eager": "eager", "flash": FLASH}
_POOL_ELEMENTS = 1 << 20

Maker = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Built:
    """A model whose parameters are still on the meta device."""

    model: Any
    config: Any
    dtype: torch.dtype
    layers: int | None

    @property
    def text_config(self) -> Any:
        """The part of the config that describes the decoder."""
        getter = getattr(self.config, "get_text_config", None)
        return getter() if getter is not None else self.config

    @property
    def vocabulary(self) -> int | None:
        """The last dimension of the logits."""
        return getattr(self.text_config, "vocab_size", None)


def build(order: Order) -> Built:
    """Build the order's model on meta. Buffers keep their values in a measurement (they index embeddings)."""
    config, layers = read_config(order.config, order.layers)
    dtype = choose_dtype(order, config)
    model_class = choose_class(config, training=order.task == "training")
    play_flash(order.fake and order.attention == "flash")
    try:
        with _without_memory(order.fake):
            model = _instantiate(model_class, config, dtype, order.attention)
    except WorkerError:
        raise
    except ImportError as error:
        raise _missing_package(error, order) from error
    except Exception as error:
        raise WorkerError("bad_config", f"transformers rejects this config: {_one_line(error)}", "config") from error
    _keep_in_fp32(model, dtype)
    if order.task == "training":
        model = apply_method(model, order)
        if order.training.precision == "fp8":
            convert(model, order.training)
    elif order.weights not in DTYPES and order.weights != "native":
        quantise(model, order.weights, (), real=not order.fake)
    return Built(model, config, dtype, layers)


def build_scorer(order: Order) -> Any:
    """A model of the same layers that gives each token one number, on meta (``AutoModelForSequenceClassification``)."""
    import transformers

    config, _ = read_config(order.config, order.layers)
    known = transformers.AutoModelForSequenceClassification._model_mapping
    if type(config) not in known:
        field = "scenario.training.objective"
        raise WorkerError("unsupported", f"{field}: transformers has no value model of {type(config).__name__}", field)
    config.num_labels, config.pad_token_id = 1, 0
    with _without_memory(order.fake):
        return _instantiate(known[type(config)], config, choose_dtype(order, config), order.attention)


def read_config(document: Mapping[str, Any], layers: int | None) -> tuple[Any, int | None]:
    """The library's config object, cut to ``layers``, and the number of (decoder) layers it has."""
    from transformers import AutoConfig

    raw = deepcopy(dict(document))
    raw.pop("quantization_config", None)
    raw.pop("auto_map", None)
    model_type = raw.pop("model_type", None)
    if not isinstance(model_type, str):
        raise WorkerError("bad_config", "config.model_type: is required to know which architecture to build", "config.model_type")
    if layers is not None:
        raw = keep_layers(raw, layers)
    try:
        config = _config_class(AutoConfig, model_type, raw)(**raw)
    except WorkerError:
        raise
    except Exception as error:
        raise WorkerError("bad_config", f"transformers rejects this config: {_one_line(error)}", "config") from error
    return config, _count_layers(config)


def _config_class(auto_config: Any, model_type: str, raw: dict[str, Any]) -> Any:
    """The class for the model type, or for the architecture the config names: some types are only known on the Hub."""
    try:
        return type(auto_config.for_model(model_type))
    except ValueError:
        pass
    import transformers

    for name in raw.get("architectures") or []:
        model_class = getattr(transformers, str(name), None)
        if isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel):
            return model_class.config_class
    raise WorkerError("unsupported", _unknown_type(model_type), "config.model_type")


def choose_dtype(order: Order, config: Any) -> torch.dtype:
    """The dtype the parameters are stored in."""
    if order.task == "training" and order.training.method == "qlora" and order.weights == "native":
        return _compute_dtype(order, config)
    if order.task == "training" and order.training.method in ("full", "freeze"):
        narrow = order.training.precision == "bf16" or (order.training.precision == "fp8" and order.weights != "fp32")
        return torch.bfloat16 if narrow else torch.float32
    name = order.weights
    if name in DTYPES:
        return DTYPES[name]
    if is_quantised(name) and (order.fake or _can_hold(order)):
        return _compute_dtype(order, config)
    if name == "native":
        return native_dtype(config, "quantization_config" in order.config)
    raise WorkerError(
        "unsupported",
        f"scenario.weights: {name!r} can be predicted only; choose bf16, fp16 or fp32, or rehearse {', '.join(FORMATS)}",
        "scenario.weights",
    )


def _can_hold(order: Order) -> bool:
    """Whether a measurement holds such weights: by bitsandbytes' own layers, frozen."""
    frozen = order.task == "inference" or order.training.method in ("lora", "qlora")
    return frozen and order.weights in bitsandbytes_real.FORMATS


def _compute_dtype(order: Order, config: Any) -> torch.dtype:
    """What a quantised model multiplies in: the precision of a training, else as the config declares it.

    bitsandbytes' quantisers leave the dtype as it is (transformers 5, ``quantizers/base.py`` ``update_dtype``), the others
    take 16 bit.
    """
    if order.task == "training":
        return {"fp32": torch.float32, "amp-fp16": torch.float16}.get(order.training.precision, torch.bfloat16)
    if order.weights in bitsandbytes_real.FORMATS:
        return native_dtype(config)
    declared = native_dtype(config, quantised=True)
    return declared if declared == torch.float16 else torch.bfloat16


def native_dtype(config: Any, quantised: bool = False) -> torch.dtype:
    """The dtype the config declares, else the library's default, fp32."""
    for part in (config, _text(config)):
        declared = getattr(part, "dtype", None) or getattr(part, "torch_dtype", None)
        if declared is not None:
            return DTYPES.get(declared, torch.float32) if isinstance(declared, str) else declared
    # A quantised checkpoint without a declared dtype computes in bf16 (transformers, quantizers, update_dtype).
    return torch.bfloat16 if quantised else torch.float32


def choose_class(config: Any, *, training: bool = True) -> Any:
    """The class the config names, else the first auto class that knows the config.

    BERT's checkpoints name their pre-training heads; but for training they are taken for the encoder, as embedders use them.
    """
    import transformers

    if not training and getattr(config, "model_type", "") == "bert" and _names_pretraining(config):
        return transformers.AutoModel._model_mapping[type(config)]
    for name in getattr(config, "architectures", None) or []:
        model_class = getattr(transformers, name, None)
        if isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel):
            return model_class
    both = getattr(config, "is_encoder_decoder", False)  # else BART would be its decoder alone
    for name in (*(_OF_TWO_STACKS if both else ()), *_AUTO_CLASSES):
        auto_class = getattr(transformers, name, None)
        if auto_class is not None and type(config) in auto_class._model_mapping:
            return auto_class._model_mapping[type(config)]
    raise WorkerError("unsupported", f"transformers {transformers.__version__} has no model class for {type(config).__name__}")


def _names_pretraining(config: Any) -> bool:
    return any(str(name).endswith(("ForMaskedLM", "ForPreTraining")) for name in getattr(config, "architectures", None) or [])


def materialise(model: nn.Module, make: Maker, entering: Callable[[str], None] = lambda _path: None) -> None:
    """Replace every meta parameter and every buffer by ``make(tensor)``; tied ones stay tied.

    ``entering`` hears the path of each module before its tensors are made.
    """
    # The old ones are kept until the end: by their ids ties are known.
    made: dict[int, tuple[Any, Any]] = {}
    for path, module in model.named_modules():
        entering(path)
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                if id(parameter) not in made:
                    # Not detached: on meta that is an operator, whose storage would be counted though no device holds it.
                    with torch.no_grad():
                        made[id(parameter)] = (parameter, _made_of(parameter, make(parameter)))
                module._parameters[name] = made[id(parameter)][1]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                if id(buffer) not in made:
                    made[id(buffer)] = (buffer, make(buffer))
                module._buffers[name] = made[id(buffer)][1]


def make_real(device: torch.device) -> Maker:
    """A maker of tensors with memory: generated values for meta tensors, a copy of the others."""
    pool = torch.randn(_POOL_ELEMENTS, generator=torch.Generator().manual_seed(0)).mul_(0.02)

    def make(tensor: torch.Tensor) -> torch.Tensor:
        made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        if tensor.device.type != "meta":
            with torch.no_grad():
                return made.copy_(tensor)
        _fill(made, pool)
        return made

    return make


def make_filler() -> Callable[[torch.Tensor], None]:
    """What fills a tensor with generated values, as :func:`make_real` does."""
    pool = torch.randn(_POOL_ELEMENTS, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    return lambda tensor: _fill(tensor, pool)


def make_fake(tensor: torch.Tensor) -> torch.Tensor:
    """A fake tensor of the same shape on the CPU; call inside the fake mode."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")


def random_ids(shape: tuple[int, int], built: Built, device: torch.device) -> torch.Tensor:
    """Token ids (int64) of ``shape``; random, so that routers spread them."""
    return torch.randint(0, built.vocabulary or 2, shape, dtype=torch.long, device=device)


def attention_of(built: Built) -> str:
    """The attention implementation the library chose."""
    return str(getattr(built.text_config, "_attn_implementation", None) or "eager")


def _fill(tensor: torch.Tensor, pool: torch.Tensor) -> None:
    if not tensor.is_floating_point():
        tensor.zero_()
    elif tensor.device.type == "cuda":
        tensor.normal_(0.0, 0.02)
    elif tensor.dim() < 2:
        tensor.fill_(1.0)
    else:
        *whole, rest = tensor.view(-1).split(_POOL_ELEMENTS)
        for part in whole:
            part.copy_(pool)
        rest.uniform_(-0.03, 0.03)


def _made_of(old: nn.Parameter, new: torch.Tensor) -> nn.Parameter:
    """A parameter with memory; of a quantised layer what its package packs it into."""
    pack: Callable[[torch.Tensor], nn.Parameter] | None = getattr(old, "pack", None)
    return pack(new) if pack is not None else _like_parameter(old, new)


def _like_parameter(old: nn.Parameter, new: torch.Tensor) -> nn.Parameter:
    parameter = nn.Parameter(new, requires_grad=old.requires_grad)
    for name, value in vars(old).items():
        setattr(parameter, name, value)
    return parameter


@contextmanager
def _without_memory(on_meta: bool) -> Iterator[None]:
    if on_meta:
        with torch.device("meta"):
            yield
        return
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None and parameter.device.type != "meta":
            module._parameters[name] = _like_parameter(parameter, parameter.detach().to("meta"))

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _instantiate(model_class: Any, config: Any, dtype: torch.dtype, attention: str) -> Any:
    if attention not in _ATTENTIONS:
        raise WorkerError("unsupported", f"attention {attention!r} is not one transformers has", "scenario.inference.attention")
    setattr(config, "dtype" if hasattr(config, "dtype") else "torch_dtype", dtype)
    kwargs: dict[str, Any] = {}
    # "sdpa" is what no choice settles to: the library's own default where a class, or a tower inside it, has it.
    if _ATTENTIONS[attention] is not None and attention != "sdpa":
        kwargs["attn_implementation"] = _ATTENTIONS[attention]
    return model_class._from_config(config, **kwargs)


def _keep_in_fp32(model: Any, dtype: torch.dtype) -> None:
    """Parameters ``from_pretrained`` loads in fp32 whatever is asked (modeling_utils: _keep_in_fp32_modules)."""
    patterns = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ()) if dtype != torch.float32 else set()
    if dtype == torch.float16:
        patterns |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    if not patterns:
        return
    matcher = re.compile("|".join(rf"((^|\.){pattern}($|\.))" for pattern in sorted(patterns)))
    for name, parameter in model.named_parameters():
        if matcher.search(name):
            parameter.data = parameter.data.to(torch.float32)


def _count_layers(config: Any) -> int | None:
    for part in (_text(config), config):
        for key in ("num_hidden_layers", *LAYER_KEYS):
            value = getattr(part, key, None)
            if isinstance(value, int):
                return value
    return None


def _text(config: Any) -> Any:
    getter = getattr(config, "get_text_config", None)
    return getter() if getter is not None else config


def _unknown_type(model_type: str) -> str:
    import transformers

    return (
        f"config.model_type: transformers {transformers.__version__} does not know {model_type!r}; "
        "a newer release may, or the model needs code of its own, which is never run"
    )


def _missing_package(error: ImportError, order: Order) -> WorkerError:
    if order.attention == "flash":
        message = "attention: flash needs flash-attn here: python -m pip install flash-attn, choose sdpa, or rehearse"
        return WorkerError("missing_package", message, "attention")
    name = getattr(error, "name", None)
    remedy = f"; install it with: python -m pip install {name}" if name else ""
    return WorkerError("missing_package", f"{_one_line(error)}{remedy}")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:400] or type(error).__name__
