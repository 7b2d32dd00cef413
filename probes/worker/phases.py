"""The phases of a run: their peaks, their events, and the sampler between them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from .device import Meter, Reading
from .wire import Sender


class PhaseListener(Protocol):
    """Wants to know where phases begin and end."""

    def phase(self, name: str, state: str, step: int) -> None:
        """``state`` is begin or end."""


@dataclass
class PhasePeak:
    """The highest values of one phase, over micro-batches."""

    name: str
    step: int
    allocated: int = 0
    reserved: int = 0
    device: int = 0
    components: dict[str, int] | None = None

    def raise_to(self, allocated: int, reserved: int, device: int, components: dict[str, int] | None) -> None:
        """Take these values where they are higher."""
        if allocated >= self.allocated:
            self.allocated, self.components = allocated, components
        self.reserved = max(self.reserved, reserved)
        self.device = max(self.device, device)

    def to_json(self) -> dict[str, Any]:
        """The wire's form."""
        return dict(vars(self))


@dataclass
class Phases:
    """Opens and closes phases, reporting each on the wire."""

    wire: Sender
    meter: Meter
    listeners: list[PhaseListener] = field(default_factory=list)
    current: str = "load"
    on_begin: Callable[[str], None] = lambda _name: None
    walk_components: Callable[[], dict[str, int]] | None = None
    _peaks: dict[tuple[str, int], PhasePeak] = field(default_factory=dict)
    _device_peak: int = 0

    @contextmanager
    def phase(self, name: str, step: int = 0, micro: int = 0) -> Iterator[None]:
        """One phase of the run."""
        self.current = name
        self.on_begin(name)
        self.meter.begin_phase()
        self._device_peak = 0
        self._tell(name, "begin", step)
        self.wire.send("phase", name=name, state="begin", step=step, micro=micro)
        try:
            yield
        finally:
            self._end(name, step, micro)

    def sample(self) -> Reading:
        """Read the meter, keeping the device's peak."""
        reading = self.meter.read()
        self._device_peak = max(self._device_peak, reading.device)
        return reading

    def results(self) -> list[dict[str, Any]]:
        """The phases so far, in the order they first ran."""
        return [peak.to_json() for peak in self._peaks.values()]

    def _end(self, name: str, step: int, micro: int) -> None:
        self.sample()
        allocated, reserved = self.meter.peak()
        components = self.meter.components()
        if components is None and self.walk_components is not None:
            components = self.walk_components()
        device = max(self._device_peak, self.meter.device_peak())
        self._peaks.setdefault((name, step), PhasePeak(name, step)).raise_to(allocated, reserved, device, components)
        self._tell(name, "end", step)
        self.wire.send(
            "phase", name=name, state="end", step=step, micro=micro,
            allocated=allocated, reserved=reserved, device=device, components=components,
        )  # fmt: skip

    def _tell(self, name: str, state: str, step: int) -> None:
        for listener in self.listeners:
            listener.phase(name, state, step)


class Sampler(threading.Thread):
    """Sends ``memory`` events on a drift-free clock until stopped."""

    def __init__(self, phases: Phases, interval_s: float) -> None:
        super().__init__(name="sampler", daemon=True)
        self._phases = phases
        self._interval_s = interval_s
        self._stop_event = threading.Event()

    def run(self) -> None:
        """The thread's loop."""
        due = time.monotonic()
        while not self._stop_event.is_set():
            self.send_sample()
            due = max(due + self._interval_s, time.monotonic())
            self._stop_event.wait(due - time.monotonic())

    def send_sample(self) -> None:
        """One reading on the wire."""
        reading = self._phases.sample()
        self._phases.wire.send("memory", **vars(reading), phase=self._phases.current)

    def stop(self) -> None:
        """End the thread; the last reading is sent."""
        self._stop_event.set()
        self.join()
        self.send_sample()
