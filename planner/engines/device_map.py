"""Where accelerate's device map lays a model's modules: layers whole, in their order, GPU after GPU.

transformers 5.23 ``integrations/accelerate.py``: ``get_balanced_memory`` (``device_map`` auto and balanced are the same),
``infer_auto_device_map``. A tied head follows its embedding; the first GPU keeps room for the largest module to come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from planner.architecture.counts import layer_indices, layer_weights, numel
from planner.architecture.layers import Architecture, Layer, Weight
from planner.components.quantised import QuantisedWeights
from planner.formats.storage import BitsAndBytes4Bit
from planner.memo import remember_by_identity
from planner.modelled import NotModelled
from planner.record import record
from planner.symbolic.amount import smallest

BUFFER_PARTS = (5, 4)
"""A GPU may take its even share and 1.25 times the largest module more."""
QUANTISING_PARTS = (9, 10)
"""bitsandbytes leaves a tenth of every share to what quantising makes (``adjust_max_memory``)."""


@record
class Module:
    """What is placed as a whole: an embedding, a layer, the last norm, a head of its own."""

    kind: str
    size_bytes: int


@record
class Share:
    """What one GPU holds: a run of layers, and which of the ends."""

    index: int
    layers: range
    embeddings: tuple[int, ...] = ()
    norm: bool = False
    head: bool = False
    rotary: bool = False
    """Cosines and sines are made here (the module comes behind the last norm)."""


def modules_of(architecture: Architecture, dtype_bytes: int, quantised: QuantisedWeights | None = None) -> tuple[Module, ...]:
    """The modules in the order of the model's code; sizes as the map counts them, a tied head as nothing."""

    def size(weights: Iterator[Weight] | Sequence[Weight]) -> int:
        doubled = sum(numel(weight) * _doubled_bytes(weight, dtype_bytes, quantised) for weight in weights)
        return doubled // 2

    layers = {id(layer): size(layer_weights(layer)) for layer, _ in layer_indices(architecture.decoder)}
    found = [Module("embedding", size((weight,))) for weight in architecture.embeddings]
    found += [Module("layer", layers[id(layer)]) for layer in architecture.decoder.layers]
    if architecture.final_norm is not None:
        found.append(Module("norm", size(architecture.final_norm.weights)))
    if architecture.head:
        found.append(Module("head", size(architecture.head)))
    return tuple(found)


def _doubled_bytes(weight: Weight, dtype_bytes: int, quantised: QuantisedWeights | None) -> int:
    scheme = quantised.scheme((weight,)) if quantised is not None and weight.role in ("linear", "expert") else None
    if scheme is None:
        return 2 * dtype_bytes
    return 1 if isinstance(scheme, BitsAndBytes4Bit) else 2


@remember_by_identity(64)
def require_placed(architecture: Architecture, quantised: QuantisedWeights | None) -> None:
    """Raise :class:`NotModelled` for models whose modules are laid otherwise."""
    if architecture.kind != "decoder" or architecture.towers:
        raise NotModelled(f"hardware.gpus: where a device map lays the parts of an {architecture.kind} with towers is not derived")
    if quantised is not None and not quantised.fmt.name.startswith(("nf4", "fp4", "int8")):
        raise NotModelled(f"hardware.gpus: how a device map counts weights in {quantised.fmt.name} is not derived")


def balanced_shares(
    architecture: Architecture, dtype_bytes: int, quantised: QuantisedWeights | None, free_bytes: Sequence[int]
) -> tuple[Share, ...]:
    """What each GPU holds, ``free_bytes`` free on it. What would go to the host stays on the last: it does not fit."""
    modules, gpus = modules_of(architecture, dtype_bytes, quantised), len(free_bytes)
    even = sum(module.size_bytes for module in modules) // gpus
    even += max(module.size_bytes for module in modules) * BUFFER_PARTS[0] // BUFFER_PARTS[1]
    limits = [smallest(even, free) for free in free_bytes]
    if quantised is not None:
        limits = [limit * QUANTISING_PARTS[0] // QUANTISING_PARTS[1] for limit in limits]
    return shares_of(modules, placed(modules, limits), gpus)


def placed(modules: Sequence[Module], limits_bytes: Sequence[int]) -> list[int]:
    """The GPU of each module when all but the last take their limit of bytes."""
    found: list[int] = []
    gpus = len(limits_bytes)
    gpu = used = 0
    for position, module in enumerate(modules):
        kept = _largest_after(modules, position)
        while gpu < gpus - 1 and used + module.size_bytes > limits_bytes[gpu] - (kept if gpu == 0 else 0):
            gpu, used = gpu + 1, 0
        found.append(gpu)
        used += module.size_bytes
    return found


def _largest_after(modules: Sequence[Module], position: int) -> int:
    return max((module.size_bytes for module in modules[position + 1 :]), default=0)


def shares_of(modules: Sequence[Module], places: Sequence[int], gpus: int) -> tuple[Share, ...]:
    """The modules of each GPU as one share."""
    last = places[-1]
    shares: list[Share] = []
    first = 0
    for gpu in range(gpus):
        here = [module.kind for module, place in zip(modules, places, strict=True) if place == gpu]
        layers = here.count("layer")
        kinds = [module.kind for module in modules]
        embeddings = tuple(index for index in range(kinds.count("embedding")) if places[index] == gpu)
        rotary = gpu == (places[kinds.index("norm")] if "norm" in kinds else last)
        shares.append(Share(gpu, range(first, first + layers), embeddings, "norm" in here, "head" in here, rotary))
        first += layers
    return tuple(shares)


def kept_share(architecture: Architecture, dtype_bytes: int, kept_bytes: int) -> Share:
    """What stays on the only GPU when it may keep ``kept_bytes`` of the weights: modules from the first on."""
    modules = modules_of(architecture, dtype_bytes)
    total, kept = 0, [0] * len(modules)
    for position, module in enumerate(modules):
        total += module.size_bytes
        kept[position] = 0 if total <= kept_bytes else 1
    return replace(shares_of(modules, kept, 2)[0], rotary=True)


@remember_by_identity(256)
def share_of_model(architecture: Architecture, share: Share) -> Architecture:
    """The part of a model that one GPU holds, as a model of its own."""
    return replace(
        architecture,
        embeddings=tuple(architecture.embeddings[index] for index in share.embeddings),
        decoder=replace(architecture.decoder, layers=_layers(architecture, share), weights=()),
        final_norm=architecture.final_norm if share.norm else None,
        head=architecture.head if share.head else (),
        tied_head=False,
    )


def _layers(architecture: Architecture, share: Share) -> tuple[Layer, ...]:
    return architecture.decoder.layers[share.layers.start : share.layers.stop]
