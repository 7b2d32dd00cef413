"""FSDP2, ``fully_shard`` (torch 2.13, torch/distributed/fsdp/_fully_shard).

Every rank keeps a chunk of each parameter's first dimension, padded to the largest. A unit (a decoder layer; what is
left) is gathered as one buffer, copied out into its parameters, computed with and given up again; in the backward its
gradients are copied into one buffer, reduced, and a chunk of them stays. What is alive when follows the order of calls:

- ``foreach_all_gather`` makes a unit's buffer and, where another dtype is computed with, a cast copy of the rank's chunks;
- ``wait_for_unshard``: in the forward the buffer of the unit before goes only now; then the parameters are made;
- ``post_forward``: the parameters go, unless ``reshard_after_forward`` is off or the unit is used last;
- ``pre_backward``: the parameters are made, their buffer goes, the unit before is prefetched;
- ``post_backward``: the parameters go, then the reduction's input of the unit behind; ``foreach_reduce`` makes its own,
  the gradients go, the reduced chunk is made (and cast to the dtype of the parameters).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property

from planner.architecture.counts import iter_weights, layer_weights
from planner.architecture.layers import Architecture, Weight
from planner.components.tape import Course, Held, Size, Span, rounded
from planner.components.targets import targets_of
from planner.components.trainable import Trainable, adapters_of
from planner.engines.around import Around, Blocks, Moment
from planner.engines.sharded.moves import Move, gradients_held, gradients_of, moves, then
from planner.engines.sharded.shards import padded_elements, rows_of_rank
from planner.record import record
from planner.scenario import Training

BUFFER, CAST, PARAMETERS = "all-gather buffer", "chunks cast to gather", "gathered parameters"
REDUCED_FROM, REDUCED, SHARDS = "reduce-scatter input", "reduced chunk", "sharded gradients"


@record
class Policy:
    """How a model is wrapped. Bytes of a value: of what is computed with (``param_dtype``), shards, ``reduce_dtype``.

    ``separate_ends``: embedding and head are units of their own (accelerate ``fsdp2_prepare_model``, torchtitan
    ``apply_fsdp``), else they are the root's with all that is left. ``accumulates``: how gradients of several micro-batches
    are kept: ``whole`` under ``set_requires_gradient_sync(False)``, as accelerate does, ``shards``, or not at all.
    """

    ranks: int
    compute_bytes: int
    shard_bytes: int
    reduce_bytes: int
    adapter_bytes: tuple[int, int, int] = (4, 4, 4)
    """The same three of adapters, which keep a dtype of their own."""
    reshard_after_forward: bool = True
    separate_ends: bool = True
    accumulates: str = ""
    offloads: bool = False


@record
class Unit:
    """One group of parameters.

    ``elements``: of all ranks' chunks of the model's own parameters, padding included; ``adapters``: bytes of what adapters
    add, which keep a dtype of their own; ``trained``: elements that get gradients, of ``reduce_bytes`` and ``shard_bytes``;
    ``weights``: names of the gradients.
    """

    elements: int
    adapters: int
    parameter_bytes: int
    trained: int
    reduce_bytes: int
    shard_bytes: int
    weights: frozenset[str]
    policy: Policy

    @property
    def is_gathered(self) -> bool:
        """One rank alone copies its chunks into the parameters without a buffer."""
        return self.policy.ranks > 1

    @cached_property
    def buffer(self) -> Held:
        """The all-gather's output."""
        size, values = self.elements * self.policy.compute_bytes, {"elements": self.elements, "bytes": self.policy.compute_bytes}
        if not self.adapters:
            return Held(Size(**values), "communication")
        formula = "elements · bytes + adapters"
        return Held(Size.stated(rounded(size + self.adapters), formula, **values, adapters=self.adapters), "communication")

    @cached_property
    def cast(self) -> Held:
        """The rank's chunks as they are gathered: cast (``flat_foreach_copy_input``), or fetched from the host."""
        return Held(Size(elements=self.elements // self.policy.ranks, bytes=self.policy.compute_bytes), "communication")

    @cached_property
    def parameters(self) -> Held:
        """What is computed with, each parameter a tensor."""
        values = {"elements": self.elements, "bytes": self.policy.compute_bytes}
        return Held(Size.stated(self.parameter_bytes, "elements · bytes of the unit's parameters", **values), "weights")

    @cached_property
    def reduced_from(self) -> Held:
        """The reduce-scatter's input."""
        return Held(Size(elements=self.trained, bytes=self.reduce_bytes), "communication")

    @cached_property
    def reduced(self) -> Held:
        """Its output, before it is cast."""
        return Held(Size(elements=self.trained // self.policy.ranks, bytes=self.reduce_bytes), "communication")

    @cached_property
    def shard(self) -> Held:
        """The rank's gradients."""
        return Held(Size(elements=self.trained // self.policy.ranks, bytes=self.shard_bytes), "gradients")

    def gather(self, before: Unit | None = None) -> list[Move]:
        """``unshard``; ``before``: the unit whose buffer is kept until this one's is there (forward)."""
        if not self.is_gathered:
            return []
        copies = self.policy.compute_bytes != self.policy.shard_bytes or self.policy.offloads
        cast: list[Move] = [(CAST, self.cast, 1)] * copies
        gone: list[Move] = [(CAST, self.cast, -1)] * copies
        return [*cast, (BUFFER, self.buffer, 1), *gone, *(before.drop() if before else ())]

    def drop(self) -> list[Move]:
        """The buffer goes."""
        return [(BUFFER, self.buffer, -1)] if self.is_gathered else []

    def copy_out(self) -> list[Move]:
        """``wait_for_unshard``."""
        return [(PARAMETERS, self.parameters, 1)]

    def reshard(self) -> list[Move]:
        """The parameters go."""
        return [(PARAMETERS, self.parameters, -1)]

    def forget(self) -> list[Move]:
        """What was reduced goes when the next unit is done."""
        return [(REDUCED_FROM, self.reduced_from, -1)] if self.trained else []

    def reduce(self, gradients: list[Move], behind: Unit | None) -> list[Move]:
        """``post_backward``: parameters and what was reduced behind go; gradients become a shard."""
        policy = self.policy
        found = [*self.reshard(), *(behind.forget() if behind else ())]
        if not self.trained:
            return found
        found += [(REDUCED_FROM, self.reduced_from, 1), *gradients]
        if self.reduce_bytes == self.shard_bytes:
            found.append((SHARDS, self.shard, 1))
        else:
            found += [(REDUCED, self.reduced, 1), (SHARDS, self.shard, 1), (REDUCED, self.reduced, -1)]
        return found + [(SHARDS, self.shard, -1)] * (policy.accumulates == "shards" or policy.offloads)


class FullyShard(Around):
    """FSDP2 around a step."""

    def __init__(self, architecture: Architecture, policy: Policy, training: Training, rank: int = 0) -> None:
        self.policy, self.rank, self._training = policy, rank, training
        self._targets = targets_of(architecture, training.method, training.lora.targets)
        self.holds_gradients = policy.accumulates == "shards"
        self._trained: dict[int, list[Trainable]] = {}
        path = f"{architecture.decoder.name}.*."
        layers = {id(layer): layer for layer in architecture.decoder.layers}
        self._layers = {key: self._unit(layer_weights(layer), path) for key, layer in layers.items()}
        self._order = [self._layers[id(layer)] for layer in architecture.decoder.layers]
        ends = policy.separate_ends and bool(architecture.head) and bool(architecture.embeddings)
        norm = architecture.final_norm.weights if architecture.final_norm is not None else ()
        self._first = self._unit(architecture.embeddings[:1]) if ends else None
        self._last = self._unit((*norm, *architecture.head)) if ends else None
        self._root = self._left(architecture)

    def _left(self, architecture: Architecture) -> Unit | None:
        """Everything in no unit: the root's."""
        taken = {id(weight) for layer in architecture.decoder.layers for weight in layer_weights(layer)}
        if self._first is not None:
            norm = architecture.final_norm.weights if architecture.final_norm is not None else ()
            taken |= {id(weight) for weight in (*architecture.embeddings[:1], *norm, *architecture.head)}
        left = [weight for _, weight, times in iter_weights(architecture) if id(weight) not in taken for _ in range(times)]
        return self._unit(left) if any(not weight.is_buffer for weight in left) else None

    def adds_gradients(self, *, accumulating: bool) -> bool:
        """Only whole gradients of earlier micro-batches are added to by autograd."""
        return accumulating and self.policy.accumulates == "whole"

    def owned(self, tensors: tuple[Trainable, ...]) -> tuple[Trainable, ...]:
        """The rank's rows of each parameter; on the GPU only where they are not offloaded."""
        if self.policy.offloads:
            return ()
        kept = self.policy.shard_bytes if self._training.method == "full" else self.policy.adapter_bytes[1]
        return rows_of_rank(tensors, self.policy.ranks, self.rank, kept)

    def stored(self, tensors: tuple[Trainable, ...]) -> tuple[Trainable, ...]:
        """Adapters are sharded like all parameters, chunks of one size on every rank."""
        return () if self.policy.offloads else rows_of_rank(tensors, self.policy.ranks, 0, self.policy.adapter_bytes[1])

    def held_gradients(self) -> list[Move]:
        """Shards that earlier micro-batches left."""
        kept = self.policy.accumulates == "shards" and not self.policy.offloads
        return [(SHARDS, unit.shard, 1) for unit in self._units() if unit.trained] if kept else []

    def _units(self) -> list[Unit]:
        return [unit for unit in (self._root, self._first, *self._order, self._last) if unit is not None]

    def at(self, moment: Moment, course: Course) -> None:
        """Units outside the layers, and what is prefetched."""
        steps = {
            "forward": self._open, "layers": self._after_embeddings, "head": self._before_head, "loss": self._behind_loss,
            "head backward" if self._last else "backward": self._prefetch_last, "embeddings backward": self._before_embeddings,
        }.get(moment)  # fmt: skip
        if steps is not None:
            course.run(moves(steps()), 1, "all-gather")
        elif moment == "layers backward" and self._last is not None:
            course.run(moves(self._last.reduce(gradients_held(course, self._last.weights), None)), 1, "reduce-scatter")
        elif moment == "end":
            self._finish(course)

    def _open(self) -> list[Move]:
        found = list(self.held_gradients())
        before = None
        for unit in (self._root, self._first):
            if unit is not None:
                found += [*unit.gather(before), *unit.copy_out()]
                before = unit
        return found

    def _after_embeddings(self) -> list[Move]:
        return self._first.reshard() if self._first is not None and self.policy.reshard_after_forward else []

    def _before_head(self) -> list[Move]:
        return [*self._last.gather(self._order[-1]), *self._last.copy_out()] if self._last is not None else []

    def _behind_loss(self) -> list[Move]:
        return (self._last or self._order[-1]).drop()

    def _prefetch_last(self) -> list[Move]:
        return self._order[-1].gather() if self.policy.reshard_after_forward else []

    def _before_embeddings(self) -> list[Move]:
        if self._first is None or not self.policy.reshard_after_forward:
            return []
        return [*(self._first.copy_out() if self._first.trained else ()), *self._first.drop()]

    def _finish(self, course: Course) -> None:
        """``_root_post_backward_final_callback``: units whose inputs have no gradient, then the last reduction's input goes."""
        behind = self._order[0]
        for unit in (self._root, self._first):
            if unit is not None and (unit.trained or unit is self._root):
                course.run(moves(unit.reduce(gradients_held(course, unit.weights), behind)), 1, "reduce-scatter")
                behind = unit
        course.run(moves(behind.forget()))

    def forward(self, blocks: Blocks) -> Blocks:
        """Gathered before, given up behind; equal layers between equal neighbours are one kind."""

        def around(span: Span, here: Unit, before: Unit | None, _: Unit | None) -> Span:
            behind = here.reshard() if self.policy.reshard_after_forward else []
            return then(moves([*here.gather(before or self._first or self._root), *here.copy_out()]), span, moves(behind))

        return self._each(blocks, around)

    def backward(self, blocks: Blocks) -> Blocks:
        """Made anew with the layer before prefetched; gradients reduced behind."""

        def around(span: Span, here: Unit, before: Unit | None, behind: Unit | None) -> Span:
            fetched: list[Move] = []
            if self.policy.reshard_after_forward:
                ahead = before or self._first
                fetched = [*here.copy_out(), *here.drop(), *(ahead.gather() if ahead else ())]
            return then(moves(fetched), span, moves(here.reduce(self._gradients(span, here), behind or self._last)))

        return self._each(blocks, around)

    def _gradients(self, span: Span, unit: Unit) -> list[Move]:
        """A layer's gradients as moves that drop them: those its backward made, or those all micro-batches were added to."""
        if self.policy.accumulates != "whole":
            return gradients_of(span)
        return [(f"grad {tensor.name}", Held(_like(tensor), "gradients"), -tensor.times) for tensor in self._trained[id(unit)]]

    def _unit(self, weights: Iterable[Weight], path: str = "") -> Unit:
        """A unit of some weights and the adapters beside them; with adapters nothing else gets gradients."""
        policy, ask = self.policy, self._training
        kept = [weight for weight in weights if not weight.is_buffer]
        sizes = [padded_elements(weight, policy.ranks) for weight in kept]
        made = sum(rounded(size * policy.compute_bytes) for size in sizes)
        if ask.method == "full":
            names = frozenset(f"grad {weight.name}" for weight in kept)
            found = Unit(sum(sizes), 0, made, sum(sizes), policy.reduce_bytes, policy.shard_bytes, names, policy)
            own = [Trainable(w.shape, policy.compute_bytes, w.count, f"{path}{w.name}") for w in kept]
        else:
            computed, stored, reduced = policy.adapter_bytes
            own = [
                tensor
                for weight in kept
                if self._targets.adapts(weight, path or "layers.*.")
                for tensor in adapters_of(path, weight, 1, ask.method, ask.lora, computed, feeds_forward=False)
            ]
            shapes = [Weight(tensor.name, tensor.shape, "other") for tensor in own for _ in range(tensor.times)]
            beside = [padded_elements(weight, policy.ranks) for weight in shapes]
            made += sum(rounded(size * computed) for size in beside)
            added = sum(beside)
            found = Unit(sum(sizes), added * computed, made, added, reduced, stored, frozenset(), policy)
        self._trained[id(found)] = own
        return found

    def _each(self, blocks: Blocks, around: Wrap) -> Blocks:
        """A span for every kind of layer between every kind of neighbours."""
        spans = {place: span for span, places in blocks for place in places}
        order: list[Unit | None] = [None, *self._order, None]
        kinds: dict[tuple[int, ...], list[int]] = {}
        for place in range(len(self._order)):
            key = (id(spans[place]), *map(id, order[place : place + 3]))
            kinds.setdefault(key, []).append(place)
        return [(around(spans[places[0]], *_neighbours(order, places[0])), places) for places in kinds.values()]


def _like(tensor: Trainable) -> Size:
    factors = {f"dim{index}": extent for index, extent in enumerate(tensor.shape)}
    return Size(**factors, bytes=tensor.dtype_bytes)


Wrap = Callable[[Span, Unit, Unit | None, Unit | None], Span]


def _neighbours(order: list[Unit | None], place: int) -> tuple[Unit, Unit | None, Unit | None]:
    """The unit at a place, the one before it, the one behind."""
    before, here, behind = order[place : place + 3]
    assert here is not None  # noqa: S101  places are within the stack
    return here, before, behind
