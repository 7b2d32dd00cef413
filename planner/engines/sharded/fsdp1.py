"""FSDP1, ``FullyShardedDataParallel`` (torch 2.4 to 2.13, torch/distributed/fsdp/_runtime_utils.py, _flat_param.py).

A unit (a decoder layer; the root has what is left, each adapter's linear is one of its own) is one flat parameter, of which
every rank keeps an equal part. Gathered it is one buffer whose views are computed with; nothing is copied out of it. Where
reentrant checkpoints call the units from outside, as models of transformers did before 4.52:

- a layer is gathered for its forward and given up behind it, the root stays gathered until the end of the backward
  (``_post_forward_reshard``);
- nothing is prefetched: pre-backward hooks are not there before the second forward (``_register_pre_backward_hooks``);
- gradients of a unit's parameters are laid together in a flat one, of which a reduced part stays (``_reduce_grad``);
- a unit without gradients is given up by a hook on its inputs (``_register_post_backward_reshard_only_hook``). That hook and
  its input hold each other (``register_multi_grad_hook``: the input's ``AccumulateGrad`` is in the hook's closure) until
  ``_finalize_params`` removes it at the end of the backward: inputs of all frozen layers, and their gradients, stay so long.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from planner.architecture.counts import iter_weights, layer_weights
from planner.architecture.layers import Architecture, Weight
from planner.components.autocast import has_wide_norms
from planner.components.checkpointing import Checkpointing
from planner.components.layer import CHECKPOINT
from planner.components.quantised import QuantisedWeights
from planner.components.tape import Course, Held, Level, Size, Span, rounded
from planner.components.trainable import Trainable
from planner.engines.around import Around, Blocks, Moment
from planner.engines.releases import wraps_units
from planner.engines.sharded.fsdp import Policy
from planner.engines.sharded.moves import Move, gradients_held, gradients_of, moves, then
from planner.modelled import NotModelled
from planner.record import record
from planner.scenario import Training

GATHERED, CAST, WHOLE = "gathered flat parameter", "part cast to gather", "flat gradient"
REDUCED, SHARDS = "reduced part", "sharded gradients"
IN_FLIGHT = 2
"""Units that may be gathered before the first of them has been computed with (torch/distributed/fsdp/_limiter_utils.py)."""
KEPT_INPUT, KEPT_GRADIENT = "layer input a hook keeps", "gradient of a layer input a hook keeps"


@record
class FlatUnit:
    """One flat parameter. ``gathered_bytes``: as it is computed with; ``elements``: those that get gradients."""

    gathered_bytes: int
    elements: int
    names: frozenset[str]
    policy: Policy

    def gather(self) -> list[Move]:
        """``_unshard``: the rank's part is cast first where it is kept in another dtype."""
        policy = self.policy
        whole = Held(Size.stated(rounded(self.gathered_bytes), "bytes of the unit", bytes=self.gathered_bytes), "weights")
        if policy.ranks == 1:
            return []
        if policy.compute_bytes == policy.shard_bytes:
            return [(GATHERED, whole, 1)]
        cast = Held(Size.stated(rounded(self.gathered_bytes // policy.ranks), "bytes / ranks"), "communication")
        return [(CAST, cast, 1), (GATHERED, whole, 1), (CAST, cast, -1)]

    def drop(self) -> list[Move]:
        """``_reshard``."""
        return [(name, held, -1) for name, held, count in self.gather() if name == GATHERED and count > 0]

    def reduce(self, gradients: list[Move]) -> list[Move]:
        """Gradients become one flat tensor, then the rank's part of the sum, in the dtype of the parameter."""
        policy = self.policy
        if not self.elements:
            return [*self.drop(), *gradients]
        part = -(-self.elements // policy.ranks)
        whole = Held(Size(elements=self.elements, bytes=policy.compute_bytes), "gradients")
        wide = Held(Size(elements=self.elements, bytes=policy.reduce_bytes), "communication")
        reduced = Held(Size(elements=part, bytes=policy.reduce_bytes), "communication")
        shard = Held(Size(elements=part, bytes=policy.shard_bytes), "gradients")
        cast = policy.reduce_bytes != policy.compute_bytes
        found: list[Move] = [(WHOLE, whole, 1), *gradients, *self.drop()]
        found += [(f"{WHOLE} cast", wide, 1), (WHOLE, whole, -1)] if cast else []
        gone: Move = (f"{WHOLE} cast", wide, -1) if cast else (WHOLE, whole, -1)
        if policy.reduce_bytes == policy.shard_bytes:
            return [*found, (SHARDS, shard, 1), gone]
        return [*found, (REDUCED, reduced, 1), gone, (SHARDS, shard, 1), (REDUCED, reduced, -1)]


class FlatSharded(Around):
    """FSDP1 around a step whose layers are reentrant checkpoints."""

    def __init__(
        self, architecture: Architecture, policy: Policy, training: Training, quantised: QuantisedWeights | None = None
    ) -> None:
        self.policy, self._full, self._quantised = policy, training.method == "full", quantised
        self._layers = [self._unit(layer_weights(layer)) for layer in architecture.decoder.layers]
        taken = {id(weight) for layer in architecture.decoder.layers for weight in layer_weights(layer)}
        left = [weight for _, weight, times in iter_weights(architecture) if id(weight) not in taken for _ in range(times)]
        self._quantised = None
        self._root = self._unit(left)
        if policy.ranks > 1:
            self.waiting_bytes = (IN_FLIGHT - 1) * max(unit.gathered_bytes for unit in self._layers)

    def _unit(self, weights: Iterable[Weight]) -> FlatUnit:
        kept = [weight for weight in weights if not weight.is_buffer]
        elements = sum(prod(weight.shape) * weight.count for weight in kept)
        names = frozenset(f"grad {weight.name}" for weight in kept) if self._full else frozenset[str]()
        gathered = sum(self._bytes(weight) for weight in kept)
        return FlatUnit(gathered, elements if self._full else 0, names, self.policy)

    def _bytes(self, weight: Weight) -> int:
        """As it is gathered: 4-bit values are packed into 16-bit numbers, their scales are no parameters."""
        elements = prod(weight.shape) * weight.count
        packed = self._quantised is not None and self._quantised.is_four_bit([weight])
        return -(-elements // 2) if packed else elements * self.policy.compute_bytes

    def owned(self, tensors: tuple[Trainable, ...]) -> tuple[Trainable, ...]:
        """The rank's part of each parameter."""
        return parts_of(tensors, self.policy.ranks, self.policy.shard_bytes if self._full else self.policy.adapter_bytes[1])

    def stored(self, tensors: tuple[Trainable, ...]) -> tuple[Trainable, ...]:
        """Adapters are units of their own."""
        return parts_of(tensors, self.policy.ranks, self.policy.adapter_bytes[1])

    def at(self, moment: Moment, course: Course) -> None:
        """The root is gathered from the beginning to the end; there frozen units' hooks are removed."""
        if moment == "forward":
            course.run(moves(self._root.gather()), 1, "all-gather")
        elif moment == "end":
            course.run(moves(self._root.reduce(gradients_held(course, self._root.names))), 1, "reduce-scatter")
            for component, name, size, count in list(course.level.items()):
                if name in (KEPT_INPUT, KEPT_GRADIENT):
                    course.level.change(component, name, size, -count)

    def forward(self, blocks: Blocks) -> Blocks:
        """Gathered before, given up behind."""
        return [
            (then(moves(unit.gather()), span, moves(unit.drop())), places)
            for span, places in blocks
            for unit in [self._layers[places[0]]]
        ]

    def backward(self, blocks: Blocks) -> Blocks:
        """Gathered for the second forward and again for the backward; gradients reduced, or inputs kept, behind."""
        last, found = len(self._layers) - 1, list[tuple[Span, tuple[int, ...]]]()
        for span, places in blocks:
            unit = self._layers[places[0]]
            for end in (False, True):
                here = tuple(place for place in places if (place == last) is end)
                if here:
                    behind = moves(self._reduced(span, unit))
                    kept = self._kept(span, is_last=end)
                    found.append((then(moves(unit.gather()), span, behind, kept), here))
        return found

    def _reduced(self, span: Span, unit: FlatUnit) -> list[Move]:
        if self._full:
            return unit.reduce(gradients_of(span))
        made = gradients_of(span)
        parts = list[Move]()
        for name, held, count in made:
            elements = -held.size.bytes * count // self.policy.adapter_bytes[0]
            size = Size(elements=-(-elements // self.policy.ranks), bytes=self.policy.adapter_bytes[1])
            parts += [(SHARDS, Held(size, "gradients"), 1), (name, held, count)]
        return [*parts, *unit.drop()]

    def _kept(self, span: Span, *, is_last: bool) -> Span:
        """What the hook of a frozen layer keeps: its input, and the gradient that came from the layer behind it."""
        sizes = [held.size for name, held, count in span.end_change if name == CHECKPOINT and count < 0]
        change: list[Move] = []
        for size in sizes if not self._full else ():
            change.append((KEPT_INPUT, Held(size, "activations"), 1))
            if not is_last:
                change.append((KEPT_GRADIENT, Held(size, "activations"), 1))
        end = sum(held.size.bytes for _, held, _ in change)
        return Span([(end, change)], end, change, {})


def require_flat(training: Training, policy: Policy, checkpointing: Checkpointing, architecture: Architecture) -> None:
    """Raise :class:`NotModelled` for what is not derived of FSDP1."""
    if training.precision.startswith("amp") and has_wide_norms(architecture) and training.method != "qlora":
        raise NotModelled(
            f"{architecture.model_class}: layer norms under autocast over the 16-bit units of FSDP1 have no closed form yet; "
            "choose precision bf16"
        )
    if not checkpointing or not checkpointing.reentrant or checkpointing.every > 1 or checkpointing.offloads:
        raise NotModelled(
            "training.engine_options.fsdp_version: 1 is derived where all layers are checkpoints of the reentrant "
            "implementation; choose them, or version 2"
        )
    if not wraps_units(training.engine_options.get("version")):
        raise NotModelled(
            "training.engine_options.fsdp_version: 1 is derived for checkpoints around its units, in transformers before "
            "4.52; name that release by engine_options version, or choose version 2"
        )
    if policy.accumulates or policy.offloads or not policy.reshard_after_forward:
        raise NotModelled(
            "training.engine_options.fsdp_version: 1 has no closed form with accumulated gradients, offloading or layers that "
            "stay gathered; choose version 2"
        )


def parts_of(tensors: tuple[Trainable, ...], ranks: int, dtype_bytes: int) -> tuple[Trainable, ...]:
    """A rank's equal part of every parameter, all dimensions laid flat."""
    return tuple(tensor._replace(shape=(-(-tensor.numel // ranks),), dtype_bytes=dtype_bytes) for tensor in tensors)


def flat_weights(weights: Level, ranks: int) -> Level:
    """A rank's part of quantised weights: values are parameters, what reads them is whole on every rank."""
    found = Level()
    for component, name, size, count in weights.items():
        if component != "weights":
            found.change(component, name, size, count)
            continue
        total = size.bytes * count
        part = Size.stated(rounded(-(-total // ranks)), f"({size.text()}) / ranks", bytes=total, ranks=ranks)
        found.change(component, name, part, 1)
    return found
