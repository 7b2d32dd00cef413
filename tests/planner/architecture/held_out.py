"""Compare readings of random configs with the models transformers builds from them."""

from __future__ import annotations

import collections
import json
import logging
import sys
import warnings
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

from planner.architecture import UnknownArchitecture, read_config
from planner.architecture.families import FAMILIES, defaults_of
from planner.faults import Faults
from tests.planner.architecture.framework import build, differences
from tests.planner.architecture.variations import vary

NEEDS_MORE = ("gemma3n", "kimi_k2", "mllama_text_model")
"""Not built here: gemma3n needs an image library for its tower; the others have no class of their own."""


@dataclass(frozen=True)
class Outcome:
    """What came of one config."""

    class Kind(Enum):
        """Compared, or refused by one side."""

        COMPARED = "compared"
        FRAMEWORK_REFUSED = "the framework refused"
        WE_REFUSED = "we refused"

    kind: Kind
    why: str = ""
    config: str = ""
    differences: tuple[str, ...] = ()


def families() -> list[str]:
    """Types that can be built here."""
    return sorted(name for name in FAMILIES if name not in NEEDS_MORE)


@cache
def trial(model_type: str, seed: int) -> Outcome:
    """One random config of a type; every third one as transformers saves it, with all its derived keys."""
    config = vary(model_type, seed, small=True)
    class_name = defaults_of(model_type).model_class
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model: Any = build(config, class_name)
            if seed % 3 == 2:
                config = saved(model, model_type)
                model = build(config, class_name)
        except Exception as error:
            return Outcome(Outcome.Kind.FRAMEWORK_REFUSED, f"{type(error).__name__}: {error}"[:200])
        try:
            found = read_config(config)
        except (Faults, UnknownArchitecture) as error:
            return Outcome(Outcome.Kind.WE_REFUSED, str(error)[:200])
        if found.model_class != class_name:
            model = build(config, found.model_class)
    return Outcome(Outcome.Kind.COMPARED, config=json.dumps(config, default=str), differences=tuple(differences(found, model)))


def saved(model: Any, model_type: str) -> dict[str, Any]:
    """The config as a checkpoint holds it."""
    found: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    found["model_type"] = model_type
    found.pop("time_step_limit", None)  # infinity is written in a form the class does not read back
    return found


def main(count: int) -> int:
    """Print a line for each family; the exit status says whether any differed."""
    logging.disable(logging.CRITICAL)
    wrong = 0
    for name in families():
        outcomes = [trial(name, seed) for seed in range(count)]
        bad = [outcome for outcome in outcomes if outcome.differences]
        wrong += len(bad)
        print(name, dict(collections.Counter(outcome.kind.value for outcome in outcomes)), *bad[:1], flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10))
