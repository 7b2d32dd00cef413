"""What the Probe tab shows: one prediction, and the rehearsal and the measurement that were held against it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gui.probe.plot import Levels
from gui.probe.rehearsed import Rehearsed
from gui.probe.run import Run
from gui.probe.table import Comparison, compare
from planner.footprint import METERS, Footprint
from probes.measurement import Measurement


class Shown:
    """Holds them together. Nothing here knows of widgets."""

    def __init__(self) -> None:
        self.levels: Levels = {}
        self.on_cpu = True
        self.outside = False
        """Whether what is measured was watched from outside."""
        self.title = ""
        self.run: Run | None = None
        self.measurement: Measurement | None = None
        self.rehearsed: Rehearsed | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing but the prediction is shown."""
        return self.measurement is None and self.rehearsed is None

    def preview(self, prediction: Footprint, title: str, *, on_cpu: bool) -> None:
        """Show a prediction alone."""
        phases = prediction.gpus[0].phases if prediction.gpus else ()
        self.levels = {phase.name: {meter: phase.meter(meter) for meter in METERS} for phase in phases}
        self.title, self.on_cpu = title, on_cpu

    def open(self, prediction: Mapping[str, Any] | None, title: str, *, on_cpu: bool) -> None:
        """Turn to a prediction; runs stay on screen as long as it is the one they were held against."""
        levels = levels_of(prediction or {})
        if (levels, title, on_cpu) != (self.levels, self.title, self.on_cpu):
            self.run = self.measurement = self.rehearsed = None
        self.levels, self.title, self.on_cpu = levels, title, on_cpu

    def measure(self, measurement: Measurement, run: Run, *, outside: bool = False) -> None:
        """Show a measurement, or what was watched from ``outside``."""
        self.measurement, self.run, self.outside = measurement, run, outside

    def rows(self) -> tuple[Comparison, ...]:
        """The table."""
        return compare(self.levels, self.measurement, self.rehearsed, on_cpu=self.on_cpu, outside=self.outside)


def levels_of(prediction: Mapping[str, Any]) -> Levels:
    """The predicted level of each phase and meter, of a footprint as JSON."""
    gpus = prediction.get("gpus")
    phases = gpus[0].get("phases", []) if isinstance(gpus, list) and gpus else []
    return {str(phase["name"]): {meter: int(phase[meter]) for meter in METERS} for phase in phases}


def title_of(scenario: Mapping[str, Any]) -> str:
    """What was run: model and task."""
    model = scenario.get("model")
    name = model.rsplit("/", 1)[-1] if isinstance(model, str) else "custom model"
    return f"{name} · {scenario.get('task')}"
