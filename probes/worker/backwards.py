"""The backward of layers: that of traced ones is recorded, that of written ones repeats the record.

Backward begins at the last layer of a kind, which is traced. The nodes of the written ones repeat its record, and the first layers,
traced too, must have done the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .attribution import Attribution
from .calls import UNTRACKED, Rebuilder
from .kinds import Member
from .records import Asked, Backward, FoldError, Traced, Written, trained
from .segments import UNKNOWN, Name, Window, WindowSink, Writer
from .tracker import Storage, StorageTracker
from .trees import Tree, describe, rebuild, spec_of, tensors_in


@dataclass
class Open:
    """The window of a backward that runs."""

    traced: Traced
    window: Window
    key: Any
    asked: set[str]


class Backwards:
    """Follows the backward of one model's layers."""

    def __init__(self, tracker: StorageTracker, sink: WindowSink, attribution: Attribution, asked: Asked) -> None:
        self._tracker = tracker
        self._sink = sink
        self._attribution = attribution
        self._asked = asked
        self._open: Open | None = None
        self._known: dict[Any, Backward] = {}
        self._unconfirmed: set[Any] = set()
        self._waiting: dict[Any, list[Written]] = {}
        self._survivors: dict[int, Traced] = {}
        sink.between = self._died_between

    @property
    def is_open(self) -> bool:
        """Whether a traced layer's backward runs."""
        return self._open is not None

    def begin_phase(self) -> None:
        """What was known is of another phase."""
        self._known.clear()

    def end_phase(self, name: str) -> None:
        """Raises :class:`FoldError` where what was written was not confirmed."""
        self.close(None)
        if self._unconfirmed or (name == "backward" and any(self._waiting.values())):
            raise FoldError("backward")
        if name == "backward":
            self._survivors.clear()

    def follow(self, traced: Traced) -> None:
        """A call was traced that takes part in the graph."""
        left = (ident for ident, name in traced.names.items() if name[0] == "forward" and name != traced.out_name)
        self._survivors |= dict.fromkeys(left, traced)

    def wait_for(self, written: Written) -> None:
        """A call was written that takes part in the graph."""
        self._waiting.setdefault(written.call_key, []).append(written)

    def begin(self, traced: Traced, gradient: torch.Tensor | None) -> None:
        """The gradient of a traced call's result is there."""
        self.close(gradient)
        if gradient is None:
            return
        names = {ident: name for ident, name in traced.names.items() if name[0] != "slot"}
        names[traced.input.ident] = ("input",)
        before = self._gradients(traced.member, names)
        entry = self._tracker.entry_of(gradient)
        if entry is not None:
            names[entry.ident] = ("gradient",)
        window = Window("backward", traced.member.path, names)
        self._open = Open(traced, window, (traced.key, before, spec_of(gradient)), self._asked.names())
        self._sink.window = window

    def end(self, traced: Traced | None, gradient: torch.Tensor | None) -> None:
        """The gradient of a traced call's input is there."""
        if self._open is not None and self._open.traced is traced:
            self.close(gradient)

    def close(self, gradient: torch.Tensor | None) -> None:
        """The backward that runs ends with the gradient of its input, or with the phase."""
        if self._open is None:
            return
        done, self._open, self._sink.window = self._open, None, None
        record = self._recorded(done, gradient) if gradient is not None else None
        if record is None:
            return
        known = self._known.setdefault(done.key, record)
        if known is not record and known == record:
            self._unconfirmed.discard(done.key)

    def undo(self, written: Written, gradient: torch.Tensor) -> torch.Tensor:
        """Write the backward of a written layer. Returns the gradient of its input."""
        self.close(gradient)
        self._waiting[written.call_key].remove(written)
        storages, tensors = written.storages, {("gradient",): gradient}
        names: dict[int, Name] = {}
        before = self._gradients(written.member, names, storages, tensors)
        entry = self._tracker.entry_of(gradient)
        key = (written.call_key, before, spec_of(gradient))
        record = self._known.get(key)
        if record is None or entry is None:
            raise FoldError("backward")
        self._unconfirmed.add(key)
        storages["gradient",] = entry
        Writer(self._tracker, self._attribution, written.member.path, storages).write("backward", record.events)
        self._asked.repeat(record.asked, written.member.path)
        if any(name[0] == "forward" for name in storages):
            raise FoldError("backward")
        written.keeps.clear()
        return self._write_gradients(written.member, record, Rebuilder(self._tracker, storages, tensors))

    def _write_gradients(self, member: Member, record: Backward, tensor_of: Rebuilder) -> torch.Tensor:
        with self._tracker.paused():
            for parameter, tree in zip(trained(member), record.gradients, strict=True):
                made = rebuild(tree, tensor_of)
                if made is not parameter.grad:
                    parameter.grad = made
            passed: torch.Tensor = rebuild(record.gradient, tensor_of)
        return passed

    def _recorded(self, done: Open, gradient: torch.Tensor) -> Backward | None:
        """What the backward did, None where it could not be said of another layer."""
        traced, window = done.traced, done.window
        self._survivors = {ident: other for ident, other in self._survivors.items() if other is not traced}

        def name_of(tensor: torch.Tensor) -> Name:
            entry = self._tracker.entry_of(tensor)
            return UNTRACKED if entry is None else window.names.get(entry.ident, UNKNOWN)

        passed = describe(gradient, name_of)
        gradients = tuple(describe(parameter.grad, name_of) for parameter in trained(traced.member))
        reachable = {leaf[1] for tree in (passed, *gradients) for leaf in tensors_in(tree)}
        left = {name for name in window.names.values() if name[0] in ("forward", "backward")} - reachable - {traced.out_name}
        whole = (
            window.is_closed
            and not left
            and not reachable & {UNKNOWN, UNTRACKED}
            and ("f", traced.out_name) not in window.events
            and (("f", ("input",)) in window.events) == (("input",) in traced.record.kept)
        )
        asked = self._asked.since(done.asked, traced.member.path)
        return Backward(tuple(window.events), passed, gradients, asked) if whole else None

    def _gradients(
        self,
        member: Member,
        names: dict[int, Name],
        storages: dict[Name, Storage] | None = None,
        tensors: dict[Name, torch.Tensor] | None = None,
    ) -> tuple[Tree, ...]:
        """The gradients that the layer's parameters have; their storages are named."""

        def name_of(tensor: torch.Tensor) -> Name:
            entry = self._tracker.entry_of(tensor)
            if entry is None:
                return UNTRACKED
            name = names.setdefault(entry.ident, ("accumulated", number))
            if storages is not None and tensors is not None:
                storages[name] = entry
                tensors[name] = tensor
            return name

        trees = []
        for number, parameter in enumerate(trained(member)):  # noqa: B007  name_of reads it
            trees.append(describe(parameter.grad, name_of))
        return tuple(trees)

    def _died_between(self, ident: int) -> None:
        """What a traced layer made dies outside of layers, such as casts at the end of autocast: so it does for written ones."""
        traced = self._survivors.pop(ident, None)
        if traced is None:
            return
        name = traced.names.pop(ident)
        for written in self._waiting.get(traced.key, ()):
            entry = written.storages.pop(name, None)
            if entry is not None:
                self._tracker.bury(entry)


class Node(torch.autograd.Function):
    """The node of a written layer. Gradients come to its first result only."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, undo: Undo, written: Written, make: Callable[[], Any]) -> Any:
        """The results that ``make`` makes."""
        ctx.undo, ctx.written = undo, written
        ctx.set_materialize_grads(False)
        return make()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor, None, None, None]:
        """The gradient of ``hidden``."""
        gradient, *beside = gradients
        if gradient is None or any(other is not None for other in beside):
            raise FoldError("backward")
        return ctx.undo(ctx.written, gradient), None, None, None


Undo = Callable[[Written, torch.Tensor], torch.Tensor]
