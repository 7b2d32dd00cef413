"""What the caching allocator holds beside the live tensors, in closed form.

Segments are taken for the weights once and never given back, so they keep their rounding. Blocks freed by one phase are
cached; the next phase reuses those that fit. From replays of traced models (135 million to 32 billion parameters, six
workloads each) the rules below give ``reserved`` within 3 % in the median, 18 % at worst.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from planner.architecture.counts import layer_weights
from planner.architecture.layers import Architecture
from planner.components.tape import Level
from planner.formats import Format, weight_bytes
from planner.memo import remember_by_identity
from planner.symbolic.amount import largest, smallest

RATIO_PARTS = 4096
"""Parts in which the share of reserved over allocated is counted."""
STATIC = ("weights", "optimizer_state")


@remember_by_identity(64)
def reserved_for_weights(architecture: Architecture, dtype_bytes: int, fmt: Format | None = None) -> tuple[int, int]:
    """Bytes (allocated, reserved) after loading: the allocator's own rules run over every weight in loading order."""
    from planner.allocator import AllocatorOptions, CachingAllocator  # noqa: PLC0415  once per model, not at every start

    allocator = CachingAllocator(AllocatorOptions())
    for index, size_bytes in enumerate(_loaded(architecture, dtype_bytes, fmt)):
        allocator.malloc(index, size_bytes)
    return allocator.allocated_bytes, allocator.reserved_bytes


def _loaded(architecture: Architecture, dtype_bytes: int, fmt: Format | None) -> Iterator[int]:
    """Bytes of every tensor in loading order; quantised weights are several."""
    weights = [*((weight, False) for weight in architecture.embeddings)]
    weights += [(weight, True) for layer in architecture.decoder.layers for weight in layer_weights(layer)]
    weights += [(weight, False) for weight in (architecture.final_norm.weights if architecture.final_norm else ())]
    weights += [(weight, False) for weight in architecture.head]
    for weight, in_decoder in weights:
        if weight.is_buffer:
            continue
        sizes: tuple[int, ...] = (prod(weight.shape) * dtype_bytes,)
        if fmt is not None:
            path = f"{architecture.decoder.name}.*." if in_decoder else ""
            sizes = tuple(stored.size_bytes for stored in weight_bytes(fmt, weight, path, in_decoder=in_decoder).tensors)
        for _ in range(weight.count):
            yield from sizes


TRANSIENT = ("workspace", "activations", "logits")
"""Components whose tensors come and go."""


def generation_reserved(levels: Mapping[str, Level], loaded: tuple[int, int]) -> dict[str, int]:
    """Reserved by phase of a generation. ``loaded``: see :func:`reserved_for_weights`.

    The growing cache is cut from the largest block the layer before has freed, so that the next layer's request for
    that block takes a new segment: one block of the largest transient comes on top.
    """
    kept = loaded[1] - loaded[0]
    prefill = levels["prefill"].total + kept + levels["prefill"].largest(TRANSIENT)
    figures = {"load": largest(loaded[1], levels["load"].total), "prefill": prefill}
    if "decode" in levels:
        figures["decode"] = largest(prefill, levels["decode"].total + kept)
    return figures


def training_reserved(levels: Mapping[str, Level], loaded: tuple[int, int]) -> dict[str, int]:
    """Reserved by phase of the steady training step.

    Gradients and the optimizer's transient of the step before stay cached; activations find room in them, the blocks
    of the logits do not.
    """
    ratio = loaded[1] * RATIO_PARTS // loaded[0]

    def segments(size_bytes: int) -> int:
        return size_bytes * ratio // RATIO_PARTS

    parts = {name: level.components() for name, level in levels.items()}
    forward, optimizer = parts["forward"], parts["optimizer"]
    static = sum(optimizer.get(name, 0) for name in STATIC)
    updated = segments(levels["optimizer"].total - static)
    rest = sum(size for name, size in forward.items() if name not in (*STATIC, "logits", "gradients"))
    logits = largest(forward.get("logits", 0), parts["backward"].get("logits", 0))
    step = segments(static) + forward.get("logits", 0) + largest(rest, updated)
    backward = levels["backward"].total - static + levels["backward"].largest(TRANSIENT)
    last = largest(segments(levels["optimizer"].total), segments(static) + largest(backward, logits + updated))
    return {"load": largest(loaded[1], levels["load"].total), "forward": step, "backward": last, "optimizer": last}


def settle_reserved(reserved: Mapping[str, int], levels: Mapping[str, Level], room_bytes: int) -> list[int]:
    """The figures in order: never below what is allocated, never falling, within the card where the phase fits it.

    Before it fails, the allocator gives back what it caches; so a phase whose tensors fit is held to the card.
    """
    settled: list[int] = []
    for name, level in levels.items():
        figure = largest(reserved[name], level.total, *settled[-1:])
        settled.append(smallest(figure, largest(room_bytes, level.total)))
    return settled
