"""What a rehearsal's events amount to: a footprint of level rehearse, byte by byte, laid beside the prediction.

The worker tells births and deaths of storages; here they go through a simulator of the CUDA caching allocator as they arrive.
A rehearsal is a :class:`probes.measurement.Measurement` whose meters come from that simulation.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from planner.allocator import AllocatorOptions, Frame, memory_snapshot
from planner.footprint import Footprint, Phase, Verdict, judge
from planner.machine import CONTEXT_BAND
from probes.downsample import extremes_of_parts
from probes.measurement import Measurement, StepPhase
from probes.outcome import Outcome
from probes.peaks import OpenedPeak, open_peak
from probes.recording import Event, Recorded
from probes.rehearsal_order import allocator_options
from probes.replay import Exhausted, PhaseRun, Replay
from probes.trace import Trace

TIMELINE_POINTS = 4000
Point = tuple[int, str, int, int]
"""Event, phase, allocated and reserved bytes after it."""


class Rehearsal(Measurement):
    """Folds the events of a rehearsal that ``order`` (:mod:`probes.rehearsal_order`) asked for.

    Running out of memory is found here, not by the worker: ``exhausted`` says where. The trace is followed to its end all the
    same, on a card without end, so that every phase says what it would take.
    """

    def __init__(self, order: Mapping[str, Any], prediction: Mapping[str, Any] | None = None) -> None:
        super().__init__(order.get("scenario") or {}, prediction)
        self.level = "rehearse"
        self.trace = Trace()
        self.exhausted: Exhausted | None = None
        self._order = order
        self._card: Mapping[str, Any] = order.get("card") or {}
        self._options = None if order.get("personality") == "cpu" else allocator_options(self._card)
        self._replay = Replay(self.trace, self._options)
        self._takers |= {"storage": self._take_storage}

    @classmethod
    def of_recording(cls, recorded: Recorded) -> Rehearsal:
        """The rehearsal that a recording holds."""
        header = recorded.header
        prediction = header.get("prediction")
        order = {**(header.get("order") or {}), "scenario": header.get("scenario")}
        rehearsal = cls(order, prediction if isinstance(prediction, dict) else None)
        for event in recorded.events:
            rehearsal.add(event)
        return rehearsal

    @property
    def on_cpu(self) -> bool:
        """Whether the CPU's operators were played."""
        return self._options is None

    def footprint(self) -> Footprint:
        """The answer so far. ``uncertainty_bytes`` is that of the CUDA context; all else is simulated to the byte."""
        for step in self.steps.values():
            step.components = self._components(step)
        band = int(self._context_bytes * CONTEXT_BAND)
        return replace(super().footprint(), uncertainty_bytes=band)

    def peaks(self) -> tuple[OpenedPeak, ...]:
        """The highest moment of each phase that compares with the prediction."""
        runs = [self._highest(step) for step in self.phases]
        return tuple(open_peak(self.trace, self._replay, run) for run in runs if run is not None)

    def timeline_points(self, limit: int | None = TIMELINE_POINTS) -> list[Point]:
        """The course of memory over the events of the trace; beyond ``limit`` points only peaks and valleys of each phase."""
        allocated, reserved, runs = self._replay.allocated_bytes, self._replay.reserved_bytes, self._replay.runs
        limit = limit or len(allocated)
        begins = [run.first_event for run in runs]
        events = extremes_of_parts((allocated, reserved), begins, limit, [run.allocated_event for run in runs]) if allocated else []
        names = ["", *(run.name for run in runs)]
        return [(event, names[bisect_right(begins, event)], allocated[event], reserved[event]) for event in events]

    def snapshot(self) -> dict[str, Any]:
        """The rehearsal as ``torch.cuda.memory._snapshot`` would describe it, for PyTorch's memory viewer.

        It ends where the card ran out of memory.
        """
        options = self._options or AllocatorOptions()
        return memory_snapshot(self.trace.allocator_events(), options, frames=_frames(self.trace))

    def outcome_of(self, ended: Outcome) -> Outcome:
        """How the rehearsal ended, when its worker ended so."""
        if self.exhausted is None or ended.kind != "completed":
            return ended
        report = self.exhausted.report
        return replace(
            ended, kind="out_of_memory", rehearsed=True, phase=self.exhausted.phase, message=str(report),
            requested_bytes=report.requested_bytes, free_bytes=report.free_bytes,
        )  # fmt: skip

    def _take_storage(self, event: Event) -> None:
        self.trace.take(event)
        self._replay.advance()
        if self.exhausted is None and self._replay.exhausted is not None:
            self.exhausted = self._replay.exhausted
            self._replay = Replay(
                self.trace, replace(self._options or AllocatorOptions(), capacity_bytes=None, memory_fraction=1.0)
            )
            self._replay.advance()
            for step in self.steps.values():
                self._settle(step)

    def _take_phase(self, event: Event) -> None:
        """The worker's meters know of no allocator; its phase has ended on the wire only after all of its storages."""
        super()._take_phase({key: event.get(key) for key in ("event", "t", "name", "state", "step", "micro")})
        if event.get("state") == "end":
            self._settle(self.steps[str(event.get("name")), int(event.get("step") or 0)])

    def _take_sample(self, event: Event) -> None:
        """The memory of the process that rehearses says nothing about the model's."""

    def _take_outcome(self, event: Event) -> None:
        super()._take_outcome(event)
        if self.exhausted is not None and event.get("kind") == "completed":
            ended = self.outcome_of(Outcome("completed", float(event.get("after_s") or 0.0)))
            self.outcome = {"event": "outcome", "t": event.get("t"), **ended.to_json()}

    def _settle(self, step: StepPhase) -> None:
        runs = self._runs(step)
        reserved = max((run.reserved_bytes for run in runs), default=0)
        step.meters = {
            "allocated": max((run.allocated_bytes for run in runs), default=0),
            "reserved": reserved,
            "device": reserved + self._context_bytes,
        }

    def _runs(self, step: StepPhase) -> list[PhaseRun]:
        return [run for run in self._replay.runs if (run.name, run.step) == (step.name, step.step)]

    def _highest(self, step: StepPhase) -> PhaseRun | None:
        return max(self._runs(step), key=lambda run: run.allocated_bytes, default=None)

    def _components(self, step: StepPhase) -> dict[str, int]:
        run = self._highest(step)
        components = dict(self._replay.components_at(run.allocated_event)) if run else {}
        if self._context_bytes:
            components["cuda_context"] = self._context_bytes
        return components | {"allocator_slack": step.meters["reserved"] - step.meters["allocated"]}

    @property
    def _context_bytes(self) -> int:
        return self._options.outside_bytes if self._options else 0

    @property
    def _capacity_bytes(self) -> int | None:
        return self._options.capacity_bytes if self._options else None

    def _verdict(self, phases: tuple[Phase, ...]) -> Verdict:
        """What ran to its end in the simulation does fit: the allocator gives back what it only caches before it fails."""
        kind = self.outcome.get("kind")
        if kind != "completed" or not phases:
            return "does_not_fit" if kind == "out_of_memory" else "unknown"
        verdict = judge(max(phase.device for phase in phases), self._capacity_bytes, int(self._context_bytes * CONTEXT_BAND))
        return "tight" if verdict == "does_not_fit" else verdict

    def _all_notes(self) -> list[str]:
        notes = [*super()._all_notes(), *self._card.get("not_covered", ())]
        if self.exhausted is not None:
            notes.append("Meters are those of a card large enough, to say what each phase would take.")
        if self.trace.faults:
            notes.append(f"{self.trace.faults} entries of the trace made no sense and are not in the figures.")
        return notes

    def _extra(self) -> dict[str, object]:
        told = super()._extra()
        del told["samples"]
        return {
            **told,
            "timeline_axis": "event",
            "peaks": [peak.to_json() for peak in self.peaks()],
            "rehearsed": {key: self._order.get(key) for key in ("personality", "compute_capability", "layers", "card")},
        }

    def _out_of_memory(self) -> dict[str, object] | None:
        told = super()._out_of_memory()
        if told is None or self.exhausted is None:
            return told
        event = self.exhausted.event
        row = self.trace.events[event]
        place = {"module": self.trace.text(self.trace.module[row]), "op": self.trace.text(self.trace.operator[row])}
        return {**told, **asdict(self.exhausted.report), **place, "event": event}

    def _timeline_rows(self) -> list[tuple[float, str, float, str]]:
        """(event, meter, bytes, phase): the axis counts events, since the simulation has no clock."""
        context = self._context_bytes
        return [
            (event, meter, size, phase)
            for event, phase, allocated, reserved in self.timeline_points()
            for meter, size in (("allocated", allocated), ("reserved", reserved), ("device", reserved + context))
        ]


def _frames(trace: Trace) -> dict[int, list[Frame]]:
    """For each storage what the viewer shows as its stack: the operator in its module, and its component."""
    made: dict[tuple[int, int, int], list[Frame]] = {}
    frames = {}
    for row, key in enumerate(zip(trace.operator, trace.module, trace.component, strict=True)):
        if key not in made:
            operator, module, component = map(trace.text, key)
            made[key] = [
                {"name": operator, "filename": module or "model", "line": 0},
                {"name": component, "filename": "component", "line": 0},
            ]
        frames[row] = made[key]
    return frames
