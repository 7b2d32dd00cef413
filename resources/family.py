"""Smaller models of the same family in the bundled catalog, and a plan's answer for them."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from planner.architecture.counts import parameter_count
from planner.footprint import Footprint
from planner.predict import predict
from planner.scenario import Scenario
from resources.catalog import model_ids
from resources.plan import Model, Plan, find_model

SAME_VOCABULARY = 128
"""Vocabularies of one tokenizer are padded apart by at most so much (llama.cpp ``SPEC_VOCAB_MAX_SIZE_DIFFERENCE``)."""
_SIZE = re.compile(r"(?:\d+x)?[ae]?\d+(?:\.\d+)?[bme]|\d{3,}")
"""Words of a name that say a size or a date: 8b, 0.5b, 8x7b, a3b, e4b, 16e, 2503."""
_VERSION = re.compile(r"v?(\d+)\.\d+")


def smaller_models(plan: Plan) -> tuple[str, ...]:
    """Ids of catalog models with the plan's tokenizer and name but for its size and minor version, the largest of them first."""
    model = plan.scenario.model
    if not isinstance(model, str):
        return ()
    most, vocabulary = parameter_count(plan.architecture), plan.architecture.vocab_size
    return tuple(name for name, count, size in _family(_words(model)) if count < most and abs(size - vocabulary) <= SAME_VOCABULARY)


def answer_for(plan: Plan) -> Callable[[Scenario], Footprint]:
    """What answers for changes of a plan, another model of the catalog among them. Raises what ``predict`` raises."""

    def answer(changed: Scenario) -> Footprint:
        model = plan.model if changed.model == plan.scenario.model else _found(changed.model)
        return predict(changed, model.architecture, plan.gpu, model.native)

    return answer


def _found(model: object) -> Model:
    assert isinstance(model, str)  # noqa: S101  only models of the catalog are proposed
    return find_model(model, network=False)


@lru_cache(maxsize=64)
def _family(words: frozenset[str]) -> tuple[tuple[str, int, int], ...]:
    """(id, parameters, vocabulary) of the models of these words, the largest first."""
    found = [(name, find_model(name, network=False).architecture) for name in model_ids() if _words(name) == words]
    counted = [(name, parameter_count(architecture), architecture.vocab_size) for name, architecture in found]
    return tuple(sorted(counted, key=lambda each: -each[1]))


@lru_cache(maxsize=1024)
def _words(name: str) -> frozenset[str]:
    """What a name says beside its size, publisher and generation included: 3.1 and 3.2 are both of 3."""
    words = (word for word in re.split(r"[/\-_\s]", name.lower()) if not _SIZE.fullmatch(word))
    return frozenset(_VERSION.sub(r"\1", word) for word in words)
