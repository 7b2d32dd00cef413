"""One fitted figure of a calibration, and when it counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

NEEDED_RUNS = 3
"""Fewer can't say whether what fits two holds for a third."""
BAND_FLOOR = 0.02
"""Share of a figure below which its band is not believed, however well a few runs agree."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One fitted figure with its half-width, and how the held-out error stands with and without it."""

    name: str
    value: float
    band: float
    runs: int
    accepted: bool
    why: str
    error_before: float | None = None
    error_after: float | None = None

    def to_json(self) -> dict[str, object]:
        """JSON-ready data."""
        return {name: getattr(self, name) for name in self.__slots__}

    def told(self, format_bytes: Callable[[float], str]) -> tuple[str, str]:
        """Value and half-width as people read them: bytes as ``format_bytes`` writes them, a factor, or per cent."""
        if self.name in ("context", "workspace", "graph"):
            return format_bytes(round(self.value)), format_bytes(round(self.band))
        if self.name.endswith("slack"):
            return f"× {self.value:.2f}", f"{self.band:.2f}"
        return f"{100 * self.value:.0f} %", f"{100 * self.band:.0f} %"
