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
from .calls import UNTRACKED, Call, Rebuilder
from .kinds import Member, members_of
from .segments import UNKNOWN, Entry, Name, Window, WindowSink, Writer
from .tracker import Storage, StorageTracker
from .trees import Tree, can_rebuild, describe, rebuild, spec_of, tensors_in


class FoldError(Exception):
    """Layers were written from a record that the layers after them did not confirm."""


@dataclass(frozen=True)
class Forward:
    """What a call did: events, its result, the cache entries it changed, and what of its input and results the graph keeps.

    Of several results that require gradients only the first may be used; the others are such as attention scores.
    """

    events: tuple[Entry, ...]
    out: Tree
    changes: tuple[tuple[tuple[int, Any], Tree], ...]
    asked: frozenset[Any]
    kept: frozenset[Name] = frozenset()


@dataclass(frozen=True)
class Backward:
    """What its backward did: events, the gradient it passes on, and the gradients its parameters then have."""

    events: tuple[Entry, ...]
    gradient: Tree
    gradients: tuple[Tree, ...]
    asked: frozenset[Any]


@dataclass
class Pass:
    """One pass through a list of layers."""

    index: int = -1
    seen: dict[Any, Forward] = field(default_factory=dict)
    known: dict[Any, Forward] = field(default_factory=dict)
    unconfirmed: set[Any] = field(default_factory=set)


@dataclass
class Traced:
    """A traced call that takes part in a graph: what its backward is recognised by. It holds no tensors."""

    member: Member
    key: Any
    names: dict[int, Name]
    out_name: Name
    input: Storage
    beside: dict[Name, Storage]
    record: Forward


@dataclass
class Open:
    """The window of a backward that runs."""

    traced: Traced
    window: Window
    key: Any
    asked: set[str]


@dataclass(eq=False)
class Written:
    """A call that was written and takes part in a graph."""

    call_key: Any
    member: Member
    storages: dict[Name, Storage]
    keeps: list[Any]


class Folder:
    """Follows the layers of one model; also a listener of phases."""

    def __init__(self, tracker: StorageTracker, sink: WindowSink, attribution: Attribution, asked: dict[str, int]) -> None:
        self._tracker = tracker
        self._sink = sink
        self._attribution = attribution
        self._asked = asked
        self._model: nn.Module | None = None
        self._members: dict[int, Member] = {}
        self._passes: dict[int, Pass] = {}
        self._unsettled: list[Traced] = []
        self._open: Open | None = None
        self._busy = False
        self._phase = "load"
        self._backwards: dict[Any, Backward] = {}
        self._backwards_unconfirmed: set[Any] = set()
        self._waiting: dict[Any, list[Written]] = {}
        self._survivors: dict[int, Traced] = {}
        sink.between = self._died_between
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
            self._backwards.clear()
            if self._model is not None:
                self._follow()
            return
        self._settle()
        self._close(None)
        for group in list(self._passes):
            self._end_pass(group)
        if self._backwards_unconfirmed or (name == "backward" and any(self._waiting.values())):
            raise FoldError("backward")
        if name == "backward":
            self._survivors.clear()

    def _followed(self, of: type[nn.Module]) -> type[nn.Module]:
        def call(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self._called(layer, of.__call__, args, kwargs)

        body = {"__call__": call, "__module__": of.__module__, "__qualname__": of.__qualname__}
        return type(of.__name__, (_Quiet, of), body)

    def _called(self, layer: nn.Module, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        member = self._members[id(layer)]
        if self._busy or self._open is not None or self._phase == "backward":
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

    # Forward ------------------------------------------------------------------------------------------------------------

    def _trace(self, call: Call, run: Callable[[], Any]) -> Any:
        if call.hidden is not None and call.hidden.grad_fn is not None:
            ending = Ending(self, call.hidden.output_nr)
            call.hidden.grad_fn.register_prehook(ending)
        else:
            ending = None
        window = Window("forward", call.member.path, call.names)
        before = set(self._asked)
        call.tensors.clear()
        self._sink.window, self._busy = window, True
        try:
            out = run()
        finally:
            self._sink.window, self._busy = None, False
        record = self._recorded(call, window, out, self._asked_since(before, call.member.path))
        if record is None:
            return out
        if call.hidden is None:
            self._compare(call.member.group, call.key, record)
        else:
            self._follow_graph(call, record, out, ending)
        return out

    def _recorded(self, call: Call, window: Window, out: Any, asked: frozenset[Any]) -> Forward | None:
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
            and all(map(can_rebuild, told))
            and UNKNOWN not in reachable
            and not any(leaf[1] == UNTRACKED and leaf[2][4] for leaf in leaves)
            and (not flows and born <= reachable if call.hidden is None else bool(flows) and flows[0][1] in born)
        )
        return Forward(tuple(window.events), result, changes, asked) if whole else None

    def _follow_graph(self, call: Call, record: Forward, out: Any, ending: Ending | None) -> None:
        flow, *beside = (leaf[1] for leaf in tensors_in(record.out) if leaf[2][5])
        entry = self._tracker.entry_of(call.hidden) if call.hidden is not None else None
        result = next(_flows(out))
        if entry is None or result.grad_fn is None:
            return
        others = {
            name: other
            for tensor in _tensors(out)
            if (name := call.name_of(tensor)) in beside and (other := self._tracker.entry_of(tensor))
        }
        traced = Traced(call.member, call.key, call.names, flow, entry, others, record)
        if ending is not None:
            ending.traced = traced
        number = result.output_nr
        result.grad_fn.register_prehook(lambda gradients: self._begin_backward(traced, gradients[number]))
        self._unsettled.append(traced)
        self._survivors |= {ident: traced for ident, name in call.names.items() if name[0] == "forward" and name != flow}

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
        self._ask(record.asked, call.member.path)
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
        self._waiting.setdefault(call.key, []).append(written)
        made: Any = iter(_Layer.apply(hidden, self, written, lambda: tuple(tensor_of(*flow) for flow in flows)))
        out = rebuild(record.out, lambda name, spec: next(made) if spec[5] else tensor_of(name, spec))
        kept = {name: tensor for (name, _), tensor in zip(flows, _flows(out), strict=True)} | {("input",): hidden}
        written.keeps = [kept[name].untyped_storage() for name in record.kept]
        return out

    # Backward -----------------------------------------------------------------------------------------------------------

    def _begin_backward(self, traced: Traced, gradient: torch.Tensor | None) -> None:
        self._settle()
        self._close(gradient)
        if gradient is None:
            return
        entry = self._tracker.entry_of(gradient)
        names = {ident: name for ident, name in traced.names.items() if name[0] != "slot"}
        names[traced.input.ident] = ("input",)
        before = self._gradients(traced.member, names)
        if entry is not None:
            names[entry.ident] = ("gradient",)
        window = Window("backward", traced.member.path, names)
        self._open = Open(traced, window, (traced.key, before, spec_of(gradient)), set(self._asked))
        self._sink.window = window

    def end_backward(self, traced: Traced | None, gradient: torch.Tensor | None) -> None:
        """The gradient of a traced layer's input is there."""
        if self._open is not None and self._open.traced is traced:
            self._close(gradient)

    def _close(self, gradient: torch.Tensor | None) -> None:
        if self._open is None:
            return
        done, self._open, self._sink.window = self._open, None, None
        record = self._undone(done, gradient) if gradient is not None else None
        if record is None:
            return
        known = self._backwards.setdefault(done.key, record)
        if known is not record and known == record:
            self._backwards_unconfirmed.discard(done.key)

    def _undone(self, done: Open, gradient: torch.Tensor) -> Backward | None:
        """What the backward did, None where it could not be said of another layer."""
        traced, window = done.traced, done.window
        gone = [ident for ident, other in self._survivors.items() if other is traced]
        for ident in gone:
            del self._survivors[ident]

        def name_of(tensor: torch.Tensor) -> Name:
            entry = self._tracker.entry_of(tensor)
            return UNTRACKED if entry is None else window.names.get(entry.ident, UNKNOWN)

        passed = describe(gradient, name_of)
        gradients = tuple(describe(parameter.grad, name_of) for parameter in _trained(traced.member))
        reachable = {leaf[1] for tree in (passed, *gradients) for leaf in tensors_in(tree)}
        left = {name for name in window.names.values() if name[0] in ("forward", "backward")} - reachable - {traced.out_name}
        whole = (
            window.is_closed
            and not left
            and not reachable & {UNKNOWN, UNTRACKED}
            and ("f", traced.out_name) not in window.events
            and (("f", ("input",)) in window.events) == (("input",) in traced.record.kept)
        )
        asked = self._asked_since(done.asked, traced.member.path)
        return Backward(tuple(window.events), passed, gradients, asked) if whole else None

    def undo(self, written: Written, gradient: torch.Tensor) -> torch.Tensor:
        """Write the backward of a written layer. Returns the gradient of its input."""
        self._settle()
        self._close(gradient)
        self._waiting[written.call_key].remove(written)
        storages, tensors = written.storages, {("gradient",): gradient}
        names: dict[int, Name] = {}
        before = self._gradients(written.member, names, storages, tensors)
        entry = self._tracker.entry_of(gradient)
        key = (written.call_key, before, spec_of(gradient))
        record = self._backwards.get(key)
        if record is None or entry is None:
            raise FoldError("backward")
        self._backwards_unconfirmed.add(key)
        storages["gradient",] = entry
        Writer(self._tracker, self._attribution, written.member.path, storages).write("backward", record.events)
        self._ask(record.asked, written.member.path)
        written.keeps.clear()
        return self._write_gradients(written.member, record, Rebuilder(self._tracker, storages, tensors))

    def _write_gradients(self, member: Member, record: Backward, tensor_of: Rebuilder) -> torch.Tensor:
        with self._tracker.paused():
            for parameter, tree in zip(_trained(member), record.gradients, strict=True):
                made = rebuild(tree, tensor_of)
                if made is not parameter.grad:
                    parameter.grad = made
            passed: torch.Tensor = rebuild(record.gradient, tensor_of)
        return passed

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
        for number, parameter in enumerate(_trained(member)):  # noqa: B007  name_of reads it
            trees.append(describe(parameter.grad, name_of))
        return tuple(trees)

    # Questions about values ----------------------------------------------------------------------------------------------

    def _asked_since(self, before: set[str], path: str) -> frozenset[Any]:
        new = self._asked.keys() - before
        return frozenset((True, name[len(path) :]) if name.startswith(path) else (False, name) for name in new)

    def _ask(self, asked: frozenset[Any], path: str) -> None:
        for inside, name in asked:
            self._asked.setdefault(path + name if inside else name, 1)


class Ending:
    """A hook where the gradient of a traced layer's input is whole."""

    def __init__(self, folder: Folder, number: int) -> None:
        self.traced: Traced | None = None
        self._folder = folder
        self._number = number

    def __call__(self, gradients: Any) -> None:
        """The node that made the input is about to run."""
        self._folder.end_backward(self.traced, gradients[self._number])


class _Layer(torch.autograd.Function):
    """The node of a written layer. Gradients come to its first result only."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, folder: Folder, written: Written, make: Callable[[], Any]) -> Any:
        ctx.folder, ctx.written = folder, written
        ctx.set_materialize_grads(False)
        return make()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor, None, None, None]:
        gradient, *beside = gradients
        if gradient is None or any(other is not None for other in beside):
            raise FoldError("backward")
        return ctx.folder.undo(ctx.written, gradient), None, None, None


class _Quiet:
    """Keeps classes that watch their subclasses from hearing of a followed one."""

    def __init_subclass__(cls, **_kwargs: Any) -> None:
        pass


def _trained(member: Member) -> list[nn.Parameter]:
    return [parameter for parameter in member.layer.parameters() if parameter.requires_grad]


def _flows(value: Any) -> Iterator[torch.Tensor]:
    return (tensor for tensor in _tensors(value) if tensor.requires_grad)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
