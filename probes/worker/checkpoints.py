"""Gradient checkpointing as a scenario asks for it: whole layers or every n-th, parts of layers, operators that are not run again.

``checkpoint_modules``: what of a layer is computed again; ``checkpoint_saves``: operators whose results are kept all the same
(torch's selective activation checkpointing); ``checkpoint_offload``: the layers' inputs wait in pinned host memory.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from .errors import WorkerError
from .order import Training

SELECTIVE_EVERY = 2
"""Selective checkpointing recomputes every second layer unless another option says what it recomputes."""
_FIELD = "scenario.training.checkpointing"
_OPTIONS = "scenario.training.engine_options"
PARTS = {"attention": ("attn", "attention"), "mlp": ("mlp", "feed_forward", "ffn", "block_sparse_moe")}
"""How modules of a layer are named: by what their names contain."""
aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.addmm.default)
OPERATORS = {
    "mm": PRODUCTS,
    "mm/2": PRODUCTS,
    "attention": (
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
    ),
}


def enable_checkpointing(model: Any, workload: Training, fake: bool) -> None:
    """Let the model's layers compute again in the backward. Raises :class:`WorkerError` for what it cannot do."""
    kind, options = workload.checkpointing, workload.options
    if kind == "none":
        return
    if not getattr(model, "supports_gradient_checkpointing", True):
        raise WorkerError("unsupported", f"{_FIELD}: {type(model).__name__} has none; choose none", _FIELD)
    part = str(options.get("checkpoint_modules", "layers")) if kind == "selective" else "layers"
    if part != "layers":
        _checkpoint_parts(model, part)
        return
    _enable_layers(model, options, kind, fake)


def _enable_layers(model: Any, options: Mapping[str, Any], kind: str, fake: bool) -> None:
    saves = _names(options.get("checkpoint_saves", "")) if kind == "selective" else ()
    every = int(options.get("checkpoint_every", 1 if saves else SELECTIVE_EVERY)) if kind == "selective" else 1
    reentrant = bool(options.get("use_reentrant", False))
    # The random state only matters with dropout and is kept in host memory.
    kwargs: dict[str, Any] = {"use_reentrant": reentrant, "preserve_rng_state": False}
    if saves:
        kwargs["context_fn"] = _keeping(saves, reentrant)
    offload = bool(options.get("checkpoint_offload", False))
    more = {"offload": True} if offload and not fake else {}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(kwargs, every_n_layers=every, **more)
    elif every == 1 and not more:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    else:
        message = f"{_FIELD}: this transformers checkpoints all layers or none, on the device; choose full"
        raise WorkerError("unsupported", message, _FIELD)
    if offload and fake:
        _play_offloading(model, kwargs)
    if reentrant:
        model.enable_input_require_grads()


def _names(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(part.strip() for part in parts if part.strip())


def _keeping(saves: tuple[str, ...], reentrant: bool) -> Callable[[], Any]:
    """The contexts of a checkpoint that keeps the results of the named operators."""
    unknown = [name for name in saves if name not in OPERATORS]
    if unknown or reentrant:
        reason = "needs use_reentrant off" if not unknown else f"{', '.join(unknown)}: choose of {', '.join(OPERATORS)}"
        raise WorkerError("bad_order", f"{_OPTIONS}.checkpoint_saves: {reason}", f"{_OPTIONS}.checkpoint_saves")
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    if "mm/2" in saves:
        every = {op for name in saves if name != "mm/2" for op in OPERATORS[name]}
        return lambda: create_selective_checkpoint_contexts(_every_second(every))
    return functools.partial(create_selective_checkpoint_contexts, [op for name in saves for op in OPERATORS[name]])


def _every_second(every: set[Any]) -> Callable[..., Any]:
    """torchtitan's policy: of matrix products the first is kept and then every second one, counted anew in each run."""
    from torch.utils.checkpoint import CheckpointPolicy

    counts = {False: 0, True: 0}

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        kept = op in every
        if op in PRODUCTS:
            counts[context.is_recompute] += 1
            kept = kept or counts[context.is_recompute] % 2 == 1
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    return policy


def _checkpoint_parts(model: nn.Module, part: str) -> None:
    """Each layer's attention or feed-forward block runs again by itself."""
    found = list(_parts(model, part))
    if not found:
        message = f"{_OPTIONS}.checkpoint_modules: {type(model).__name__} has no modules known as {part}; choose layers"
        raise WorkerError("unsupported", message, f"{_OPTIONS}.checkpoint_modules")
    for module in found:
        again: Any = functools.partial(checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False)
        module.forward = again


def _parts(model: nn.Module, part: str) -> Iterator[nn.Module]:
    for layers in model.modules():
        if not isinstance(layers, nn.ModuleList):
            continue
        for layer in layers:
            for name, child in layer.named_children():
                if any(known in name for known in PARTS[part]) and "norm" not in name and "ln" not in name:
                    yield child


def _play_offloading(model: nn.Module, kwargs: Mapping[str, Any]) -> None:
    """What a checkpoint saves leaves the device, and comes back in a tensor of its own (torch's save_on_cpu)."""

    def offloaded(function: Any, *args: Any, **more: Any) -> Any:
        with saved_tensors_hooks(_leave, _come_back):
            return checkpoint(function, *args, **more)

    for module in model.modules():
        if hasattr(module, "_gradient_checkpointing_func"):
            replaced: Any = functools.partial(offloaded, **kwargs)
            module._gradient_checkpointing_func = replaced


def _leave(tensor: torch.Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.size(), tensor.dtype, tensor.device


def _come_back(packed: tuple[torch.Size, torch.dtype, torch.device]) -> torch.Tensor:
    size, dtype, device = packed
    return torch.empty(size, dtype=dtype, device=device)


@contextlib.contextmanager
def without_checkpointing(model: nn.Module) -> Iterator[None]:
    """TRL's trainers turn checkpointing off where they generate or score without gradients."""
    found = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    for module in found:
        module.gradient_checkpointing = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in found:
            module.gradient_checkpointing = True  # type: ignore[assignment]
