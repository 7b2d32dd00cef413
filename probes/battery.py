"""The guided battery: a few short runs that say what this machine adds outside the tensors, in under five minutes.

First the card's own figures, then models of several shapes, each small enough for any card. What they leave are recordings like
any other; :func:`probes.calibration.fit` reads them. A CPU has its own figures alone: it has no context and no caching allocator.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planner.scenario import parse_scenario
from probes.history import keep
from probes.measurement import Measurement
from probes.orders import load_order
from probes.outcome import Outcome
from probes.recording import Event
from probes.request import request
from probes.session import Limits, ProbeSession
from resources.plan import make_plan

BUDGET_S = 290.0
"""Nothing new is begun after this."""
STEP_LIMIT_S = 120.0
OWN_FIGURES = "the card's own figures"


@dataclass(frozen=True, slots=True)
class Step:
    """One run of a model of the catalog, cut to ``layers`` unless that is None."""

    model: str
    task: str
    layers: int | None
    workload: Mapping[str, Any]

    @property
    def title(self) -> str:
        """``SmolLM2-135M, inference``."""
        cut = "" if self.layers is None else f" with {self.layers} layers"
        return f"{self.model.rpartition('/')[2]}{cut}, {self.task}"


BATTERY = (
    Step("HuggingFaceTB/SmolLM2-135M", "inference", None, {"batch": 8, "prompt_tokens": 1024, "new_tokens": 16}),
    Step("HuggingFaceTB/SmolLM2-135M", "training", None, {"batch": 4, "sequence": 512}),
    Step("meta-llama/Llama-3.1-8B", "inference", 4, {"batch": 4, "prompt_tokens": 2048, "new_tokens": 16}),
    Step("meta-llama/Llama-3.1-8B", "training", 2, {"batch": 1, "sequence": 1024}),
    Step("Qwen/Qwen3-0.6B", "inference", None, {"batch": 4, "prompt_tokens": 1024, "new_tokens": 16}),
    Step("Qwen/Qwen3-0.6B", "training", None, {"batch": 2, "sequence": 512}),
    Step("meta-llama/Llama-3.1-8B", "inference", 2, {"batch": 16, "prompt_tokens": 512, "new_tokens": 16}),
    Step("meta-llama/Llama-3.1-8B", "training", 1, {"batch": 4, "sequence": 512, "checkpointing": "full"}),
)


@dataclass(frozen=True, slots=True)
class Progress:
    """``title`` is about to begin, after ``done`` of ``total`` runs. ``notes``: why runs before it were left out."""

    done: int
    total: int
    title: str
    elapsed_s: float
    notes: tuple[str, ...] = ()


class Battery:
    """One battery on ``cuda:N`` or ``cpu``. ``run`` blocks until its end; ``stop`` may come from any thread.

    ``on_progress`` and ``on_event`` (a probe's events, :mod:`probes.session`) are called from other threads.
    """

    def __init__(
        self,
        device: str,
        on_progress: Callable[[Progress], object] | None = None,
        on_event: Callable[[Event], object] | None = None,
        *,
        steps: Sequence[Step] | None = None,
        budget_s: float = BUDGET_S,
    ) -> None:
        """``steps`` in place of :data:`BATTERY` on a card, and of none on a CPU."""
        self.device = device
        self.own = Measurement({})
        self.notes: list[str] = []
        self._on_progress, self._on_event = on_progress, on_event
        self._steps = (BATTERY if device != "cpu" else ()) if steps is None else tuple(steps)
        self._budget_s = budget_s
        self._begun = time.monotonic()
        self._session: ProbeSession | None = None
        self._stopping = threading.Event()

    @property
    def figures(self) -> Mapping[str, Any]:
        """The card's own figures, empty before they are known: ``calibration`` of :mod:`probes.worker.loads`."""
        return self.own.result.get("calibration") or {}

    def stop(self) -> None:
        """End the run under way and begin no other."""
        self._stopping.set()
        session = self._session
        if session is not None:
            session.stop()

    def run(self) -> Outcome:
        """Run it all. A run that fails is left out with a note; the outcome is that of the card's own figures, or ``stopped``."""
        self._begun = time.monotonic()
        self._tell(0, OWN_FIGURES)
        first = self._probe(load_order("calibrate", self.device), self.own, None)
        if first.kind != "completed":
            return first
        for number, step in enumerate(self._steps, 1):
            if time.monotonic() - self._begun > self._budget_s:
                self.notes.append(f"{self._budget_s:.0f} s are over: {len(self._steps) + 1 - number} runs were left out")
                break
            self._tell(number, step.title)
            outcome = self._measure(step)
            if outcome.kind == "stopped":
                return outcome
            if outcome.kind != "completed":
                self.notes.append(f"{step.title} was left out: {outcome.sentence}")
        return first

    def _measure(self, step: Step) -> Outcome:
        document = {"version": 1, "model": step.model, "weights": "bf16", "task": step.task, step.task: dict(step.workload)}
        asked = request(make_plan(parse_scenario(document), network=False), self.device, step.layers)
        prediction = asked.prediction.to_json()
        return self._probe(asked.order, Measurement(asked.order["scenario"], prediction), prediction)

    def _probe(self, order: Mapping[str, Any], run: Measurement, prediction: Mapping[str, Any] | None) -> Outcome:
        def take(event: Event) -> None:
            run.add(event)
            if self._on_event is not None:
                self._on_event(event)

        with ProbeSession(order, take, prediction=prediction, limits=Limits(time_s=STEP_LIMIT_S)) as session:
            self._session = session
            if self._stopping.is_set():
                session.stop()
            outcome = None
            while outcome is None:
                outcome = session.wait(1.0)
        self._session = None
        kept = keep(run, session.recording) if prediction is not None else ""
        self.notes += filter(None, (kept, session.recording.trouble))
        return outcome

    def _tell(self, done: int, title: str) -> None:
        if self._on_progress is not None:
            elapsed_s = time.monotonic() - self._begun
            self._on_progress(Progress(done, len(self._steps) + 1, title, elapsed_s, tuple(self.notes)))
