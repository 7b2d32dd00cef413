"""What the caching allocator holds beside the live tensors, in closed form.

Segments are taken for weights and optimizer states once and never given back: the allocator's own rules run over them, once for
each model and optimizer. Blocks freed by one phase are cached; the next phase reuses those that fit. Every term grows with
layers, batch and sequence, and so does their sum. Replays of whole models (tests/accuracy/reserved.py) say how far it is off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

from planner.architecture.counts import layer_weights
from planner.architecture.layers import Architecture, Layer
from planner.components.optimizers import DEFAULT_RANK, OPTIMIZERS
from planner.components.tape import Level, rounded
from planner.components.trainable import Trainable
from planner.footprint import OBJECTIVE_PHASES
from planner.formats import Format, weight_bytes
from planner.memo import remember_by_identity
from planner.record import record
from planner.symbolic.amount import largest, smallest


@record
class TrainedSegments:
    """Bytes of the segments that hold optimizer states, and of those that hold the gradients when nothing else is cached.

    ``held_bytes``: of the states in these segments.
    """

    states_bytes: int
    gradients_bytes: int
    held_bytes: int


@remember_by_identity(64)
def reserved_for_weights(architecture: Architecture, dtype_bytes: int, fmt: Format | None = None) -> tuple[int, int]:
    """Bytes (allocated, reserved) after loading: the allocator's own rules run over every weight.

    The layers come last, so that a layer more only adds to what there was.
    """
    from planner.allocator import AllocatorOptions, CachingAllocator  # noqa: PLC0415  once per model, not at every start

    allocator = CachingAllocator(AllocatorOptions())
    for index, size_bytes in enumerate(_loaded(architecture, dtype_bytes, fmt)):
        allocator.malloc(index, size_bytes)
    return allocator.allocated_bytes, allocator.reserved_bytes


@remember_by_identity(64)
def trained_segments(tensors: Sequence[Trainable], optimizer: str, rank: int = DEFAULT_RANK) -> TrainedSegments:
    """What the trained parameters' states and gradients take, layer after layer."""
    kinds = [
        [state.numel * state.width for state in OPTIMIZERS[optimizer].states(each, rank) if not state.on_host] for each in tensors
    ]
    held = sum(each.times * sum(map(rounded, sizes)) for each, sizes in zip(tensors, kinds, strict=True))
    gradients = [[each.numel * each.dtype_bytes] for each in tensors]
    return TrainedSegments(_segments(tensors, kinds), _segments(tensors, gradients), held)


def _segments(tensors: Sequence[Trainable], sizes: Sequence[Sequence[int]]) -> int:
    """Reserved after allocating the ``sizes`` of each tensor: of all once, then of all that there are twice, and so on.

    Of many repeats (experts) the first ones are played, and the rest take what the later half of those took.
    """
    from planner.allocator import AllocatorOptions, CachingAllocator  # noqa: PLC0415  once per model, not at every start

    allocator, number = CachingAllocator(AllocatorOptions()), 0
    repeats = max((tensor.times for tensor in tensors), default=0)
    reserved = [0]
    for repeat in range(min(repeats, PLAYED_REPEATS)):
        for tensor, each in zip(tensors, sizes, strict=True):
            for size_bytes in each if repeat < tensor.times else ():
                allocator.malloc(number, size_bytes)
                number += 1
        reserved.append(allocator.reserved_bytes)
    half = PLAYED_REPEATS // 2
    rest = (reserved[-1] - reserved[half]) * (repeats - PLAYED_REPEATS) // half if repeats > PLAYED_REPEATS else 0
    return reserved[-1] + rest


def _loaded(architecture: Architecture, dtype_bytes: int, fmt: Format | None) -> Iterator[int]:
    """Bytes of every tensor, those of the layers last; quantised weights are several."""
    weights = [*((weight, False) for weight in architecture.embeddings)]
    weights += [(weight, False) for weight in (architecture.final_norm.weights if architecture.final_norm else ())]
    weights += [(weight, False) for weight in architecture.head]
    weights += [(weight, True) for layer in architecture.decoder.layers for weight in layer_weights(layer)]
    for weight, in_decoder in weights:
        if weight.is_buffer or weight.role == "expert":
            continue
        sizes: tuple[int, ...] = (prod(weight.shape) * dtype_bytes,)
        if fmt is not None:
            path = f"{architecture.decoder.name}.*." if in_decoder else ""
            sizes = tuple(stored.size_bytes for stored in weight_bytes(fmt, weight, path, in_decoder=in_decoder).tensors)
        for _ in range(weight.count):
            yield from sizes
    for layer in architecture.decoder.layers:
        yield from _stacked_experts(layer, dtype_bytes, fmt, f"{architecture.decoder.name}.*.")


def _stacked_experts(layer: Layer, dtype_bytes: int, fmt: Format | None, path: str) -> Iterator[int]:
    """All experts of a layer are two tensors (transformers 5.23 ``integrations/moe.py``): the first linears, and the last.

    Quantised ones are two of each kind of tensor.
    """
    sizes: dict[tuple[bool, str], int] = {}
    for weight in layer_weights(layer):
        if weight.role != "expert":
            continue
        stored = {"": prod(weight.shape) * dtype_bytes}
        if fmt is not None:
            stored = {one.name: one.size_bytes for one in weight_bytes(fmt, weight, path, in_decoder=True).tensors}
        for name, size_bytes in stored.items():
            key = ("down" in weight.name or ".w2" in weight.name, name)
            sizes[key] = sizes.get(key, 0) + size_bytes * weight.count
    yield from sizes.values()


PLAYED_REPEATS = 128
"""So many tensors of a kind are allocated one by one."""
LOADED = ("weights", "master_weights", "quantization_state", "workspace")
"""Components that the segments of the loaded weights hold."""
TRANSIENT = ("workspace", "activations", "logits")
"""Components whose tensors come and go."""


@record
class Asked:
    """Bytes that a training step asks of an allocator with nothing cached.

    ``logits_bytes``: all logits at the loss's highest moment; ``largest_logits_bytes``: of the largest of these tensors;
    ``logits_blocks_bytes``: blocks of every size of logits in forward and backward, as many as are live at once.
    ``stack_bytes``: the highest level until the layers' forward is over; ``slack_bytes``: what a layer's tensors take beyond
    their peak when none finds room in a block of another size. ``is_regular``: layers leave tensors of one size alone.
    """

    logits_bytes: int = 0
    largest_logits_bytes: int = 0
    logits_blocks_bytes: int = 0
    stack_bytes: int = 0
    slack_bytes: int = 0
    is_regular: bool = False


def generation_reserved(levels: Mapping[str, Level], loaded: tuple[int, int]) -> dict[str, int]:
    """Reserved by phase of a generation. ``loaded``: see :func:`reserved_for_weights`.

    The growing cache is cut from the largest block the layer before has freed, so that the next layer's request for
    that block takes a new segment: one block of the largest transient comes on top.
    """
    load = levels["load"].total
    prefill = loaded[1] + levels["prefill"].total - load + levels["prefill"].largest(TRANSIENT)
    figures = {"load": largest(loaded[1], load), "prefill": prefill}
    if "decode" in levels:
        figures["decode"] = largest(prefill, loaded[1] + levels["decode"].total - load)
    return figures


def training_reserved(
    levels: Mapping[str, Level],
    loaded: tuple[int, int],
    segments: TrainedSegments | None = None,
    asked: Asked | None = None,
) -> dict[str, int]:
    """Reserved by phase of the steady training step.

    The first step takes blocks for the layers' forward, and beside them, since nothing that is cached is as large, one for
    every tensor of logits of a size that is live at once; what follows finds room in these. What it took, without
    states, stays cached for the later steps. There gradients and the optimizer's transient are cached too; activations find
    room in them, the blocks of the logits do not, and where the blocks of the first step are held in part by what trains, or
    laid over otherwise by layers that leave tensors of many sizes, one of the logits' blocks is taken again.

    What an objective generates or scores before takes all it needs beside what the steps before left cached.

    ``segments``: see :func:`trained_segments` (None: as much as is allocated); ``asked``: None is as the peaks of the phases
    show it.
    """
    parts = {name: level.components() for name, level in levels.items()}
    load, backward, optimizer = levels["load"].total, levels["backward"], parts["optimizer"]
    states, gradients = optimizer.get("optimizer_state", 0), optimizer.get("gradients", 0)
    found = segments or TrainedSegments(states, gradients, states)
    asked = asked or Asked(parts["forward"].get("logits", 0), backward.largest(TRANSIENT))
    held = loaded[1] + sum(size for name, size in parts["load"].items() if name not in LOADED)
    static = held + found.states_bytes + largest(0, states - found.held_bytes)
    updated = levels["optimizer"].total - load - states
    if gradients:
        updated += found.gradients_bytes - gradients
    again = asked.largest_logits_bytes
    if asked.is_regular:
        again = smallest(again, updated)
    stack = asked.stack_bytes - load - states + asked.slack_bytes + asked.logits_blocks_bytes
    descent = largest(backward.total - load - states + largest(again, asked.slack_bytes), stack)
    step = largest(static + largest(levels["forward"].total - load - states, asked.logits_bytes + updated), held + descent)
    last = largest(step, static + descent)
    more = {
        name: largest(last, static + level.total - load - states + (level.largest(TRANSIENT) if name == "generation" else 0))
        for name, level in levels.items()
        if name in OBJECTIVE_PHASES
    }
    return {"load": largest(held, load), "forward": step, "backward": last, "optimizer": last} | more


def settle_reserved(reserved: Mapping[str, int], levels: Mapping[str, Level], room_bytes: int) -> list[int]:
    """The figures in order: never below what is allocated, never falling, within the card where the phase fits it.

    Before it fails, the allocator gives back what it caches; so a phase whose tensors fit is held to the card.
    """
    settled: list[int] = []
    for name, level in levels.items():
        figure = largest(reserved[name], level.total, *settled[-1:])
        settled.append(smallest(figure, largest(room_bytes, level.total)))
    return settled
