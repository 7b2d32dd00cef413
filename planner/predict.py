"""How a question becomes an answer: settle the defaults, let the engine lay out its phases, add what the machine adds.

``predict`` is pure and instant: scenario, architecture and GPU in, footprint out. What it has no derivation for makes
the verdict ``unknown``, with the reason among the notes and everything that is known (parameters, weights) still said.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from planner.architecture.counts import parameter_count
from planner.architecture.layers import Architecture
from planner.defaults import settle
from planner.engines.mixed import cards_of, mixed_notes, over_cards, require_derived, settled_over, slowest_card, smallest_card
from planner.engines.releases import format_of_release
from planner.engines.served import SERVED, serving_answer
from planner.engines.unified import in_one_memory
from planner.engines.unused import unused
from planner.faults import Fault, Faults
from planner.footprint import Footprint, GpuFootprint
from planner.formats.catalog import UnknownFormat, parse_format
from planner.formats.checkpoint import BytesUnknown, known_bytes
from planner.formats.format import Format
from planner.gpu import Gpu
from planner.later import LaterMapping, LaterSequence
from planner.machine import Overheads, overheads
from planner.modelled import NotModelled
from planner.repeat import answer, counts_of, fields_of, question_of, with_counts
from planner.scenario import Offload, Parallel, Scenario, to_json

Device = Literal["cuda", "cpu"]


def predict(
    scenario: Scenario, architecture: Architecture, gpu: Gpu, native: Format | None = None, *, device: Device = "cuda"
) -> Footprint:
    """The footprint of a scenario.

    ``native``: the format of the checkpoint (default: plain, in the config's dtype). ``device``: ``cpu`` predicts the
    same run on a CPU, where reserved equals allocated and device is the process's own growth. Terms are worked out when
    they are looked at. Raises :class:`planner.faults.Faults` for choices that contradict each other.
    """
    names, values = counts_of(scenario)

    def fields(*counts: int) -> dict[str, Any]:
        return fields_of(answer_alone(with_counts(scenario, names, counts), architecture, gpu, native, device))

    question = question_of(scenario, names, architecture, gpu, native, device)
    whole = cache(lambda: answer_alone(scenario, architecture, gpu, native, device))
    return Footprint(
        **answer(question, fields, values),
        terms=LaterSequence(lambda: whole().terms),
        limits=LaterMapping(lambda: _limits(scenario, architecture, gpu, native, whole())),
        speed=LaterMapping(lambda: _speed(scenario, architecture, gpu, native)),
        extra=LaterMapping(lambda: whole().extra),
    )


def _limits(
    scenario: Scenario, architecture: Architecture, gpu: Gpu, native: Format | None, found: Footprint
) -> dict[str, int | None]:
    from planner.solve import Asked, limits  # noqa: PLC0415  asks many predictions of its own

    settled, _ = settle(scenario, architecture, _stored(scenario, architecture, native))
    return limits(Asked(settled, architecture, gpu, native), found.limits)


def _speed(scenario: Scenario, architecture: Architecture, gpu: Gpu, native: Format | None) -> dict[str, float | str | None]:
    from planner.speed import speed  # noqa: PLC0415  for those who look

    settled, fmt = settled_of(scenario, architecture, native)
    try:
        return speed(settled, architecture, fmt, slowest_card(settled, gpu))
    except NotModelled:
        return {}


def _stored(scenario: Scenario, architecture: Architecture, native: Format | None) -> str:
    """The format of the checkpoint; serving engines run in 16 bit what it keeps in fp32 (vLLM ``_resolve_auto_dtype``)."""
    if native is not None and native.is_quantized:
        return "native"
    return "bf16" if scenario.engine in SERVED and architecture.dtype == "fp32" else architecture.dtype


def settled_of(scenario: Scenario, architecture: Architecture, native: Format | None) -> tuple[Scenario, Format]:
    """The scenario with every default filled in, and the format its weights are stored in."""
    settled, _ = settle(scenario, architecture, _stored(scenario, architecture, native))
    fmt = native if native is not None and settled.weights == "native" else _format(settled.weights)
    return settled, format_of_release(settled, architecture, fmt)


def answer_alone(scenario: Scenario, architecture: Architecture, gpu: Gpu, native: Format | None, device: Device) -> Footprint:
    """The footprint worked out from the scenario alone, whatever was asked before."""
    settled, notes = settle(scenario, architecture, _stored(scenario, architecture, native))
    fmt = native if native is not None and settled.weights == "native" else _format(settled.weights)
    fmt = format_of_release(settled, architecture, fmt)
    notes = (*notes, *architecture.notes, *unused(scenario, architecture))
    cards = cards_of(settled, gpu)
    if cards and settled.task == "inference" and settled.engine in SERVED:
        gpu = smallest_card(settled, cards)
    machine = overheads(gpu if device == "cuda" else None)
    capacity = settled.hardware.capacity_bytes or gpu.capacity_bytes
    if cards:
        settled, notes = settled_over(settled, cards, machine), (*notes, *mixed_notes(settled, cards))
    found = _beside_others(settled, architecture, fmt, gpu, machine, capacity, notes, device, cards)
    if cards:
        return over_cards(found, settled, cards)
    return in_one_memory(found, settled) if gpu.unified and device == "cuda" else found


def _beside_others(
    settled: Scenario, architecture: Architecture, fmt: Format, gpu: Gpu, machine: Overheads, capacity: int,
    notes: tuple[str, ...], device: Device, cards: tuple[Gpu, ...],
) -> Footprint:  # fmt: skip
    """What the engine holds, and the embedding model beside it where there is one."""
    if settled.task == "training" or not settled.inference.embedder.is_held:
        return _answer(settled, architecture, fmt, gpu, machine, capacity, notes, device, cards)
    from planner.engines.embedder import embedder_beside, with_embedder, with_room_for  # noqa: PLC0415  loaded for those who ask

    beside = embedder_beside(settled, machine)
    found = _answer(settled, architecture, fmt, gpu, with_room_for(machine, beside), capacity, notes, device, cards)
    return found if beside is None else with_embedder(found, settled, machine, beside)


def _answer(
    settled: Scenario, architecture: Architecture, fmt: Format, gpu: Gpu, machine: Overheads, capacity: int,
    notes: tuple[str, ...], device: Device, cards: tuple[Gpu, ...] = (),
) -> Footprint:  # fmt: skip
    """What the engine holds. ``cards``: those of a machine whose cards differ."""
    try:
        if settled.task == "inference" and settled.engine == "llama.cpp":
            from planner.engines.llama_cpp.answer import llama_cpp_answer  # noqa: PLC0415  loaded for those who ask

            return llama_cpp_answer(settled, architecture, fmt, machine, capacity, notes)
        if settled.task == "inference" and settled.engine in SERVED:
            return serving_answer(settled.engine)(settled, architecture, fmt, gpu, machine, capacity, notes)
        require_derived(settled, cards)
        if settled.task == "training" and _is_spread(settled):
            from planner.engines.sharded.answer import sharded_answer  # noqa: PLC0415  loaded for those who ask

            return sharded_answer(settled, architecture, fmt, machine, capacity, notes, cuda=device == "cuda")
        from planner.engines.transformers_answer import transformers_answer  # noqa: PLC0415  loaded for those who ask

        capacities = tuple(card.capacity_bytes for card in cards)
        return transformers_answer(
            settled, architecture, fmt, machine, capacity, notes, cuda=device == "cuda", capacities=capacities
        )
    except (NotModelled, BytesUnknown) as reason:
        return _unknown(settled, architecture, fmt, capacity, (*notes, f"unknown: {reason}"))


def _is_spread(scenario: Scenario) -> bool:
    """Whether a training takes more than the plain step of one GPU."""
    cards = scenario.hardware.gpus * scenario.hardware.nodes
    return (scenario.engine, cards, scenario.parallel, scenario.offload) != ("transformers", 1, Parallel(), Offload())


def _format(name: str) -> Format:
    try:
        return parse_format(name)
    except UnknownFormat as error:
        raise Faults([Fault("weights", str(error))]) from error


def _unknown(scenario: Scenario, architecture: Architecture, fmt: Format, capacity: int, notes: tuple[str, ...]) -> Footprint:
    """Everything that is known when a phase is not: parameters and weights; weights beyond every card's memory do not fit."""
    weights = known_bytes(architecture, fmt)
    cards = scenario.hardware.gpus * scenario.hardware.nodes
    too_large = weights is not None and not scenario.offload.weights and weights > cards * capacity
    return Footprint(
        scenario=to_json(scenario),
        level="predict",
        parameters=parameter_count(architecture),
        trainable_parameters=0,
        weight_bytes=weights,
        gpus=(GpuFootprint(0, capacity, ()),),
        verdict="does_not_fit" if too_large else "unknown",
        notes=notes,
    )
