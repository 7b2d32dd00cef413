"""What a plan leaves, or lacks: of its fullest card, or of the pool that a serving engine makes of the card's memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from planner.engines.served import SERVED
from planner.footprint import Footprint


@dataclass(frozen=True, slots=True)
class Room:
    """``bytes`` left, negative: lacking; ``of_cache``: of the engine's pool of cache, where the card itself has room."""

    bytes: int
    of_cache: bool


def room_of(footprint: Footprint) -> Room | None:
    """The room of a plan; None where it is not known.

    A serving engine takes its share of the card whatever comes, so its headroom is what the requests leave of its pool;
    that is told only where everything else fits the card.
    """
    if footprint.headroom_bytes is None:
        return None
    left = min((gpu.capacity_bytes - gpu.peak.device for gpu in footprint.gpus if gpu.peak and gpu.capacity_bytes), default=None)
    if not _is_served(footprint) or left is None or footprint.headroom_bytes == left:
        return Room(footprint.headroom_bytes, of_cache=False)
    return Room(left, of_cache=False) if left < 0 else Room(footprint.headroom_bytes, of_cache=True)


def _is_served(footprint: Footprint) -> bool:
    asked = footprint.scenario.get("inference")
    return isinstance(asked, Mapping) and asked.get("engine") in SERVED
