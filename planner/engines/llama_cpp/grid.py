"""Whole grids under llama.cpp: cells that differ by their counts alone lie on a few straight lines.

Slots decide the shape of a graph, so each number of them is one plan; between two bends its buffers rise evenly with the cells
of the cache (:mod:`planner.engines.llama_cpp.course`), so an array of contexts is filled at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from planner.architecture.layers import Architecture
from planner.engines.llama_cpp.context import BATCH_TOKENS, CELL_BLOCK, Context
from planner.engines.llama_cpp.footprint import Plan, plan_of
from planner.engines.llama_cpp.options import integer
from planner.faults import Faults
from planner.formats import Format
from planner.modelled import NotModelled
from planner.scenario import Conversation, Inference, Scenario

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]


REFUSED = -1


def fullest(
    scenario_of: Callable[[int], Scenario],
    architecture: Architecture,
    fmt: Format,
    batches: Integers,
    prompts: Integers,
    news: Integers,
) -> Integers:
    """Bytes that llama.cpp's buffers take on the fullest GPU, for each cell; −1 where llama.cpp refuses.

    ``scenario_of``: the settled scenario of a batch, whatever its tokens. The arrays are of one length. Raises
    :class:`~planner.modelled.NotModelled` for a graph that is not derived.
    """
    import numpy as np  # noqa: PLC0415  a point does without

    found = np.empty(batches.size, dtype=np.int64)
    for batch in np.unique(batches):
        cells = np.flatnonzero(batches == batch)
        asked = scenario_of(int(batch))
        scenario = _shortest(asked)
        try:
            plan = plan_of(architecture, scenario, fmt)
        except Faults:
            found[cells] = REFUSED
            continue
        each = _tokens(asked.inference, prompts[cells] + news[cells])
        found[cells] = _over(plan, _n_ctx(scenario.inference, plan, each))
        if scenario.inference.max_model_len:
            found[cells[each > scenario.inference.max_model_len]] = REFUSED
    return found


def _shortest(scenario: Scenario) -> Scenario:
    """The scenario with requests that no slot of a given length is too short for. Raises where a split follows the cards."""
    if scenario.hardware.cards:
        raise NotModelled("hardware.cards: layers follow the memory of each card")
    ask = scenario.inference
    if not ask.max_model_len:
        return scenario
    return replace(scenario, inference=replace(ask, prompt_tokens=1, new_tokens=1, conversation=Conversation()))


def _tokens(ask: Inference, each: Integers) -> Integers:
    """Tokens of a request at its end, from those of a turn."""
    talk = ask.conversation
    if talk.history == "keep":
        return each * talk.turns
    return each + talk.kept_tokens if talk.turns > 1 else each


def _n_ctx(ask: Inference, plan: Plan, each: Integers) -> Integers:
    """``n_ctx`` of requests of ``each`` tokens (of :func:`~planner.engines.llama_cpp.options.options_of`, for arrays)."""
    import numpy as np  # noqa: PLC0415

    if "n_ctx" in ask.engine_options or ask.max_model_len:
        return np.full(each.size, integer(plan.options[0], "n_ctx", 0) or plan.models[0].architecture.max_context_tokens or 0)
    return each * plan.models[0].context.sequences


def _over(plan: Plan, n_ctx: Integers) -> Integers:
    import numpy as np  # noqa: PLC0415

    asked, back = np.unique(n_ctx, return_inverse=True)
    totals = np.zeros((plan.models[0].placement.device_count, asked.size), dtype=np.int64)
    for mine, contexts in _shapes(plan, asked):
        first = contexts[0]
        each = asked[mine]
        total = -(-each // CELL_BLOCK) * CELL_BLOCK
        blocks = total // CELL_BLOCK if first.unified else -(-(total // first.sequences) // CELL_BLOCK)
        for laid, context in zip(plan.models, contexts, strict=True):
            totals[:, mine] += replace(laid, context=context).totals_over(blocks)
    highest: Integers = totals.max(axis=0)[back.reshape(-1)]
    return highest


def _shapes(plan: Plan, asked: Integers) -> Iterator[tuple[Integers, tuple[Context, ...]]]:
    """Places among ``asked`` whose contexts differ by their cells alone: from a whole batch on all, below it few."""
    import numpy as np  # noqa: PLC0415

    whole = np.flatnonzero(asked >= integer(plan.options[0], "n_batch", BATCH_TOKENS))
    if whole.size:
        yield whole, plan.contexts(int(asked[whole[-1]]))
    small: dict[tuple[Context, ...], list[int]] = {}
    for place in range(asked.size - whole.size):
        contexts = tuple(replace(context, cells=0) for context in plan.contexts(int(asked[place])))
        small.setdefault(contexts, []).append(place)
    for contexts, places in small.items():
        yield np.array(places), contexts
