"""What a run has said so far, in the form the plot and the words need. Live and replayed events both come here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import nan
from typing import Any, ClassVar

from gui.probe.series import Ring
from planner.footprint import METERS

_KEPT_SAMPLES = 72_000
_KEPT_OF_RANK = 20_000


@dataclass(slots=True)
class Band:
    """One stretch of a phase on the time axis. ``end_s`` None: still in it. ``peaks`` by meter, once it has ended."""

    name: str
    step: int
    begin_s: float
    end_s: float | None = None
    peaks: Mapping[str, int] | None = None


class Run:
    """Collects events. Nothing here knows of widgets."""

    def __init__(self) -> None:
        self.samples = Ring(len(METERS), _KEPT_SAMPLES)
        self.ranks: dict[int, Ring] = {}
        """Of a run on several GPUs, the meters of every rank but the first, whose are :attr:`samples`."""
        self.bands: list[Band] = []
        self.notes: list[str] = []
        self.device: Mapping[str, Any] = {}
        self.progress = ""
        self.outcome: Mapping[str, Any] | None = None
        self.total_bytes: int | None = None
        self.last_s = 0.0
        self.highest_bytes = 0.0

    @property
    def on_cpu(self) -> bool:
        """Whether the run is on CPU, as far as it has said."""
        return self.device.get("type") == "cpu"

    @property
    def phase(self) -> str:
        """The phase under way, empty between phases."""
        return self.bands[-1].name if self.bands and self.bands[-1].end_s is None else ""

    def take(self, event: Mapping[str, Any]) -> None:
        """Fold one event in; kinds that are not shown are passed over."""
        self.last_s = max(self.last_s, float(event.get("t") or 0.0))
        handler = self._HANDLERS.get(str(event.get("event")))
        if handler is not None:
            handler(self, event)

    def _hello(self, event: Mapping[str, Any]) -> None:
        self.device = event.get("device") or {}
        self.total_bytes = self.device.get("total_bytes")

    def _memory(self, event: Mapping[str, Any]) -> None:
        values = tuple(_number(event.get(meter)) for meter in METERS)
        self.samples.add(float(event["t"]), values)
        self._raise(values)

    def _rank(self, event: Mapping[str, Any]) -> None:
        told, rank = event.get("of"), event.get("rank")
        if isinstance(told, Mapping) and isinstance(rank, int) and told.get("event") == "memory":
            values = tuple(_number(told.get(meter)) for meter in METERS)
            self.ranks.setdefault(rank, Ring(len(METERS), _KEPT_OF_RANK)).add(float(event["t"]), values)
            self._raise(values)

    def _phase(self, event: Mapping[str, Any]) -> None:
        if event.get("state") == "begin":
            self._end_band(float(event["t"]))
            self.bands.append(Band(str(event.get("name")), int(event.get("step") or 0), float(event["t"])))
        elif self.bands:
            band = self.bands[-1]
            band.end_s = float(event["t"])
            band.peaks = {meter: int(event[meter]) for meter in METERS if isinstance(event.get(meter), int)}
            self._raise(tuple(band.peaks.values()))

    def _progress(self, event: Mapping[str, Any]) -> None:
        total = event.get("total")
        count = f" {event.get('done')} of {total}" if isinstance(total, int) and total > 1 else ""
        self.progress = f"{event.get('what')}{count}"

    def _note(self, event: Mapping[str, Any]) -> None:
        self.notes.append(str(event.get("message")))

    def _outcome(self, event: Mapping[str, Any]) -> None:
        self.outcome = event
        self._end_band(self.last_s)

    def _end_band(self, t: float) -> None:
        """A phase that has not ended: the run did, or it begins anew after a lost connection."""
        if self.bands and self.bands[-1].end_s is None:
            self.bands[-1].end_s = t

    def _raise(self, values: tuple[float, ...]) -> None:
        self.highest_bytes = max([self.highest_bytes, *(value for value in values if value == value)])  # noqa: PLR0124  NaN

    _HANDLERS: ClassVar[dict[str, Callable[[Run, Mapping[str, Any]], None]]] = {
        "hello": _hello, "memory": _memory, "phase": _phase, "progress": _progress, "note": _note, "outcome": _outcome,
        "rank": _rank,
    }  # fmt: skip


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else nan
