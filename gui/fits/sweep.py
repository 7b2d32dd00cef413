"""The questions of the tab, asked of the planner one after the other, away from the window. Nothing here knows of widgets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from planner.faults import Faults
from planner.footprint import Footprint, Verdict
from planner.predict import predict
from planner.scenario import Scenario
from resources.gpus import gpu as find_gpu
from resources.gpus import gpu_names

if TYPE_CHECKING:
    from resources.plan import Plan

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
COUNTS = (1, 2, 4, 8)
FORMATS = ("bf16", "fp8", "int8", "nf4")
"""Tried from the most precise downwards, where the stored one does not fit."""
CARDS = (
    "GeForce RTX 4060 Ti 16GB", "GeForce RTX 3090", "GeForce RTX 4090", "GeForce RTX 5090", "L4", "L40S", "RTX 6000 Ada",
    "RTX PRO 6000 Blackwell Workstation", "A100 SXM4 40GB", "A100 SXM4 80GB", "H100 SXM5 80GB", "H200 SXM 141GB", "B200 SXM 180GB",
    "Instinct MI300X",
)  # fmt: skip
_FEWEST_TOKENS, _MOST_COLUMNS = 512, 11
_MOST_TOKENS, _MOST_BATCH = 2**24, 2**20
GOOD = ("fits", "tight")
Ask = Callable[[Scenario], Footprint | None]


@dataclass(frozen=True, slots=True)
class Answer:
    """How one scenario does: its verdict, and how full it is (None: unknown).

    Of the fullest GPU; where an engine reserves its pool of cache whatever comes, of the tokens the pool has room for.
    """

    scenario: Scenario
    verdict: Verdict
    share: float | None


@dataclass(frozen=True, slots=True)
class Map:
    """Answers by batch (rows, upwards) and context (columns)."""

    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    answers: tuple[tuple[Answer, ...], ...]


@dataclass(frozen=True, slots=True)
class CardRow:
    """One card with each of :data:`COUNTS`."""

    name: str
    memory_bytes: int
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Inverse:
    """An inverse question with its answer; ``scenario`` None: there is none."""

    question: str
    value: str
    scenario: Scenario | None


@dataclass(frozen=True, slots=True)
class Fits:
    """All that the tab shows of one plan."""

    map: Map
    cards: tuple[CardRow, ...]
    inverse: tuple[Inverse, ...]


def fits_of(plan: Plan, settled: Scenario) -> Fits:
    """Answer everything for a plan. Takes a few hundred predictions."""
    ask = partial(_ask, plan)
    cards = tuple(_card_row(plan, settled, name) for name in _cards(plan))
    own = next(row for row in cards if row.name == plan.gpu.name)
    return Fits(_map(settled, ask, plan.architecture.max_context_tokens), cards, _inverse(settled, ask, own, plan))


def with_load(scenario: Scenario, batch: int | None = None, context: int | None = None) -> Scenario:
    """The scenario with so many sequences of so many tokens each (prompt and new ones together)."""
    if scenario.task == "training":
        training = scenario.training
        return replace(scenario, training=replace(training, batch=batch or training.batch, sequence=context or training.sequence))
    inference = scenario.inference
    if context is not None:
        new_tokens = min(inference.new_tokens or 1, context // 2)
        inference = replace(inference, new_tokens=new_tokens, prompt_tokens=context - new_tokens)
    return replace(scenario, inference=replace(inference, batch=batch or inference.batch))


def with_cards(scenario: Scenario, name: str, count: int) -> Scenario:
    """The scenario on ``count`` cards: inference splits every matrix, training the batch."""
    hardware = replace(scenario.hardware, gpu=name, gpus=count, nodes=1, capacity_bytes=None)
    parallel = replace(scenario.parallel, tensor=1, pipeline=1, data=1, context=1, expert=1)
    parallel = replace(parallel, tensor=count) if scenario.task == "inference" else replace(parallel, data=count)
    return replace(scenario, hardware=hardware, parallel=parallel)


def context_of(scenario: Scenario) -> int:
    """Tokens of one sequence of a settled scenario."""
    if scenario.task == "training":
        return scenario.training.sequence or 1
    return (scenario.inference.prompt_tokens or 1) + (scenario.inference.new_tokens or 0)


def batch_of(scenario: Scenario) -> int:
    """Sequences at once."""
    return scenario.training.batch if scenario.task == "training" else scenario.inference.batch


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest count up to ``most`` that fits, 0 when even 1 does not: memory grows with a count."""
    if not fits(1):
        return 0
    low, high = 1, 2
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _ask(plan: Plan, scenario: Scenario, name: str | None = None) -> Footprint | None:
    try:
        return predict(scenario, plan.architecture, find_gpu(name) if name else plan.gpu, plan.model.native)
    except Faults:
        return None


def _answer(scenario: Scenario, footprint: Footprint | None) -> Answer:
    if footprint is None:
        return Answer(scenario, "unknown", None)
    pool_tokens = footprint.limits.get("kv_tokens")
    if pool_tokens:
        return Answer(scenario, footprint.verdict, batch_of(scenario) * context_of(scenario) / pool_tokens)
    shares = [gpu.peak.device / gpu.capacity_bytes for gpu in footprint.gpus if gpu.peak and gpu.capacity_bytes]
    return Answer(scenario, footprint.verdict, max(shares, default=None))


def _map(settled: Scenario, ask: Ask, limit: int | None) -> Map:
    contexts = _contexts(limit or context_of(settled))
    rows = ((with_load(settled, batch, context) for context in contexts) for batch in BATCHES)
    return Map(contexts, BATCHES, tuple(tuple(_answer(one, ask(one)) for one in row) for row in rows))


def _contexts(limit: int) -> tuple[int, ...]:
    found = [_FEWEST_TOKENS]
    while found[-1] * 2 <= limit:
        found.append(found[-1] * 2)
    return tuple(found[-_MOST_COLUMNS:])


def _cards(plan: Plan) -> list[str]:
    known = [name for name in CARDS if name in gpu_names()]
    return known if plan.gpu.name in known else [plan.gpu.name, *known]


def _card_row(plan: Plan, settled: Scenario, name: str) -> CardRow:
    scenarios = [with_cards(settled, name, count) for count in COUNTS]
    return CardRow(name, find_gpu(name).capacity_bytes, tuple(_answer(one, _ask(plan, one, name)) for one in scenarios))


def _inverse(settled: Scenario, ask: Ask, own: CardRow, plan: Plan) -> tuple[Inverse, ...]:
    limit = min(plan.architecture.max_context_tokens or _MOST_TOKENS, _MOST_TOKENS)

    def good(scenario: Scenario) -> bool:
        found = ask(scenario)
        return found is not None and found.verdict in GOOD

    if _answer(settled, ask(settled)).verdict == "unknown":
        return ()
    context = largest(lambda tokens: good(with_load(settled, context=max(tokens, 2))), limit)
    batch = largest(lambda count: good(with_load(settled, batch=count)), _MOST_BATCH)
    fewest = next(((count, one) for count, one in zip(COUNTS, own.answers, strict=True) if one.verdict in GOOD), None)
    return (
        _longest(settled, context, limit),
        Inverse(
            "Largest batch at this context", f"{batch:,}" if batch else "none", with_load(settled, batch=batch) if batch else None
        ),
        _fewest(own, fewest),
        _format(settled, good),
    )


def _longest(settled: Scenario, context: int, limit: int) -> Inverse:
    most = " (the model's limit)" if context == limit else ""
    value = f"{context:,} tokens{most}" if context else "none"
    return Inverse("Longest context at this batch", value, with_load(settled, context=context) if context > 1 else None)


def _fewest(own: CardRow, found: tuple[int, Answer] | None) -> Inverse:
    """Unknown is not "more than": where counts can't be answered it is said."""
    question = f"Fewest {own.name}"
    if found is not None:
        return Inverse(question, f"{found[0]}", found[1].scenario)
    unknown = any(answer.verdict == "unknown" for answer in own.answers)
    return Inverse(question, "not known" if unknown else f"more than {COUNTS[-1]}", None)


def _format(settled: Scenario, good: Callable[[Scenario], bool]) -> Inverse:
    question = "Most precise weights that fit"
    if settled.task == "training" or good(settled):
        fitting: Iterable[str] = (settled.weights,) if good(settled) else ()
    else:
        fitting = (name for name in FORMATS if name != settled.weights and good(replace(settled, weights=name)))
    name = next(iter(fitting), None)
    return Inverse(question, name or "none of " + ", ".join(FORMATS), replace(settled, weights=name) if name else None)
