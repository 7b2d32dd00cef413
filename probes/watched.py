"""What a watch came to: the peaks of what was seen from outside, the components its log told, and how they stand to a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probes.log_lines import Finding, LogReader
from probes.measurement import Measurement
from probes.recording import Event, Recorded
from probes.rows import RowRun
from resources.history import Run

OUTSIDE = ("rss", "pss")


class Watched:
    """Folds the events of :class:`probes.watch.Watch`. ``prediction``: the footprint (as JSON) of the plan, if there is one."""

    def __init__(self, scenario: Mapping[str, object] | None = None, prediction: Mapping[str, Any] | None = None) -> None:
        self.scenario = scenario or {}
        self.prediction = prediction
        self.log = LogReader()
        self.watch: Event = {}
        self.outcome: Event = {}
        self.notes: list[str] = []
        self._samples = Measurement({})
        self._peaks: dict[str, int] = {}

    @classmethod
    def of_recording(cls, recorded: Recorded) -> Watched:
        """The watch that a recording holds."""
        header = recorded.header
        watched = cls(header.get("scenario"), header.get("prediction"))
        for piece in recorded.pieces:
            if isinstance(piece, RowRun):
                for event in piece.events():
                    watched.add(event)
            else:
                watched.add(piece)
        return watched

    def add(self, event: Event) -> None:
        """Take one event; those it does not know are passed over."""
        match event.get("event"):
            case "sample":
                self._take_sample(event)
            case "component":
                self.log.take(_finding(event))
            case "watch":
                self.watch = event
            case "note":
                self.notes.append(str(event.get("message")))
            case "outcome":
                self.outcome = event
            case "environment":
                self._samples.add(event)

    @property
    def samples(self) -> Any:
        """The series: ``rss``, ``pss``, and of every GPU ``gpu0.used``, ``gpu0.delta``, ``gpu0.process``."""
        return self._samples.samples

    @property
    def peaks(self) -> Mapping[str, int]:
        """The highest of each series, bytes."""
        return self._peaks

    @property
    def device_bytes(self) -> int | None:
        """The most that one GPU held for it: what the driver lists for its processes, else the growth since the watch began."""
        for key in ("process", "delta"):
            found = [size for name, size in self._peaks.items() if name.endswith(f".{key}")]
            if found and max(found) > 0:
                return max(found)
        return None

    def error(self) -> dict[str, float | None]:
        """Measured against predicted by component, and ``device``: +0.02 took 2 % more than the plan says."""
        peak = _peak(self.prediction)
        predicted = {**peak.get("components", {}), "device": peak.get("device")}
        measured: dict[str, int | None] = {**self.log.on_devices(), "device": self.device_bytes}
        return {name: _fraction(size, predicted.get(name)) for name, size in measured.items() if size is not None}

    def to_json(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {
            "version": 1, "level": "watch", "scenario": dict(self.scenario),
            "pid": self.watch.get("pid"), "command": self.watch.get("command"), "launched": self.watch.get("launched"),
            "outcome": self.outcome.get("kind"), "outcome_text": self.outcome.get("text"), "peaks": dict(self._peaks),
            "device_bytes": self.device_bytes, "engine": self.log.engine,
            "components": {device: dict(sizes) for device, sizes in self.log.components.items()},
            "facts": dict(self.log.facts), "prediction": self.prediction, "error": self.error(),
            "environment": self._samples.environment, "notes": self.notes,
        }  # fmt: skip

    def run(self, recording: str) -> Run:
        """As the history keeps it."""
        command = self.watch.get("command") or ()
        peak = _peak(self.prediction)
        model = self.scenario.get("model")
        result = {key: value for key, value in self.to_json().items() if key != "prediction"}
        return Run(
            level="watch", model=model if isinstance(model, str) else " ".join(map(str, command))[:200],
            task=str(self.scenario.get("task") or ""), engine=self.log.engine or "",
            outcome=str(self.outcome.get("kind") or ""), seconds=self.outcome.get("after_s"), device_bytes=self.device_bytes,
            predicted_device_bytes=peak.get("device"), recording=recording, result=result,
        )  # fmt: skip

    def _take_sample(self, event: Event) -> None:
        self._samples.add(event)
        values: dict[str, Any] = {name: event.get(name) for name in OUTSIDE}
        gpus = event.get("gpus")
        for gpu in [each for each in gpus if isinstance(each, Mapping)] if isinstance(gpus, list) else ():
            instance = "" if gpu.get("mig_index") is None else f".{gpu['mig_index']}"
            values |= {f"gpu{gpu.get('index')}{instance}.{key}": gpu.get(key) for key in ("used", "delta", "process")}
        for name, size in values.items():
            if isinstance(size, int):
                self._peaks[name] = max(size, self._peaks.get(name, size))


def _finding(event: Event) -> Finding:
    return Finding(
        event["engine"], str(event["name"]), float(event["value"]), str(event["device"]), str(event["source"]),
        int(event.get("resolution_bytes") or 0), bool(event.get("is_component")), bool(event.get("adds")),
    )  # fmt: skip


def _peak(footprint: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The phase of a footprint that takes most of the first GPU."""
    gpus = (footprint or {}).get("gpus") or ()
    phases = gpus[0].get("phases") or () if gpus else ()
    return max(phases, key=lambda phase: phase.get("device") or 0, default={})


def _fraction(measured: int, predicted: object) -> float | None:
    return measured / predicted - 1 if isinstance(predicted, int) and predicted > 0 else None
