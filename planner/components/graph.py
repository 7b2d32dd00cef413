"""Autograd over a tape: a block's forward is written once, and its backward follows from it.

A forward is laid as operators on named tensors, each with the inputs that take part in the backward and the tensors
autograd saves for it. The backward runs the recorded nodes as torch's engine does (torch/csrc/autograd/engine.cpp):
last made first; a node makes the gradients of its inputs, then its saved tensors and its own gradient go; a second
gradient for the same tensor is added to the first in a tensor of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from planner.architecture.layers import Weight
from planner.components.autocast import is_wide, narrowed, widened
from planner.components.rules import Rule, elementwise, joined, passed_on
from planner.components.run import Run, factors_of
from planner.components.tape import Held, Size, Tape

KEPT = "kept result"


class Stopped(Exception):
    """Everything that is saved has been made again: ``torch.utils.checkpoint`` stops the second forward here."""


@dataclass(slots=True)
class Storage:
    """What one or several names stand for: its name on the tape, names beside the first, nodes that keep it."""

    name: str
    references: int = 0
    saves: int = 0


@dataclass(slots=True)
class Node:
    """One operator's backward: ``rule(graph, node, gradient)`` makes the gradients of ``inputs``.

    ``moment``: what the rule holds for a moment, where it has to be told. ``constants``: inputs that get none; a kernel that
    makes it all the same has it dropped. ``trains``: whether ``weights`` get gradients. ``unpacks``: the rule reads something
    that was saved, be it a weight.
    """

    out: str
    inputs: Sequence[str]
    saves: Sequence[Storage] = ()
    rule: Rule = elementwise
    weights: Sequence[Weight] = ()
    moment: Size | None = None
    constants: Sequence[str] = ()
    trains: bool = True
    unpacks: bool = False

    @property
    def wanted(self) -> Sequence[str]:
        """The inputs that get a gradient."""
        return [tensor for tensor in self.inputs if tensor not in self.constants] if self.constants else self.inputs


@dataclass(slots=True)
class Record:
    """What a forward leaves for its backward: the nodes, sizes of all tensors, and how many were saved."""

    nodes: list[Node] = field(default_factory=list)
    sizes: dict[str, Size] = field(default_factory=dict)
    saves: int = 0


class Graph(Tape):
    """A tape on which operators are laid.

    ``stop_after``: raise :class:`Stopped` at this many saved tensors. ``constants``: tensors that require no gradient; what
    is made of them alone, with frozen weights, requires none either, and autograd neither records nor saves anything for it.
    ``keeping``: results of the operators that the run's checkpoints keep stay; ``kept``: names of those that are there already.
    """

    def __init__(
        self, run: Run, *, saving: bool = False, start: Mapping[str, Held] | None = None, stop_after: int | None = None,
        constants: Collection[str] = (), keeping: bool = False, kept: Sequence[str] = (),
    ) -> None:  # fmt: skip
        super().__init__(saving=saving, start=start)
        self.run = run
        self.record = Record(sizes={name: held.size for name, held in (start or {}).items()})
        self._storages: dict[str, Storage] = {}
        self._shares: dict[str, int] = {}
        self._stop_after = stop_after
        self.gradients: dict[str, str] = {}
        self.constants = set(constants)
        self._last: Node | None = None
        self.keeping = keeping
        self._results: list[Storage] = []
        self._there = list(kept)
        self._operator = ""
        self._laid: dict[str, int] = {}

    @contextmanager
    def operator(self, name: str) -> Iterator[None]:
        """What is held inside are results of an operator that checkpoints may keep (torch's selective checkpointing)."""
        self._operator = name if self._is_kept(name) else ""
        try:
            yield
        finally:
            self._operator = ""

    def _is_kept(self, operator: str) -> bool:
        """Whether checkpoints keep this result: every one of the operator, or the first and then every second one."""
        self._laid[operator] = self._laid.get(operator, 0) + 1
        return operator in self.run.keeps or (f"{operator}/2" in self.run.keeps and self._laid[operator] % 2 == 1)

    def hold(self, name: str, size: Size, component: str = "workspace", *, saved: bool = False) -> None:
        """A tensor is made; a result that a checkpoint has kept is there already, one that it keeps stays."""
        if not self._operator:
            super().hold(name, size, component, saved=saved)
        elif self._there:
            super().rename(self._there.pop(0), name)
        else:
            super().hold(name, size, "activations" if self.keeping else component)
            if self.keeping:
                self._results.append(self._storage(name))
                self._results[-1].saves += 1

    def relabel(self, name: str, component: str) -> None:
        """The tensor counts as another component from now on, whatever operator is being laid."""
        operator, self._operator = self._operator, ""
        super().relabel(name, component)
        self._operator = operator

    def name_results(self) -> None:
        """What was kept goes on under names by which the recomputation knows it."""
        for index, storage in enumerate(self._results):
            super().rename(storage.name, f"{KEPT} {index}")

    def make(
        self,
        name: str,
        size: Size,
        inputs: Sequence[str] = (),
        saves: Sequence[str] = (),
        rule: Rule | None = None,
        *,
        component: str = "workspace",
        weights: Sequence[Weight] = (),
        moment: Size | None = None,
        for_weights: Sequence[str] = (),
        whole: bool = False,
        trains: bool | None = None,
    ) -> None:
        """An operator makes a tensor. Without a rule it is elementwise: each input gets a gradient of its own size.

        ``for_weights``: saved only where ``weights`` get gradients (``trains``: whether they do, where the run can't say).
        Of several inputs an operator saves what the others' gradients need; ``whole``: a kernel that saves all for any.
        """
        if not self.saving:
            self.hold(name, size, component)
            return
        trains = self.run.trains(weights) if trains is None else trains
        constant = [source for source in inputs if source in self.constants]
        if inputs and len(constant) == len(inputs) and not (trains and (weights or for_weights)):
            self.give_up(name)
            self.hold(name, size, component)
            self.record.sizes[name] = size
            self.constants.add(name)
            self._last = None
            return
        kept = [self.save(saved) for saved in saves if saved != name and (whole or self._is_needed(saved, inputs))]
        kept += [self.save(saved) for saved in for_weights if trains and saved not in saves]
        if weights and not trains:
            self._count_save()
        self.give_up(name)
        self.hold(name, size, component)
        self.constants.discard(name)
        self.record.sizes[name] = size
        if name in saves:
            kept.append(self.save(name))
        self._last = Node(name, inputs, kept, rule or elementwise, weights, moment, constant, trains, bool(kept or weights))
        self.record.nodes.append(self._last)

    def record_made(self, name: str, size: Size, source: str, saves: Sequence[str], rule: Rule) -> None:
        """As :meth:`make` for a tensor of frozen weights that is held already, with what exists beside it while it is made."""
        if not self.saving:
            return
        self.record.sizes[name] = size
        if source in self.constants:
            self.constants.add(name)
            self._last = None
            return
        self.constants.discard(name)
        self._last = Node(name, (source,), [self.save(saved) for saved in saves], rule, trains=False)
        self._last.unpacks = bool(saves)
        self.record.nodes.append(self._last)

    def record_function(self, name: str, source: str, saves: Sequence[str], rule: Rule) -> None:
        """The node of an autograd function with parameters of its own, whose result is held already."""
        self.record.sizes[name] = self.size_of(name)
        self.constants.discard(name)
        constant = (source,) if source in self.constants else ()
        self._last = Node(name, (source,), [self.save(saved) for saved in saves], rule, constants=constant, unpacks=True)
        self.record.nodes.append(self._last)

    def take_over(self, old: str, other: str, name: str, rule: Rule) -> None:
        """An operator writes what it makes of ``old`` and ``other`` over ``old``, which goes on as ``name``."""
        super().rename(old, name)
        if not self.saving:
            return
        self.record.sizes[name] = self.record.sizes[old]
        constant = [source for source in (old, other) if source in self.constants]
        self._last = Node(name, (old, other), (), rule, constants=constant)
        if len(constant) > 1:
            self.constants.add(name)
        else:
            self.record.nodes.append(self._last)

    def _is_needed(self, saved: str, inputs: Sequence[str]) -> bool:
        """Whether a gradient is computed from a saved tensor: an only input's own, or another input's than its own."""
        if saved not in inputs or not self.constants or len(inputs) == 1:
            return True
        return any(source != saved and source not in self.constants for source in inputs)

    def view(self, name: str, source: str, rule: Rule | None = None, size: Size | None = None) -> None:
        """Another name for (a part of) a live tensor; the storage goes with its last name."""
        storage = self._storage(source)
        storage.references += 1
        self._storages[name] = storage
        if self.saving:
            self.record.sizes[name] = size or self.record.sizes[source]
        if source in self.constants:
            self.constants.add(name)
        elif self.saving:
            self.constants.discard(name)
            self.record.nodes.append(Node(name, (source,), (), rule or passed_on))

    def parts(self, source: str, sizes: Mapping[str, Size]) -> None:
        """Views of a tensor's parts (``chunk``, ``split``): once all gradients are there they are laid together in one tensor."""
        keys = [f"{source} as {name}" for name in sizes]
        grows = self.saving and source not in self.constants
        if grows:
            self.record.nodes.append(Node(keys[0], (source,), (), partial(joined, others=keys[1:])))
        for (name, size), key in zip(sizes.items(), keys, strict=True):
            self.view(name, source, None, size)
            if grows:
                self.record.nodes[-1].inputs = (key,)

    def save(self, name: str) -> Storage:
        """Autograd keeps a tensor until the node that asked for it has run."""
        storage = self._storage(name)
        if not storage.saves:
            self.relabel(storage.name, "activations")
        storage.saves += 1
        self._count_save()
        return storage

    def _count_save(self) -> None:
        """One saved tensor more; a frozen weight is saved too, for the gradient of what it is multiplied with."""
        self.record.saves += 1
        if self.record.saves == self._stop_after:
            raise Stopped

    def size_of(self, name: str) -> Size:
        """A live tensor's size."""
        storage = self._storages.get(name)
        return self.record.sizes.get(name) or self._live[storage.name if storage is not None else name].size

    def save_for_last(self, name: str) -> None:
        """The last operator also keeps a live tensor that it made beside its result."""
        if self.saving and self._last is not None:
            self._last.saves = (*self._last.saves, self.save(name))
            self._last.unpacks = True

    def is_saved(self, name: str) -> bool:
        """Whether a node keeps the tensor."""
        storage = self._storages.get(name)
        return storage is not None and storage.saves > 0

    def free(self, *names: str) -> None:
        """The last reference of the code goes; what autograd saved stays."""
        for name in names:
            storage = self._storages.get(name)
            if storage is None:
                super().free(name)
                continue
            if storage.name != name:
                del self._storages[name]
            if storage.references:
                storage.references -= 1
            elif not storage.saves:
                super().free(storage.name)

    def rename(self, old: str, new: str) -> None:
        """The tensor goes on under another name; one that is kept under that name gives it up."""
        if old == new:
            return
        self.give_up(new)
        storage = self._storages.pop(old, None)
        if storage is None or storage.name == old:
            super().rename(old, new)
        if storage is not None:
            self._storages[new] = storage
            storage.name = new if storage.name == old else storage.name
        if self.saving:
            self.record.sizes[new] = self.record.sizes[old]
        if old in self.constants:
            self.constants.add(new)
        elif self.saving:
            self.constants.discard(new)
            self.record.nodes.append(Node(new, (old,), (), passed_on))

    def give_up(self, name: str) -> None:
        """A tensor that autograd keeps gives up its name to another."""
        if name not in self._live:
            return
        kept = self._storages.pop(name)
        kept.name = f"{name} before"
        while kept.name in self._live:
            kept.name += "'"
        self._storages[kept.name] = kept
        super().rename(name, kept.name)

    @property
    def live(self) -> Mapping[str, Held]:
        """What is live, by the names of the tape."""
        return self._live

    def bring(self, name: str, size: Size, checkpoint: str = "") -> None:
        """What a checkpoint kept is back: what is live under the name ``checkpoint``, or from the host in memory of its own."""
        if checkpoint:
            super().rename(checkpoint, name)
        else:
            self.hold(name, size, "activations")
        self.record.sizes[name] = size

    def adopt(self, node: Node, size: Size) -> None:
        """Record a node whose result is held already; it saves its inputs."""
        self.record.sizes[node.out] = size
        node.saves = [self.save(source) for source in node.inputs]
        node.constants = [source for source in node.inputs if source in self.constants]
        node.unpacks = True
        self._last = node
        self.record.nodes.append(node)

    @contextmanager
    def stopping_after(self, saves: int) -> Iterator[None]:
        """Raise :class:`Stopped` at so many saved tensors."""
        self._stop_after = saves
        try:
            yield
        finally:
            self._stop_after = None

    def release_unsaved(self, *kept: str) -> None:
        """Every reference of the code but ``kept`` goes at once, as when the second forward of a checkpoint is stopped."""
        saved = {storage.name for storage in self._storages.values() if storage.saves}
        for name in list(self._live):
            if name not in saved and name not in kept:
                super().free(name)

    def _storage(self, name: str) -> Storage:
        found = self._storages.get(name)
        if found is None:
            found = self._storages[name] = Storage(name)
        return found

    def backward(self, record: Record, gradients: dict[str, str]) -> dict[str, str]:
        """Run the nodes of ``record`` from ``gradients`` (tensor → name of its gradient); returns those of the leaves."""
        self.record, self.gradients = record, gradients
        self.saving = False
        self._run_back(record.nodes, gradients)
        return gradients

    def begin_backward(self, record: Record, gradients: dict[str, str]) -> Record:
        """Run the last nodes of ``record`` up to the first that reads something saved; returns what is left of it.

        So far a backward gets before ``torch.utils.checkpoint`` runs the forward again.
        """
        count = len(record.nodes)
        while count and not record.nodes[count - 1].unpacks:
            count -= 1
        own, saving = self.record, self.saving
        self.record, self.gradients, self.saving = record, gradients, False
        self._run_back(record.nodes[count:], gradients)
        self.record, self.saving = own, saving
        return Record(record.nodes[:count], record.sizes, record.saves)

    def _run_back(self, nodes: Sequence[Node], gradients: dict[str, str]) -> None:
        left: dict[int, int] = {}
        for node in reversed(nodes):
            gradient = gradients.pop(node.out, None)
            produced = node.rule(self, node, gradient) if gradient is not None else []
            if self._stop_after is not None:
                self._release_saved(node, left)
            made_as_read = [(tensor, self._as_read(node, tensor, made)) for tensor, made in produced]
            if self._stop_after is None:
                self._release_saved(node, left)
            if gradient is not None:
                self.drop(gradient)
            for tensor, made in made_as_read:
                if tensor in node.constants:
                    self.drop(made)
                else:
                    self._accumulate(gradients, tensor, made)

    def _release_saved(self, node: Node, left: dict[int, int]) -> None:
        """What the node had saved goes, unless another reads it yet."""
        for storage in node.saves:
            left[id(storage)] = left.get(id(storage), storage.saves) - 1
            if not left[id(storage)]:
                self.consume(storage.name)

    def _as_read(self, node: Node, tensor: str, made: str) -> str:
        """A gradient in the dtype of its tensor: the engine casts one that a node has made in another (``validate_outputs``).

        What the node had saved, and the gradient that came, are there until then (``release_variables`` follows); what a
        checkpoint had made again was the node's alone, and goes as soon as it has run.
        """
        if tensor in node.constants:
            return made
        size, held = self.record.sizes.get(tensor), self._live[made].size
        if size is None or is_wide(size) == is_wide(held):
            return made
        name = f"{made} cast"
        while name in self._live:
            name += "'"
        self.hold(name, widened(held) if is_wide(size) else narrowed(held))
        self.drop(made)
        return name

    def gradient(self, tensor: str, node: Node) -> str:
        """Hold a gradient of a tensor's own size; returns its name."""
        return self.held(f"d {tensor}", node, self.record.sizes[tensor])

    def held(self, name: str, node: Node, size: Size) -> str:
        """Hold something under a name that is free: its own, or with the operator's."""
        found = name if name not in self._live else f"{name} of {node.out}"
        self.hold(found, size)
        return found

    def share(self, gradient: str) -> str:
        """The same gradient goes to one input more."""
        self._shares[gradient] = self._shares.get(gradient, 0) + 1
        return gradient

    def drop(self, gradient: str) -> None:
        """One reference to a gradient goes."""
        left = self._shares.get(gradient, 0)
        if left:
            self._shares[gradient] = left - 1
        else:
            self.consume(gradient)

    def weight_gradients(self, node: Node) -> None:
        """Gradients of the weights of a linear or a norm."""
        for weight in node.weights if node.trains else ():
            count = {"count": weight.count} if weight.count > 1 else {}
            self.hold(f"grad {weight.name}", Size(**count, **factors_of(weight), bytes=self.run.gradient_bytes), "gradients")

    def settle_weight_gradients(self, node: Node) -> None:
        """Where gradients exist already, the new ones are added to them and go."""
        if self.run.accumulating and node.trains:
            self.consume(*(f"grad {weight.name}" for weight in node.weights))

    def _accumulate(self, gradients: dict[str, str], tensor: str, made: str) -> None:
        old = gradients.get(tensor)
        if old is None:
            gradients[tensor] = made
            return
        name = f"d {tensor} sum"
        while name in self._live:
            name += "'"
        self.hold(name, self.record.sizes[tensor])
        self.drop(old)
        self.drop(made)
        gradients[tensor] = name
