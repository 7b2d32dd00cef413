"""Which control drives a plan that does not fit, or hardly: what context and batch add, and up to where they fit."""

from __future__ import annotations

from collections.abc import Callable

from planner.faults import Faults
from planner.footprint import Footprint
from planner.predict import predict
from planner.record import record
from planner.scenario import Scenario
from planner.solve import Asked, context_of, largest_batch, longest_context, with_context, with_values

_LEAST_CONTEXT = 2
_LEAST_SHARE = 0.02
"""Of the peak: what adds less drives nothing."""


@record
class Driver:
    """What one control (``context``, ``batch``) adds to the peak over its least value, and up to where it fits.

    ``most``: the largest value that fits with all else unchanged, 0 when none does.
    """

    control: str
    value: int
    added_bytes: int
    most: int


def drivers_of(asked: Asked, footprint: Footprint) -> tuple[Driver, ...]:
    """The controls that add to the peak of ``footprint``, which is the answer to ``asked``, that which adds most first.

    None where nothing is sized or nothing helps.
    """
    settled, now = asked.scenario, _peak_bytes(footprint)
    if now is None:
        return ()
    batch = settled.training.batch if settled.task == "training" else settled.inference.batch
    tried = (
        ("context", context_of(settled), with_context(settled, _LEAST_CONTEXT), longest_context),
        ("batch", batch, with_values(settled, batch=1), largest_batch),
    )
    found = [_driver(asked, now, *one) for one in tried]
    return tuple(sorted((one for one in found if one is not None), key=lambda one: -one.added_bytes))


def _driver(
    asked: Asked, now_bytes: int, control: str, value: int, least: Scenario, search: Callable[[Asked], int]
) -> Driver | None:
    try:
        without = _peak_bytes(predict(least, asked.architecture, asked.gpu, asked.native))
    except Faults:
        return None
    if without is None or now_bytes - without < _LEAST_SHARE * now_bytes:
        return None
    return Driver(control, value, now_bytes - without, search(asked))


def _peak_bytes(footprint: Footprint) -> int | None:
    return max((gpu.peak.device for gpu in footprint.gpus if gpu.peak), default=None)
