"""What a probe's events amount to: a footprint of level measure or rehearse, laid beside the prediction.

Takes the events of a live session one by one, or those of a recording; the answer may be asked for at any moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from planner.footprint import METERS, Footprint, GpuFootprint, Level, Phase, Verdict, judge
from probes.gpu_samples import DriverIndex, driver_index, gpu_name, sample_columns
from probes.outside_bytes import OutsideBytes
from probes.recording import Event, Recorded
from probes.rows import Columns, RowRun
from probes.series import PeakSeries

CPU_NOTE = (
    "Measured on the CPU: allocated counts live storages as the CUDA allocator would round them, reserved equals it, "
    "and device is the growth of the process. Only allocated compares with a GPU."
)


@dataclass(slots=True)
class StepPhase:
    """The highest values of one phase of one step. ``ended`` is False while they are only what was sampled."""

    name: str
    step: int
    begun_s: float
    ended_s: float = 0.0
    ended: bool = False
    meters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(METERS, 0))
    components: dict[str, int] = field(default_factory=dict)

    def raise_to(self, event: Mapping[str, Any]) -> None:
        """Take the event's values where they are higher; its components if its ``allocated`` is the highest."""
        allocated = _size(event.get("allocated"))
        if allocated is not None and allocated >= self.meters["allocated"]:
            told = event.get("components")
            self.components = _sizes(told) if isinstance(told, Mapping) else self.components
        self.meters = {name: max(size, _size(event.get(name)) or 0) for name, size in self.meters.items()}

    def phase(self) -> Phase:
        """As a footprint has it."""
        return Phase(self.name, **self.meters, components=self.components)

    def to_json(self) -> dict[str, object]:
        """A footprint's phase with its step, its time and whether it ended."""
        seconds = round(self.ended_s - self.begun_s, 6) if self.ended else None
        return {**self.phase().to_json(), "step": self.step, "ended": self.ended, "duration_s": seconds}


class Measurement:
    """Folds a probe's events. ``prediction`` is the footprint (as JSON) that the run is compared with."""

    def __init__(self, scenario: Mapping[str, object], prediction: Mapping[str, Any] | None = None) -> None:
        self.scenario = scenario
        self.prediction = prediction
        self.level: Level = "measure"
        self.timeline = PeakSeries()
        self.samples = PeakSeries()
        self.steps: dict[tuple[str, int], StepPhase] = {}
        self.environment: dict[str, Any] = {}
        self.outcome: Event = {}
        self._result: Event = {}
        self._notes: list[str] = []
        self._current: StepPhase | None = None
        self._outside = OutsideBytes()
        self._takers = {
            "environment": self._take_environment, "hello": self._take_environment, "phase": self._take_phase,
            "memory": self._take_memory, "sample": self._take_sample, "result": self._take_result,
            "note": self._take_note, "outcome": self._take_outcome, "rank": self._take_rank,
            "reconnect": self._take_reconnect,
        }  # fmt: skip
        self.ranks: dict[int, Measurement] = {}

    @classmethod
    def of_recording(cls, recorded: Recorded) -> Measurement:
        """The measurement that a recording holds."""
        header = recorded.header
        prediction = header.get("prediction")
        measurement = cls(header.get("scenario") or {}, prediction if isinstance(prediction, dict) else None)
        order = header.get("order")
        if isinstance(order, dict) and order.get("mode") == "rehearse":
            measurement.level = "rehearse"
        for piece in recorded.pieces:
            if isinstance(piece, RowRun):
                measurement.add_rows(piece)
            else:
                measurement.add(piece)
        return measurement

    def add(self, event: Event) -> None:
        """Take one event; those it does not know are passed over."""
        taker = self._takers.get(str(event.get("event")))
        if taker is not None:
            taker(event)

    def add_rows(self, rows: RowRun) -> None:
        """Take the samples of a recording between two other events, a million as quickly as one."""
        for rank, said in rows.ranks().items():
            self._rank(rank).add_rows(said)
        memory, samples = rows.columns("memory"), rows.columns("sample")
        if memory is not None:
            self._take_memory_rows(memory)
        if samples is not None:
            label = self._current.name if self._current else ""
            columns = sample_columns(samples)
            self.samples.extend(samples.column("t"), columns, [label], np.zeros(len(samples), np.int64))
            if memory is not None and not self.on_cpu:
                name = gpu_name(*self._driver_index)
                held = columns.get(f"{name}.process", np.full(len(samples), np.nan))
                held = held if np.isfinite(held).any() else columns.get(f"{name}.delta", held)
                self._outside.take_columns(memory.column("t"), memory.column("reserved"), samples.column("t"), held)

    @property
    def outside_bytes(self) -> int:
        """What the process held of the card beside what torch reserved; 0 where it was not seen."""
        return self._outside.bytes

    @property
    def result(self) -> Event:
        """The worker's ``result``; empty before it came."""
        return self._result

    @property
    def on_cpu(self) -> bool:
        """Whether the load ran on the CPU (or never said where)."""
        return self._device.get("type") not in ("cuda", "xpu", "mps")

    @property
    def phases(self) -> tuple[StepPhase, ...]:
        """The phases that compare with a prediction: of each, the steady step, which is the last that ended."""
        last: dict[str, StepPhase] = {}
        for step in self.steps.values():
            held = last.get(step.name)
            if held is None or (step.ended, step.step) >= (held.ended, held.step):
                last[step.name] = step
        return tuple(last.values())

    @property
    def first_steps(self) -> tuple[StepPhase, ...]:
        """The phases of a first step that was followed by another."""
        compared = self.phases
        return tuple(step for step in self.steps.values() if step not in compared)

    def error(self) -> dict[str, dict[str, float | None]]:
        """Measured against predicted by phase and meter: +0.02 took 2 % more than predicted. None does not compare.

        On a CPU only ``allocated`` compares. A phase that did not end has no error: its peak may have been still to come.
        """
        predicted = _predicted_phases(self.prediction)
        meters = METERS[:1] if self.on_cpu else METERS
        return {
            step.name: {
                meter: _fraction(step.meters[meter], predicted[step.name].get(meter)) if meter in meters else None
                for meter in METERS
            }
            for step in self.phases
            if step.ended and step.name in predicted
        }

    def footprint(self) -> Footprint:
        """The answer so far, in the shape of a prediction's."""
        phases = tuple(step.phase() for step in self.phases)
        gpu = GpuFootprint(self._device.get("index") or 0, self._capacity_bytes, phases)
        others = tuple(gpu for _, other in sorted(self.ranks.items()) for gpu in other.footprint().gpus)
        headroom = None if self._capacity_bytes is None or gpu.peak is None else self._capacity_bytes - gpu.peak.device
        return Footprint(
            scenario=self.scenario,
            level=self.level,
            parameters=_size(self._result.get("parameters")),
            trainable_parameters=_size(self._result.get("trainable_parameters")) or 0,
            weight_bytes=_size(self._result.get("weight_bytes")),
            gpus=(gpu, *others) if phases else (),
            verdict=self._verdict(phases),
            headroom_bytes=headroom,
            notes=tuple(self._all_notes()),
            extra=self._extra(),
        )

    def _extra(self) -> dict[str, object]:
        series = self.samples
        return {
            "outcome": self.outcome.get("kind"),
            "outcome_text": self.outcome.get("text"),
            "out_of_memory": self._out_of_memory(),
            "error": self.error(),
            **({"ranks": [{"rank": rank, "error": one.error()} for rank, one in sorted(self.ranks.items())]} if self.ranks else {}),
            "first_step": [step.to_json() for step in self.first_steps],
            "durations_s": {step.name: step.to_json()["duration_s"] for step in self.phases},
            "timeline": self._timeline_rows(),
            "samples": {"t": series.t, "phase": series.labels, **series.columns},
            "environment": self.environment,
        }

    def _out_of_memory(self) -> dict[str, object] | None:
        if self.outcome.get("kind") != "out_of_memory":
            return None
        return {key: self.outcome.get(key) for key in ("phase", "requested_bytes", "free_bytes", "message")}

    def _timeline_rows(self) -> list[tuple[float, str, float, str]]:
        """(seconds, meter, bytes, phase), in the order of time."""
        rows = zip(self.timeline.t, self.timeline.labels, *(self.timeline.columns.get(m, []) for m in METERS), strict=False)
        return [
            (t, meter, size, label)
            for t, label, *sizes in rows
            for meter, size in zip(METERS, sizes, strict=True)
            if size is not None
        ]

    @property
    def _device(self) -> Mapping[str, Any]:
        device = self.environment.get("device")
        return device if isinstance(device, Mapping) else {}

    @property
    def _driver_index(self) -> DriverIndex:
        return driver_index(self._device, self.environment.get("gpus"))

    @property
    def _capacity_bytes(self) -> int | None:
        """The card's, as torch sees it; a CPU run says nothing about a card."""
        return None if self.on_cpu else _size(self._device.get("total_bytes"))

    def _verdict(self, phases: tuple[Phase, ...]) -> Verdict:
        kind = self.outcome.get("kind")
        if kind == "out_of_memory":
            return "does_not_fit"
        if kind != "completed" or not phases:
            return "unknown"
        others = [step.phase().device for rank in self.ranks.values() for step in rank.phases]
        return judge(max([*others, *(phase.device for phase in phases)]), self._capacity_bytes, 0)

    def _all_notes(self) -> list[str]:
        unfinished = [
            f"The phase {step.name} did not end; its figures are the highest that were sampled."
            for step in self.phases
            if not step.ended and self.outcome
        ]
        on_cpu = [CPU_NOTE] if self.on_cpu and self.environment and self.level == "measure" else []
        return [*on_cpu, *unfinished, *self._notes]

    def _take_environment(self, event: Event) -> None:
        self.environment |= {key: value for key, value in event.items() if key not in ("event", "t")}

    def _take_phase(self, event: Event) -> None:
        key = (str(event.get("name")), _size(event.get("step")) or 0)
        t = float(event.get("t") or 0.0)
        step = self.steps.setdefault(key, StepPhase(*key, begun_s=t))
        self._current = step
        self._outside.pause()
        if event.get("state") == "end":
            step.raise_to(event)
            if not self.on_cpu:
                step.raise_to({"device": step.meters["reserved"] + self._outside.bytes})
            step.ended, step.ended_s = True, t
            self._current = None

    def _take_memory(self, event: Event) -> None:
        sizes = {meter: _size(event.get(meter)) for meter in METERS}
        self._outside.take_reserved(sizes["reserved"])
        self.timeline.append(float(event.get("t") or 0.0), sizes, str(event.get("phase") or ""))
        if self._current is not None and self._current.name == event.get("phase"):
            self._current.raise_to(sizes)

    def _take_memory_rows(self, memory: Columns) -> None:
        (phases, phase_of), meters = memory.text("phase"), {meter: memory.column(meter) for meter in METERS}
        self.timeline.extend(memory.column("t"), meters, phases, phase_of)
        if self._current is not None and self._current.name in phases:
            here = phase_of == phases.index(self._current.name)
            peaks = {meter: np.fmax.reduce(column[here], initial=0.0) for meter, column in meters.items()}
            self._current.raise_to({meter: int(peak) for meter, peak in peaks.items()})

    def _take_sample(self, event: Event) -> None:
        gpus = event.get("gpus")
        values: dict[str, Any] = {"rss": event.get("rss")} | ({"pss": event["pss"]} if "pss" in event else {})
        for gpu in [each for each in gpus if isinstance(each, Mapping)] if isinstance(gpus, list) else ():
            name = gpu_name(gpu.get("index"), gpu.get("mig_index"))
            values |= {f"{name}.{key}": value for key, value in gpu.items() if key not in ("index", "mig_index")}
            if (gpu.get("index"), gpu.get("mig_index")) == self._driver_index:
                self._outside.take_device(_size(gpu.get("process")), _size(gpu.get("delta")))
        self.samples.append(float(event.get("t") or 0.0), values, self._current.name if self._current else "")

    def _take_result(self, event: Event) -> None:
        self._result = event
        told = event.get("notes")
        self._notes += [str(note) for note in told] if isinstance(told, list) else []

    def _take_rank(self, event: Event) -> None:
        """What another rank said, folded by itself."""
        rank, told = _size(event.get("rank")), event.get("of")
        if rank and isinstance(told, Mapping):
            self._rank(rank).add({**told, "t": event.get("t")})

    def _rank(self, rank: int) -> Measurement:
        if rank not in self.ranks:
            self.ranks[rank] = Measurement(self.scenario, _for_rank(self.prediction, rank))
        return self.ranks[rank]

    def _take_reconnect(self, _event: Event) -> None:
        """The run begins anew: its phases do, its samples go on."""
        self.steps, self.ranks, self._current, self._result = {}, {}, None, {}
        self._outside.pause()

    def _take_note(self, event: Event) -> None:
        self._notes.append(str(event.get("message", "")))

    def _take_outcome(self, event: Event) -> None:
        self.outcome = event


def _for_rank(prediction: Mapping[str, Any] | None, rank: int) -> Mapping[str, Any] | None:
    """The prediction with the GPU of a rank first; where fewer are told, all are alike."""
    gpus = (prediction or {}).get("gpus") or []
    return {**(prediction or {}), "gpus": gpus[rank : rank + 1] or gpus[:1]} if gpus else prediction


def _predicted_phases(prediction: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    gpus = (prediction or {}).get("gpus") or []
    return {str(phase.get("name")): phase for phase in gpus[0].get("phases", [])} if gpus else {}


def _fraction(measured: int, predicted: object) -> float | None:
    return measured / predicted - 1 if isinstance(predicted, int) and predicted > 0 else None


def _size(value: object) -> int | None:
    """Bytes from a wire that may say anything: a sane whole number, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def _sizes(told: Mapping[str, object]) -> dict[str, int]:
    return {str(name): size for name, value in told.items() if (size := _size(value)) is not None}
