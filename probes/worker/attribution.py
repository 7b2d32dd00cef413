"""Which component and which module a new storage belongs to.

The component follows from where it is made: in which phase, inside which module, and what happens to it later (it
becomes a gradient, a cache, an optimizer state, or outlives the layer that made it). In a backward the module is found by
a hook on the autograd node of every module's output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as nn_module

from .tracker import COMPONENT_INDEX, StorageTracker

WEIGHTS = COMPONENT_INDEX["weights"]
ACTIVATIONS = COMPONENT_INDEX["activations"]
LOGITS = COMPONENT_INDEX["logits"]
WORKSPACE = COMPONENT_INDEX["workspace"]
GRADIENTS = COMPONENT_INDEX["gradients"]
OPTIMIZER_STATE = COMPONENT_INDEX["optimizer_state"]
KV_CACHE = COMPONENT_INDEX["kv_cache"]
RECURRENT_STATE = COMPONENT_INDEX["recurrent_state"]
ADAPTERS = COMPONENT_INDEX["adapters"]
QUANTIZATION_STATE = COMPONENT_INDEX["quantization_state"]
MASTER_WEIGHTS = COMPONENT_INDEX["master_weights"]
COMMUNICATION = COMPONENT_INDEX["communication"]
OTHER_MODELS = COMPONENT_INDEX["other_models"]


_MODULE = "module"
_TO_COPY = torch.ops.aten._to_copy.default


class Attribution:
    """The labeller of a :class:`StorageTracker`: keeps the phase and the module that runs."""

    def __init__(self) -> None:
        self.tracker: StorageTracker | None = None
        self.plays_cuda = False
        self.phase = "load"
        self.module = ""
        self._names: dict[int, str] = {}
        self._blocks: set[int] = set()
        self._stack: list[str] = []
        self._vocabulary: int | None = None
        self._head = ""
        self._block: int | None = None
        self._block_born: list[tuple[int, int]] = []
        self._master_shapes: set[tuple[int, ...]] = set()
        self._communicates = False

    def component_of(self, func: Any, tensor: torch.Tensor, key: int) -> int:
        """See :class:`probes.worker.tracker.Labeller`."""
        phase = self.phase
        if func is _TO_COPY and phase == "forward" and tuple(tensor.shape) in self._master_shapes:
            return WEIGHTS
        if phase == "load" or self._communicates:
            return COMMUNICATION if self._communicates else WEIGHTS
        if phase == "optimizer":
            return WORKSPACE
        if self._block is None and self._is_logits(tensor.shape):
            return LOGITS
        if torch.is_grad_enabled() or (self._block is None and phase != "backward"):
            return ACTIVATIONS
        if phase != "backward" and self.tracker is not None:
            self._block_born.append((key, self.tracker.next_ident))
        return WORKSPACE

    def _is_logits(self, shape: torch.Size) -> bool:
        return len(shape) > 1 and shape[-1] == self._vocabulary

    def place_of(self, component: int) -> str:
        """The path of the module that something made now belongs to; logits belong to the head, wherever the loss is."""
        return self._head or self.module if component == LOGITS else self.module

    def enter_phase(self, name: str) -> None:
        """A phase begins: no module runs."""
        self.phase = name
        self.module = ""
        self._stack.clear()
        self._block = None

    @contextmanager
    def communicating(self) -> Iterator[None]:
        """What is made inside is for other ranks."""
        self._communicates = True
        try:
            yield
        finally:
            self._communicates = False

    def enter_module(self, path: str) -> None:
        """What is made from now on belongs to the module at ``path``."""
        self.module = path

    @contextmanager
    def watching(self, model: nn.Module, vocabulary: int | None, other: nn.Module | None = None) -> Iterator[None]:
        """Follow the model's modules while they run, and those of another. ``vocabulary``: the last dimension of logits."""
        self._vocabulary = vocabulary
        find_head: Any = getattr(model, "get_output_embeddings", None)
        head = find_head() if find_head is not None else None
        self._head = next((name for name, module in model.named_modules() if module is head), "") if head is not None else ""
        self._names = {id(module): name for name, module in model.named_modules()}
        self._blocks = set(_blocks(model))
        if other is not None:
            self._names |= {id(module): f"reference.{name}" for name, module in other.named_modules()}
            self._blocks |= set(_blocks(other))
        handles = [
            nn_module.register_module_forward_pre_hook(self._enter),
            nn_module.register_module_forward_hook(self._leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def watch_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Label each gradient the moment it is accumulated."""
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._label_gradient)

    def watch_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Label optimizer states the moment they are made.

        Where a CUDA device is played, step counts are in host memory unless the optimizer is fused or capturable
        (torch/optim/adamw.py, _init_group).
        """
        optimizer.register_step_post_hook(lambda *_args: self.label_states(optimizer))
        make = getattr(optimizer, "_init_group", None)
        if make is None:
            return

        def init_group(group: Any, *args: Any, **kwargs: Any) -> Any:
            made = make(group, *args, **kwargs)
            self.label_states(optimizer)
            if self.plays_cuda and not group.get("fused") and not group.get("capturable"):
                self._forget_steps(optimizer)
            return made

        optimizer._init_group = init_group  # type: ignore[attr-defined]

    def _forget_steps(self, optimizer: torch.optim.Optimizer) -> None:
        assert self.tracker is not None
        for state in optimizer.state.values():
            if isinstance(state.get("step"), torch.Tensor):
                self.tracker.forget(state["step"])

    def label_states(self, optimizer: torch.optim.Optimizer) -> None:
        """Label every tensor of the optimizer's state."""
        for state in optimizer.state.values():
            self.label(tensors_of(state.values()), OPTIMIZER_STATE)

    def label(self, tensors: Iterable[torch.Tensor], component: int) -> None:
        """Label the tensors' storages."""
        assert self.tracker is not None
        for tensor in tensors:
            self.tracker.label(tensor, component)

    def master_weights(self, parameters: Iterable[torch.Tensor]) -> None:
        """These are fp32 masters; 16-bit casts of them are what the model computes with: weights."""
        for parameter in parameters:
            self.label([parameter], MASTER_WEIGHTS)
            self._master_shapes.add(tuple(parameter.shape))

    def _label_gradient(self, parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            self.label([parameter.grad], GRADIENTS)

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._stack.append(self.module)
        key = id(module)
        self.module = self._names.get(key, self.module)
        if key in self._blocks and self._block is None:
            self._block = key
            self._block_born = []

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if id(module) == self._block:
            self._close_block()
        self._hook_backward(output, self.module)
        self.module = self._stack.pop() if self._stack else ""

    def _close_block(self) -> None:
        """What outlives its layer is an activation."""
        assert self.tracker is not None
        self._block = None
        for key, ident in self._block_born:
            self.tracker.relabel(key, ident, WORKSPACE, ACTIVATIONS)
        self._block_born = []

    def _hook_backward(self, output: Any, name: str) -> None:
        for tensor in tensors_of([output]):
            if tensor.grad_fn is not None:
                # The innermost module that returned it: a layer's last part, not the layer.
                known: Any = tensor.grad_fn.metadata
                if _MODULE not in known:
                    known[_MODULE] = name
                    tensor.grad_fn.register_prehook(self._in_backward(name))
                return

    def _in_backward(self, name: str) -> Callable[[Any], None]:
        def prehook(_gradients: Any) -> None:
            self._stack.clear()
            self._block = None
            self.module = name

        return prehook


def tensors_of(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Tensors among the values, in nested lists, tuples and dicts too."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            yield from tensors_of(value.values())
        elif isinstance(value, (list, tuple)):
            yield from tensors_of(value)


def _blocks(model: nn.Module) -> Iterator[int]:
    """Ids of the modules that repeat: members of module lists that have parts of their own."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            yield from (id(child) for child in module if next(child.children(), None) is not None)
