"""A watch as the Probe tab sees it: what is told of a process that is not ours, in the words of a measurement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PySide6.QtCore import QObject, Signal, Slot

from gui.probe.arrivals import Arrivals
from gui.translate import tr
from gui.units import format_bytes
from gui.words import word
from planner.words import COMPONENTS
from probes.recording import Event, RecordingState
from probes.watch import Attach, Launch, Watch
from probes.watched import Watched
from resources.history import History, HistoryError


class LiveWatch(QObject):
    """Runs one watch at a time. ``told`` carries events as a probe tells them, ``ended`` the watch after its last."""

    told = Signal(object)
    ended = Signal(object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._watch: Watch | None = None
        self._translator = Translator("")
        self.watched = Watched()
        """What the last watch came to."""
        self._arrivals = Arrivals(self)
        self._arrivals.came.connect(self._deliver)

    @property
    def running(self) -> bool:
        """Whether a watch is under way."""
        return self._watch is not None

    def start(self, target: Launch | Attach, phase: str, scenario: Mapping[str, object], prediction: Mapping[str, Any]) -> None:
        """Begin. ``phase``: the one of the plan that it is held against."""
        self.watched = Watched(scenario, prediction)
        self._translator = Translator(phase)
        watch: Watch | None = None

        def forward(event: Event) -> None:
            self._arrivals.put((watch, event))

        watch = Watch(target, forward, scenario=scenario, prediction=prediction)
        self._watch = watch
        watch.start()

    def stop(self) -> None:
        """Ask the watch to end, and what it launched."""
        if self._watch is not None:
            self._watch.stop()

    def close(self) -> None:
        """End it at once; nothing more is delivered."""
        watch, self._watch = self._watch, None
        self._arrivals.close()
        if watch is not None:
            watch.close()

    @Slot(object)
    def _deliver(self, arrived: list[tuple[Watch, Event]]) -> None:
        watch = self._watch
        ours = [event for of, event in arrived if of is watch]
        if not ours:
            return
        for event in ours:
            self.watched.add(event)
        self.told.emit([told for event in ours for told in self._translator.told(event)])
        if ours[-1].get("event") == "outcome":
            self._watch = None
            self.ended.emit(watch)


class Translator:
    """Events of a watch into those of a measurement: one phase, its level what the fullest GPU holds for the processes.

    On a machine without a GPU the level is their resident memory.
    """

    def __init__(self, phase: str) -> None:
        self._phase, self._highest, self._on_gpu = phase, 0, False

    def told(self, event: Event) -> list[Event]:
        """What the Probe tab hears of ``event``."""
        at = event.get("t", 0.0)
        match event.get("event"):
            case "environment":
                self._on_gpu = bool(event.get("gpus"))
                device = _device(event) if self._on_gpu else {"type": "cpu", "name": "CPU"}
                begin = {"event": "phase", "t": at, "name": self._phase, "state": "begin", "step": 0}
                return [{"event": "hello", "t": at, "device": device}, begin]
            case "sample":
                level = _on_gpus(event) if self._on_gpu else event.get("rss")
                self._highest = max(self._highest, level or 0)
                return [{"event": "memory", "t": at, "allocated": None, "reserved": None, "device": level, "phase": self._phase}]
            case "component":
                label = word(COMPONENTS, str(event.get("name"))).label if event.get("is_component") else str(event.get("name"))
                value = float(event.get("value") or 0)
                size = format_bytes(value) if event.get("is_component") else f"{value:,g}"
                return [{"event": "note", "t": at, "message": tr("Its log says: {} {}").format(label, size)}]
            case "note":
                return [event]
            case "outcome":
                end = {"event": "phase", "t": at, "name": self._phase, "state": "end", "step": 0, "device": self._highest}
                return [end, event]
        return []


def keep_watch(watched: Watched, recording: RecordingState) -> str:
    """Put a watch into the history. What the user should know of it, else an empty text."""
    history = History()
    try:
        history.add(watched.run("" if recording.path is None else str(recording.path.absolute())))
    except HistoryError as error:
        return tr("The watch is not in the history: {}").format(error)
    return history.trouble


def _device(event: Event) -> dict[str, object]:
    first = event["gpus"][0]
    total = first.get("total_bytes") or (first.get("memory") or {}).get("total_bytes")
    return {"type": "cuda", "index": first.get("index"), "name": first.get("name"), "total_bytes": total}


def _on_gpus(event: Event) -> int | None:
    """What the fullest GPU holds for it: what the driver lists for its processes, else its growth since the watch began."""
    for key in ("process", "delta"):
        sizes = [size for gpu in event.get("gpus") or () if isinstance(size := gpu.get(key), int)]
        if sizes and max(sizes) > 0:
            return max(sizes)
    return None
