"""What the tab asks of the planner, away from the window, and the answers as it shows them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from threading import Event
from typing import TYPE_CHECKING

from gui.fits.speeds import Pace, paces_of
from gui.units import format_bytes
from planner.engines.served import SERVED
from planner.footprint import TIGHT_BELOW, Verdict
from planner.formats import parse_format
from planner.scenario import Scenario
from planner.solve import (
    GOOD,
    Asked,
    cheapest_layout,
    context_of,
    largest_batch,
    largest_format,
    longest_context,
    on_card,
    smallest_sharding,
    with_context,
    with_values,
)
from planner.sweep import VERDICTS, context_grid, gpu_matrix, on_gpus, smallest_gpu
from resources.gpus import find_gpus, gpu_names
from resources.gpus import gpu as find_gpu

if TYPE_CHECKING:
    from resources.plan import Plan

__all__ = ["COUNTS", "GOOD", "Answer", "CardRow", "Fits", "Inverse", "Map", "NotWanted", "batch_of", "context_of", "fits_of"]
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


class NotWanted(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How one scenario does: its verdict, and how full it is (None: unknown).

    Of the fullest GPU; where an engine reserves its pool of cache whatever comes, of the tokens the pool has room for.
    """

    scenario: Scenario
    verdict: Verdict
    share: float | None

    @property
    def refused(self) -> bool:
        """Whether it does not fit for another reason than how full it is: the engine does not start with it."""
        return self.verdict == "does_not_fit" and self.share is not None and self.share <= TIGHT_BELOW


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
    paces: tuple[Pace, ...] = ()


def fits_of(plan: Plan, settled: Scenario, unwanted: Event | None = None) -> Fits:
    """Answer everything for a plan. Raises :class:`NotWanted` once ``unwanted`` is set."""
    unwanted = unwanted or Event()
    found = _map(plan, settled)
    _go_on(unwanted)
    cards = _card_rows(plan, settled)
    own = next(row for row in cards if row.name == plan.gpu.name)
    return Fits(found, cards, _inverse(plan, settled, own, unwanted), paces_of(plan, settled, partial(_go_on, unwanted)))


def batch_of(scenario: Scenario) -> int:
    """Sequences at once."""
    return scenario.training.batch if scenario.task == "training" else scenario.inference.batch


def _map(plan: Plan, settled: Scenario) -> Map:
    contexts = _contexts(plan.architecture.max_context_tokens or context_of(settled))
    grid = context_grid(settled, plan.architecture, plan.gpu, plan.model.native, BATCHES, contexts)
    capacity = settled.hardware.capacity_bytes or plan.gpu.capacity_bytes
    pool_tokens = plan.footprint.limits.get("kv_tokens") if settled.engine in SERVED and settled.task == "inference" else None
    rows = []
    for row, batch in enumerate(BATCHES):
        answers = []
        for column, context in enumerate(contexts):
            verdict, device = VERDICTS[grid.verdict[column, row]], int(grid.device[column, row])
            share = batch * context / pool_tokens if pool_tokens else device / capacity if device >= 0 else None
            answers.append(Answer(with_values(with_context(settled, context), batch=batch), verdict, share))
        rows.append(tuple(answers))
    return Map(contexts, BATCHES, tuple(rows))


def _contexts(limit: int) -> tuple[int, ...]:
    found = [_FEWEST_TOKENS]
    while found[-1] * 2 <= limit:
        found.append(found[-1] * 2)
    return tuple(found[-_MOST_COLUMNS:])


def _cards(plan: Plan) -> list[str]:
    known = [name for name in CARDS if name in gpu_names()]
    return known if plan.gpu.name in known else [plan.gpu.name, *known]


def _card_rows(plan: Plan, settled: Scenario) -> tuple[CardRow, ...]:
    gpus = [find_gpu(name) for name in _cards(plan)]
    matrix = gpu_matrix(settled, plan.architecture, plan.model.native, gpus, COUNTS)
    rows = []
    for row, gpu in enumerate(gpus):
        answers = []
        for column, count in enumerate(COUNTS):
            device = int(matrix.device[row, column])
            share = device / gpu.capacity_bytes if device >= 0 else None
            answers.append(Answer(on_gpus(settled, gpu, count), VERDICTS[matrix.verdict[row, column]], share))
        rows.append(CardRow(gpu.name, gpu.capacity_bytes, tuple(answers)))
    return tuple(rows)


def _inverse(plan: Plan, settled: Scenario, own: CardRow, unwanted: Event) -> tuple[Inverse, ...]:
    asked = Asked(settled, plan.architecture, plan.gpu, plan.model.native)
    if asked.verdict(settled) in (None, "unknown"):
        return ()
    found = []
    for answer in (_longest, _largest, _fewest, _smallest, _sharding if settled.task == "training" else _format):
        _go_on(unwanted)
        found.append(answer(asked, own))
    return tuple(found)


def _longest(asked: Asked, _own: CardRow) -> Inverse:
    context = longest_context(asked)
    most = " (the model's limit)" if context == asked.architecture.max_context_tokens else ""
    value = f"{context:,} tokens{most}" if context else "none"
    return Inverse("Longest context at this batch", value, with_context(asked.scenario, context) if context else None)


def _largest(asked: Asked, _own: CardRow) -> Inverse:
    batch = largest_batch(asked)
    return Inverse("Largest batch at this context", f"{batch:,}", with_values(asked.scenario, batch=batch) if batch else None)


def _fewest(asked: Asked, own: CardRow) -> Inverse:
    """Unknown is not "more than": where counts can't be answered it is said."""
    question = f"Fewest {own.name}"
    found = cheapest_layout(asked, COUNTS[-1])
    if found is not None:
        return Inverse(question, f"{found.hardware.gpus}", found)
    unknown = any(answer.verdict == "unknown" for answer in own.answers)
    return Inverse(question, "not known" if unknown else f"more than {COUNTS[-1]}", None)


def _smallest(asked: Asked, _own: CardRow) -> Inverse:
    """Of the whole catalog, as many of it as are planned."""
    count = asked.scenario.hardware.gpus
    question = "Smallest card" if count == 1 else f"Smallest card of which {count} do"
    gpu = smallest_gpu(asked.scenario, asked.architecture, asked.native, find_gpus())
    if gpu is None:
        return Inverse(question, "none of the catalog", None)
    return Inverse(question, f"{gpu.name} ({format_bytes(gpu.capacity_bytes)})", on_card(asked.scenario, gpu))


def _format(asked: Asked, _own: CardRow) -> Inverse:
    """As it is stored, if that fits; else the largest of the usual formats that does."""
    scenario = asked.scenario
    own = scenario.weights if asked.fits(scenario) else None
    found = None if own else largest_format(asked, [parse_format(name) for name in FORMATS])
    name = own or (found.name if found else None)
    value = name or "none of " + ", ".join(FORMATS)
    return Inverse("Most precise weights that fit", value, replace(scenario, weights=name) if name else None)


def _sharding(asked: Asked, _own: CardRow) -> Inverse:
    """Of the replicas that there are; a single one has nothing to share."""
    scenario, question = asked.scenario, "Least sharding that fits"
    if scenario.parallel.data == 1:
        return Inverse(question, "needs replicas: one only", None)
    kind = smallest_sharding(asked)
    if kind is None:
        return Inverse(question, f"none over {scenario.parallel.data} replicas", None)
    return Inverse(question, kind, replace(scenario, parallel=replace(scenario.parallel, sharding=kind)))


def _go_on(unwanted: Event) -> None:
    if unwanted.is_set():
        raise NotWanted
