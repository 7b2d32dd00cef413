"""What a rank does to its model: DDP, FSDP2 or tensor parallel through DTensor.

DDP holds everything on every rank (Li et al. 2020); FSDP2 keeps a shard of each parameter and gathers a layer at a time
(torch.distributed.fsdp.fully_shard); tensor parallel splits the projections by the plan that transformers has for the model.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from .attribution import WEIGHTS, Attribution
from .errors import WorkerError
from .parallel import Layout, unsupported, world
from .tracker import StorageTracker, held_by


def join(device: str) -> str:
    """Meet the other ranks (NCCL on cards, gloo on CPUs); returns this rank's own device."""
    if device == "cpu":
        torch.distributed.init_process_group("gloo")
        return device
    own = f"cuda:{int(device.partition(':')[2] or 0) + int(os.environ.get('LOCAL_RANK', '0'))}"
    if int(own.partition(":")[2]) >= torch.cuda.device_count():
        raise WorkerError("no_device", f"{own}: this machine has {torch.cuda.device_count()} CUDA devices", "device")
    torch.cuda.set_device(own)
    torch.distributed.init_process_group("nccl")
    return own


def split(model: Any, layout: Layout, device: torch.device, precision: str) -> None:
    """Split a model that is on meta, in place."""
    if layout.kind == "ddp":
        return
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device.type, (layout.ranks,))
    if layout.kind == "tensor":
        _split_tensors(model, mesh)
    else:
        _shard(model, mesh, precision)


def place(model: Any, device: torch.device, fill: Callable[[torch.Tensor], None]) -> None:
    """Give the split model memory: every rank its own part, with generated values. Ties stay."""

    def move(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device)

    model._apply(move)
    model.tie_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            fill(held_by(parameter))


class Replica(nn.parallel.DistributedDataParallel):
    """DDP whose buckets are known as such: it makes them at its start and anew before its second forward."""

    def __init__(self, model: Any, attribution: Attribution | None) -> None:
        self._communicating = attribution.communicating if attribution is not None else contextlib.nullcontext
        with self._communicating():
            super().__init__(model)

    def _pre_forward(self, *inputs: Any, **kwargs: Any) -> Any:
        with self._communicating():
            return super()._pre_forward(*inputs, **kwargs)


def replicate(model: Any, layout: Layout | None, attribution: Attribution | None) -> Any:
    """What is called in place of the model: DDP's wrapper under DDP, else the model."""
    return model if layout is None or layout.kind != "ddp" else Replica(model, attribution)


@contextlib.contextmanager
def following_shards(tracker: StorageTracker) -> Iterator[None]:
    """FSDP2 empties and fills the storages of gathered parameters beside all operators (_fsdp_param.py, free_storage)."""
    if world() == 1:
        yield
        return
    from torch.distributed.fsdp._fully_shard import _fsdp_param, _fsdp_param_group

    def watched(change: Callable[[torch.Tensor], None]) -> Callable[[torch.Tensor], None]:
        def call(tensor: torch.Tensor) -> None:
            change(tensor)
            tracker.look(tensor, change.__name__)
            tracker.label(tensor, WEIGHTS)

        return call

    with contextlib.ExitStack() as stack:
        for module in (_fsdp_param, _fsdp_param_group):
            for name in ("alloc_storage", "free_storage"):
                if hasattr(module, name):
                    stack.callback(setattr, module, name, getattr(module, name))
                    setattr(module, name, watched(getattr(module, name)))
        yield


def _shard(model: Any, mesh: Any, precision: str) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    amp = {"amp-bf16": torch.bfloat16, "amp-fp16": torch.float16}.get(precision)
    policy = MixedPrecisionPolicy(param_dtype=amp)
    names = set(getattr(model, "_no_split_modules", None) or ())
    for module in list(model.modules()):
        if type(module).__name__ in names:
            fully_shard(module, mesh=mesh, mp_policy=policy)
    for ends, reshards in _ends(model):
        fully_shard(ends, mesh=mesh, mp_policy=policy, reshard_after_forward=reshards)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def _ends(model: Any) -> list[tuple[Any, bool]]:
    """Embedding, and final norm with head, as accelerate 1.15 wraps them (``fsdp2_prepare_model``); tied ones are the root's."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or embedding is None or head.weight is embedding.weight:
        return []
    base = getattr(model, getattr(model, "base_model_prefix", "") or "", model)
    norms = [module for module in base.children() if "Norm" in type(module).__name__]
    return [(embedding, True), ([*norms[-1:], head], False)]


def _split_tensors(model: Any, mesh: Any) -> None:
    from torch.distributed.tensor.parallel import parallelize_module

    told = plan_of(model)
    if not told:
        raise unsupported("tensor", f"transformers has no tensor-parallel plan for {type(model).__name__}")
    for name, module in list(model.named_modules()):
        style = next((told[pattern] for pattern in told if fnmatch.fnmatchcase(name, pattern)), None)
        if style is not None:
            parallelize_module(module, mesh, _style(style))


def plan_of(model: Any) -> dict[str, str]:
    """The model's tensor-parallel plan by pattern of module paths, as transformers declares it."""
    base = getattr(model, "base_model_prefix", "")
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    below = getattr(config, "base_model_tp_plan", None) or {}
    prefix = f"{base}." if base and hasattr(model, base) else ""
    return {prefix + name: style for name, style in below.items()} | dict(getattr(type(model), "_tp_plan", None) or {})


def _style(name: str) -> Any:
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

    if name == "colwise":
        return ColwiseParallel()
    if name == "rowwise":
        return RowwiseParallel()
    if name in ("colwise_rep", "colwise_gather_output"):
        return ColwiseParallel(output_layouts=Replicate())
    raise unsupported("tensor", f"the model's plan splits a part {name!r}, which DTensor's own styles do not have")
