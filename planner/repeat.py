"""Predictions again and again: the same question with other counts is answered by a program of the first answers.

A window asks anew at every keystroke, a search for a limit dozens of times, a sweep ten thousand times, from several threads,
and mostly a few counts alone have changed. Per model, engine and options, the second question is answered under a trace
(:mod:`planner.symbolic`) that leaves open which moment is the highest; from then on a program does what depends on the counts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from planner.footprint import Footprint
from planner.scenario import Inference, Scenario, Training

COUNTS = {
    "inference": ("batch", "prompt_tokens", "new_tokens", "max_model_len"),
    "training": ("batch", "sequence", "prompt_tokens"),
}
"""Fields of a workload that a program takes as inputs, where they are given. All are at least one."""
LATER = ("terms", "extra", "limits", "speed")
"""Fields of a footprint that are worked out when somebody looks."""
REMEMBERED = 512
"""Questions whose programs are kept."""
PATHS = 24
"""Programs of one question: so many ways through the arithmetic are told apart before it is run as it stands."""


class Question:
    """One scenario up to its counts, and what has been learnt about answering it. ``parts`` keeps identities alive.

    Threads may ask at once: what they share is replaced in one step, never changed, so that at worst something is learnt twice.
    """

    def __init__(self, parts: object) -> None:
        self.parts = parts
        self.asked = 0
        self.programs: tuple[Any, ...] = ()
        self.hopeless = False

    def prefer(self, program: Any) -> None:
        """Try a program first, known or new."""
        self.programs = (program, *(other for other in self.programs if other is not program))

    def add(self, program: Any) -> None:
        """Try a program after those that are known."""
        self.programs = (*self.programs, program)


_questions: OrderedDict[object, Question] = OrderedDict()


def counts_of(scenario: Scenario) -> tuple[tuple[str, ...], list[int]]:
    """The counts of a scenario's workload and hardware that are given: their names and values."""
    work: Inference | Training = scenario.inference if scenario.task == "inference" else scenario.training
    found = vars(work)
    names = [name for name in COUNTS[scenario.task] if found[name] is not None]
    values = [found[name] for name in names]
    if scenario.hardware.capacity_bytes is not None:
        names.append("capacity_bytes")
        values.append(scenario.hardware.capacity_bytes)
    return tuple(names), values


def with_counts(scenario: Scenario, names: Sequence[str], values: Sequence[Any]) -> Scenario:
    """The scenario with other counts."""
    work: Any = scenario.inference if scenario.task == "inference" else scenario.training
    given = dict(zip(names, values, strict=True))
    hardware = scenario.hardware
    if "capacity_bytes" in given:
        hardware = type(hardware)(**{**vars(hardware), "capacity_bytes": given.pop("capacity_bytes")})
    work = type(work)(**{**vars(work), **given})
    return Scenario(**{**vars(scenario), scenario.task: work, "hardware": hardware})


def question_of(scenario: Scenario, names: tuple[str, ...], *parts: object) -> Question:
    """The question a scenario asks. ``parts``: what else the answer depends on, told apart by identity."""
    work: Any = scenario.inference if scenario.task == "inference" else scenario.training
    rest = [value for name, value in vars(work).items() if name not in names and name != "engine_options"]
    hardware = scenario.hardware
    key = (
        scenario.task, scenario.model, scenario.weights, scenario.parallel, scenario.offload, names, *rest,
        *sorted(work.engine_options.items()), hardware.gpu, hardware.gpus, hardware.nodes, hardware.cards, *map(id, parts),
    )  # fmt: skip
    try:
        found = _questions.get(key)
    except TypeError:
        return Question(parts)
    if found is None:
        found = _questions.setdefault(key, Question(parts))
        if len(_questions) > REMEMBERED:
            with suppress(KeyError):
                _questions.popitem(last=False)
    return found


def answer(question: Question, function: Callable[..., dict[str, Any]], values: Sequence[int]) -> dict[str, Any]:
    """The fields of the footprint that ``function`` makes of ``values``."""
    for position, program in enumerate(question.programs):
        found: dict[str, Any] | None = program.at(values)
        if found is not None:
            if position:
                question.prefer(program)
            return found
    question.asked += 1
    if question.hopeless or question.asked == 1 or len(question.programs) >= PATHS:
        return function(*values)
    from planner.symbolic.program import record_program  # noqa: PLC0415  the first answer does without

    try:
        _, program = record_program(function, values, [1] * len(values), branches=False)
    except Exception:  # noqa: BLE001  whatever it is, it is raised below with plain numbers in its words
        return function(*values)
    if program is None:
        question.hopeless = True
        return function(*values)
    question.prefer(program)
    found = program.at(values)
    return function(*values) if found is None else found


def fields_of(footprint: Footprint) -> dict[str, Any]:
    """A footprint's fields without those that are worked out later."""
    return {name: value for name, value in vars(footprint).items() if name not in LATER}
