"""What would make a plan fit, or give it room: single changes and the cheapest set of them, each predicted anew.

``advise`` asks the predictor for every change it proposes, so a saving is never an estimate of its own. Costs in quality and
speed are said in words, with the paper or document they are from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from planner.advise.changes import LARGE, Change, Dial, changes_of, models_of
from planner.faults import Faults
from planner.record import record
from planner.room import Room, room_of

if TYPE_CHECKING:
    from planner.architecture.layers import Architecture
    from planner.footprint import Footprint
    from planner.scenario import Scenario

Predict = Callable[["Scenario"], "Footprint"]
GOOD = {"fits": 0, "tight": 1, "does_not_fit": 2, "unknown": 3}
LARGEST_SET = 4


@record
class Advice:
    """One proposal: what it changes, the scenario to adopt, and what the predictor says of it.

    ``saving_bytes``: device memory of the fullest GPU before minus after. ``gain_bytes``: the room that it makes; the same, but
    for a server, which takes as much of the card whatever is asked of it: there it is what the requests leave of its cache.
    ``verdict``: of the changed plan.
    """

    title: str
    cost: str
    because: str
    scenario: Scenario
    saving_bytes: int
    gain_bytes: int
    device_bytes: int
    verdict: str
    effort: int
    """How much it costs in quality and speed together: 0 nothing, up to 6."""

    def to_json(self) -> dict[str, object]:
        """JSON-ready data."""
        from planner.scenario import to_json  # noqa: PLC0415  a cycle otherwise

        return {
            "title": self.title, "cost": self.cost, "because": self.because, "saving_bytes": self.saving_bytes,
            "gain_bytes": self.gain_bytes, "device_bytes": self.device_bytes, "verdict": self.verdict,
            "scenario": to_json(self.scenario),
        }  # fmt: skip


def advise(scenario: Scenario, architecture: Architecture, predict: Predict, smaller: Sequence[str] = ()) -> tuple[Advice, ...]:
    """Proposals for a settled scenario, best first: those that make it fit by what they cost, then by what they gain.

    ``predict``: the footprint of a scenario for the model and card at hand, and for those of ``smaller``: ids of models of
    the same family, the largest first, of which the largest that fits is proposed. When no cheap change makes a plan fit, the
    cheapest set of up to four that does is among them. A plan whose footprint is unknown gets no advice.
    """
    now = predict(scenario)
    before = _device_bytes(now)
    if before is None:
        return ()
    seen = _Seen(predict, before, room_of(now), now.verdict)
    found = [_chosen((), dial, seen) for dial in (*changes_of(scenario, architecture), *models_of(scenario, smaller))]
    single = sorted((pair[1] for pair in found if pair and (pair[1].gain_bytes > 0 or seen.is_better(pair[1]))), key=_rank)
    if now.verdict == "does_not_fit" and not any(_fits(advice) and advice.effort < LARGE for advice in single):
        single = sorted((*_together(scenario, architecture, seen), *single), key=_rank)
    return tuple(single)


@record
class _Seen:
    """The plan as it stands: what answers for it, what it takes and leaves, and its verdict."""

    predict: Predict
    device_bytes: int
    room: Room | None
    verdict: str

    def gain_bytes(self, after: Footprint, device_bytes: int) -> int:
        """The room that a change makes, to a footprint that takes ``device_bytes``."""
        room = room_of(after)
        if self.room is None or room is None or not (self.room.of_cache or room.of_cache):
            return self.device_bytes - device_bytes
        return room.bytes - self.room.bytes

    def is_better(self, advice: Advice) -> bool:
        """Whether a change brings the plan where one would want it: to fit, or from tight to comfortable."""
        return GOOD[advice.verdict] < min(GOOD[self.verdict], GOOD["does_not_fit"])


def _fits(advice: Advice) -> bool:
    return GOOD[advice.verdict] < GOOD["does_not_fit"]


def _chosen(taken: Sequence[Change], dial: Dial, seen: _Seen) -> tuple[Change, Advice] | None:
    """The mildest setting of a dial that is enough, else its strongest; of a plan that fits, the setting in the middle.

    Memory falls along a dial, so the place is bisected.
    """

    def weighed(step: int) -> tuple[Change, Advice] | None:
        change = dial.at(step)
        advice = _weighed((*(earlier for earlier in taken if earlier.kind != change.kind), change), seen)
        return None if advice is None else (change, advice)

    if seen.verdict == "fits":
        return weighed(dial.count // 2)
    strongest = weighed(dial.count - 1)
    if dial.count == 1 or strongest is None or not seen.is_better(strongest[1]):
        return strongest
    low, high, best = 0, dial.count - 1, strongest
    while low < high:
        middle = (low + high) // 2
        found = weighed(middle)
        if found is not None and seen.is_better(found[1]):
            high, best = middle, found
        else:
            low = middle + 1
    return best


def _rank(advice: Advice) -> tuple[int, int, int]:
    return (0 if _fits(advice) else 1, advice.effort if _fits(advice) else 0, -advice.gain_bytes)


def _together(scenario: Scenario, architecture: Architecture, seen: _Seen) -> tuple[Advice, ...]:
    """The change that gains most for what it costs, then the next on top of it, until the plan fits."""
    taken: list[Change] = []
    for number in range(LARGEST_SET):
        at = taken[-1].scenario if taken else scenario
        known = [pair for dial in changes_of(at, architecture) if (pair := _chosen(taken, dial, seen))]
        if not known:
            return ()
        fitting = [pair for pair in known if _fits(pair[1])] if number else []
        if fitting:
            return (min(fitting, key=lambda pair: _rank(pair[1]))[1],)
        best = max(known, key=lambda pair: _worth(pair[1]))[0]
        taken = [*(change for change in taken if change.kind != best.kind), best]
    return ()


def _worth(advice: Advice) -> float:
    return advice.gain_bytes / (1 + advice.effort)


def _weighed(changes: Sequence[Change], seen: _Seen) -> Advice | None:
    """What the predictor says of the last change's scenario, which holds those before it; None where it can't say."""
    last = changes[-1]
    try:
        after = seen.predict(last.scenario)
    except Faults:
        return None
    device = _device_bytes(after)
    if device is None or after.verdict == "unknown":
        return None
    return Advice(
        title=_joined(change.title for change in changes),
        cost=_joined(dict.fromkeys(change.cost for change in changes)),
        because=_joined(dict.fromkeys(change.because for change in changes if change.because)),
        scenario=last.scenario,
        saving_bytes=seen.device_bytes - device,
        gain_bytes=seen.gain_bytes(after, device),
        device_bytes=device,
        verdict=after.verdict,
        effort=sum(change.effort for change in changes),
    )


def _joined(words: Iterable[str]) -> str:
    return "; ".join(words)


def _device_bytes(footprint: Footprint) -> int | None:
    peaks = [gpu.peak.device for gpu in footprint.gpus if gpu.peak is not None]
    return max(peaks) if peaks else None


__all__ = ["Advice", "Change", "Dial", "advise", "changes_of"]
