"""Machines whose GPUs differ: what each engine makes of cards of several sizes.

llama.cpp gives every device layers by the memory it finds free (``llama-model.cpp`` ``load_tensors``), a device map fills them
up to an even share (accelerate's ``get_balanced_memory``), and servers take from each rank's card what they take from every
other: the smallest bounds the pool.
"""

from __future__ import annotations

from dataclasses import replace

from planner.faults import Fault, Faults
from planner.footprint import Footprint, Verdict, judge
from planner.gpu import Gpu
from planner.machine import Overheads
from planner.modelled import NotModelled
from planner.scenario import Scenario
from planner.symbolic.amount import smallest

WORST: tuple[Verdict, ...] = ("unknown", "does_not_fit", "tight", "fits")
UNBALANCED_PARTS = (9, 10)
"""SGLang refuses tensor parallelism over cards one of which has less than nine tenths of another free
(0.5.3 ``model_runner.py`` ``init_torch_distributed``)."""
BY_LAYERS = ("transformers", "llama.cpp")
"""Engines that give each card what it can hold."""


def cards_of(scenario: Scenario, gpu: Gpu) -> tuple[Gpu, ...]:
    """The cards of a machine whose cards differ, else none. Raises :class:`Faults` where their figures are not at hand."""
    if not scenario.hardware.cards:
        return ()
    cards = (gpu, *gpu.beside)
    if not len(cards) == len(scenario.hardware.cards) == scenario.hardware.gpus * scenario.hardware.nodes:
        raise Faults([Fault("hardware.cards", f"{len(scenario.hardware.cards)} cards are named, {len(cards)} are known here")])
    return cards


def require_derived(scenario: Scenario, cards: tuple[Gpu, ...]) -> None:
    """Raise :class:`NotModelled` for what is not derived over cards that differ."""
    if cards and scenario.task == "training":
        raise NotModelled("hardware.cards: a training over GPUs that differ has no closed form yet")


def _used(scenario: Scenario, cards: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    spread = scenario.parallel
    return cards[: spread.tensor * spread.pipeline * spread.data]


def smallest_card(scenario: Scenario, cards: tuple[Gpu, ...]) -> Gpu:
    """The card that bounds a server over those it uses. Raises :class:`Faults` for what SGLang refuses."""
    used = _used(scenario, cards)
    least, most = min(card.capacity_bytes for card in used), max(card.capacity_bytes for card in used)
    if scenario.engine == "sglang" and scenario.parallel.tensor > 1 and least * UNBALANCED_PARTS[1] < most * UNBALANCED_PARTS[0]:
        message = "SGLang refuses tensor parallelism over cards whose memory differs by more than a tenth; use pipeline"
        raise Faults([Fault("parallel.tensor", message)])
    return min(used, key=lambda card: card.capacity_bytes)


def slowest_card(scenario: Scenario, gpu: Gpu) -> Gpu:
    """The card with the least bandwidth, as fast as which all are taken to be."""
    return min(cards_of(scenario, gpu) or (gpu,), key=lambda card: card.bandwidth_bytes_per_s or 0)


def settled_over(scenario: Scenario, cards: tuple[Gpu, ...], machine: Overheads) -> Scenario:
    """llama.cpp's split, by what is free beside a context, where none is given."""
    options = scenario.inference.engine_options
    if scenario.task != "inference" or scenario.engine != "llama.cpp" or options.get("tensor_split"):
        return scenario
    shares = ",".join(str(card.capacity_bytes - machine.context_bytes) for card in cards)
    return replace(scenario, inference=replace(scenario.inference, engine_options={**options, "tensor_split": shares}))


def mixed_notes(scenario: Scenario, cards: tuple[Gpu, ...]) -> tuple[str, ...]:
    """What the engine makes of them, in words."""
    names = ", ".join(card.name for card in cards)
    if scenario.engine in BY_LAYERS:
        said = "each holds layers by its own memory"
    else:
        said = "every rank's pool is as large as the smallest card it uses allows"
    return (f"hardware.cards: {names}: {said}; speed as if all were the slowest",)


def over_cards(found: Footprint, scenario: Scenario, cards: tuple[Gpu, ...]) -> Footprint:
    """The footprint with each card's own capacity, and judged by the card that comes off worst."""
    gpus = tuple(replace(one, capacity_bytes=cards[one.index].capacity_bytes) for one in found.gpus)
    if scenario.engine not in BY_LAYERS or found.verdict == "unknown" or any(one.peak is None for one in gpus):
        return replace(found, gpus=gpus)
    band = found.uncertainty_bytes or 0
    pairs = [(one.peak.device, one.capacity_bytes or 0) for one in gpus if one.peak is not None]
    verdict = min((judge(device, capacity, band) for device, capacity in pairs), key=WORST.index)
    return replace(found, gpus=gpus, verdict=verdict, headroom_bytes=smallest(*(capacity - device for device, capacity in pairs)))
