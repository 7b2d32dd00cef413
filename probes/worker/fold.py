"""Layers that repeat: a few of each kind are traced, and what the others would do is written down from them.

A fake tensor has no values, so what a layer does to memory follows from its kind (:mod:`.kinds`) and from the shapes, strides
and states it is given. In every pass through a list of layers, calls with equal givens are traced until two in a row did the same.
The next ones are written from that record: births and deaths in their order with storages of their own, and tensors where later
code will look for them (the output, the cache, gradients). The last layer of every kind is traced again and must do the same.

In training a written layer leaves one node in the graph. Backward begins at the last layer of a kind, which is traced, the nodes
of the written ones repeat its record, and the first layers, traced again, must have done the same.

Anything else raises :class:`FoldError`, upon which the rehearsal starts again and traces every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from .attribution import Attribution
from .backwards import Backwards, Node
from .calls import UNTRACKED, Call, Rebuilder
from .kinds import Member, members_of
from .records import Asked, FoldError, Forward, Traced, Written
from .segments import UNKNOWN, Window, WindowSink, Writer
from .tracker import StorageTracker
from .trees import can_rebuild, describe, rebuild, tensors_in


@dataclass
class Pass:
    """One pass through a list of layers."""

    index: int = -1
    seen: dict[Any, Forward] = field(default_factory=dict)
    known: dict[Any, Forward] = field(default_factory=dict)
    unconfirmed: set[Any] = field(default_factory=set)


class Folder:
    """Follows the layers of one model; also a listener of phases."""

    def __init__(self, tracker: StorageTracker, sink: WindowSink, attribution: Attribution, asked: dict[str, int]) -> None:
        self._tracker = tracker
        self._sink = sink
        self._attribution = attribution
        self._asked = Asked(asked)
        self._backwards = Backwards(tracker, sink, attribution, self._asked)
        self._model: nn.Module | None = None
        self._members: dict[int, Member] = {}
        self._passes: dict[int, Pass] = {}
        self._unsettled: list[Traced] = []
        self._busy = False
        self._phase = "load"
        self.written_calls = 0

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Follow the layers of ``model`` from the next phase on. Raises :class:`FoldError` inside."""
        self._model = model
        try:
            yield
        finally:
            for member in self._members.values():
                member.layer.__class__ = type(member.layer).__mro__[2]

    def _follow(self) -> None:
        """Not before the first phase with layers begins: until then settings may change."""
        assert self._model is not None
        self._members = {id(member.layer): member for member in members_of(self._model)}
        followed = {of: self._followed(of) for of in {type(member.layer) for member in self._members.values()}}
        for member in self._members.values():
            member.layer.__class__ = followed[type(member.layer)]
        self._model = None

    def phase(self, name: str, state: str, step: int) -> None:
        """A phase begins or ends."""
        self._phase = name
        if state == "begin":
            self._backwards.begin_phase()
            if self._model is not None:
                self._follow()
            return
        self._settle()
        for group in list(self._passes):
            self._end_pass(group)
        self._backwards.end_phase(name)

    def _followed(self, of: type[nn.Module]) -> type[nn.Module]:
        def call(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self._called(layer, of.__call__, args, kwargs)

        body = {"__call__": call, "__module__": of.__module__, "__qualname__": of.__qualname__}
        return type(of.__name__, (_Quiet, of), body)

    def _called(self, layer: nn.Module, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        member = self._members[id(layer)]
        if self._busy or self._backwards.is_open or self._phase == "backward":
            return run(layer, *args, **kwargs)
        self._settle()
        this = self._enter_pass(member)
        call = Call(member, args, kwargs, self._tracker)
        if not call.plain:
            return run(layer, *args, **kwargs)
        record = None if member.last else this.known.get(call.key)
        if record is not None:
            this.unconfirmed.add(call.key)
            return self._write(call, record)
        return self._trace(call, lambda: run(layer, *args, **kwargs))

    def _enter_pass(self, member: Member) -> Pass:
        """A list's first layer, or one called again, begins a new pass."""
        this = self._passes.get(member.group)
        if this is None or member.index <= this.index:
            self._end_pass(member.group)
            this = self._passes[member.group] = Pass()
        this.index = member.index
        return this

    def _end_pass(self, group: int) -> None:
        this = self._passes.pop(group, None)
        if this is not None and this.unconfirmed:
            raise FoldError("forward")

    def _trace(self, call: Call, run: Callable[[], Any]) -> Any:
        traced: list[Traced] = []
        if call.hidden is not None and call.hidden.grad_fn is not None:
            number = call.hidden.output_nr
            call.hidden.grad_fn.register_prehook(lambda gradients: self._end_backward(traced, gradients[number]))
        window = Window("forward", call.member.path, call.names)
        before = self._asked.names()
        call.tensors.clear()
        self._sink.window, self._busy = window, True
        try:
            out = run()
        finally:
            self._sink.window, self._busy = None, False
        record = self._recorded(call, window, out, self._asked.since(before, call.member.path))
        if record is None:
            return out
        if call.hidden is None:
            self._compare(call.member.group, call.key, record)
        else:
            traced += self._follow_graph(call, record, out)
        return out

    def _recorded(self, call: Call, window: Window, out: Any, asked: frozenset[tuple[bool, str]]) -> Forward | None:
        """What the call did, None where it could not be said of another layer."""
        result = describe(out, call.name_of)
        before, after = dict(call.before), dict(call.state.read(call.name_of))
        changes = tuple((place, tree) for place, tree in after.items() if before.get(place) != tree)
        told = [result, *(tree for _, tree in changes)]
        leaves = [leaf for tree in told for leaf in tensors_in(tree)]
        reachable = {leaf[1] for leaf in leaves}
        born = {name for name in window.names.values() if name[0] == "forward"}
        flows = [leaf for leaf in leaves if leaf[2][5]]
        whole = (
            window.is_closed
            and before.keys() <= after.keys()
            and {holder for holder, _ in after} <= {holder for holder, _ in before}
            and all(map(can_rebuild, told))
            and UNKNOWN not in reachable
            and not any(leaf[1] == UNTRACKED and leaf[2][4] for leaf in leaves)
            and (not flows and born <= reachable if call.hidden is None else bool(flows) and flows[0][1] in born)
        )
        return Forward(tuple(window.events), result, changes, asked) if whole else None

    def _follow_graph(self, call: Call, record: Forward, out: Any) -> Iterator[Traced]:
        flow, *beside = (leaf[1] for leaf in tensors_in(record.out) if leaf[2][5])
        entry = self._tracker.entry_of(call.hidden) if call.hidden is not None else None
        result = next(_flows(out))
        if entry is None or result.grad_fn is None:
            return
        entries = {call.name_of(tensor): self._tracker.entry_of(tensor) for tensor in _flows(out)}
        others = {name: other for name in beside if (other := entries.get(name)) is not None}
        traced = Traced(call.member, call.key, call.names, flow, entry, others, record)
        number = result.output_nr
        result.grad_fn.register_prehook(lambda gradients: self._begin_backward(traced, gradients[number]))
        self._unsettled.append(traced)
        self._backwards.follow(traced)
        yield traced

    def _begin_backward(self, traced: Traced, gradient: torch.Tensor | None) -> None:
        self._settle()
        self._backwards.begin(traced, gradient)

    def _end_backward(self, traced: list[Traced], gradient: torch.Tensor | None) -> None:
        if traced:
            self._backwards.end(traced[0], gradient)

    def _undo(self, written: Written, gradient: torch.Tensor) -> torch.Tensor:
        self._settle()
        return self._backwards.undo(written, gradient)

    def _settle(self) -> None:
        """The layer before has returned: an input that still lives is kept by the graph."""
        for traced in self._unsettled:
            held = traced.beside | {("input",): traced.input}
            kept = frozenset(name for name, entry in held.items() if self._tracker.is_live(entry))
            traced.record = replace(traced.record, kept=kept)
            self._compare(traced.member.group, traced.key, traced.record)
        self._unsettled.clear()

    def _compare(self, group: int, key: Any, record: Forward) -> None:
        this = self._passes[group]
        known = this.known.get(key)
        if known is None:
            if this.seen.get(key) == record:
                this.known[key] = record
            this.seen[key] = record
        elif known == record:
            this.unconfirmed.discard(key)

    def _write(self, call: Call, record: Forward) -> Any:
        self.written_calls += 1
        module = self._attribution.module
        writer = Writer(self._tracker, self._attribution, call.member.path, call.storages)
        writer.write("forward", record.events)
        self._attribution.module = module
        self._asked.repeat(record.asked, call.member.path)
        tensor_of = Rebuilder(self._tracker, call.storages, call.tensors)
        with self._tracker.paused():
            for place, tree in record.changes:
                call.state.write(place, rebuild(tree, tensor_of))
            if call.hidden is None:
                return rebuild(record.out, tensor_of)
            return self._write_node(call, record, tensor_of)

    def _write_node(self, call: Call, record: Forward, tensor_of: Rebuilder) -> Any:
        hidden = call.hidden
        assert hidden is not None
        entry = self._tracker.entry_of(hidden)
        assert entry is not None
        flows = [leaf[1:] for leaf in tensors_in(record.out) if leaf[2][5]]
        loose = {name for name, _ in flows} - record.kept
        storages = {name: known for name, known in call.storages.items() if name[0] == "forward" and name not in loose}
        written = Written(call.key, call.member, storages | {("input",): entry}, [])
        self._backwards.wait_for(written)
        made: Any = iter(Node.apply(hidden, self._undo, written, lambda: tuple(tensor_of(*flow) for flow in flows)))
        out = rebuild(record.out, lambda name, spec: next(made) if spec[5] else tensor_of(name, spec))
        kept = {name: tensor for (name, _), tensor in zip(flows, _flows(out), strict=True)} | {("input",): hidden}
        written.keeps = [kept[name].untyped_storage() for name in record.kept]
        return out


class _Quiet:
    """Keeps classes that watch their subclasses from hearing of a followed one."""

    def __init_subclass__(cls, **_kwargs: Any) -> None:
        pass


def _flows(value: Any) -> Iterator[torch.Tensor]:
    return (tensor for tensor in _tensors(value) if tensor.requires_grad)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


__all__ = ["FoldError", "Folder"]
