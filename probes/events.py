"""Where the events of a run go: to its recording, and to whoever listens. Sessions and watches tell theirs through this."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from probes.recording import Event, Recording, RecordingState

logger = logging.getLogger(__name__)


class Events:
    """Any thread may tell an event; one is told at a time. Neither a full disk nor a listener that fails ends the run."""

    def __init__(self, on_event: Callable[[Event], object] | None, now: Callable[[], float]) -> None:
        """``now`` is the run's clock, seconds."""
        self._on_event = on_event
        self._now = now
        self._lock = threading.Lock()
        self._recording: Recording | None = None
        self._trouble = ""

    def record(self, header: Mapping[str, object], path: Path | None) -> None:
        """From now on events are recorded too."""
        self._recording = Recording(header, path)

    @property
    def recording(self) -> RecordingState:
        """Where they are recorded and whether that works."""
        return self._recording.state if self._recording else RecordingState(None)

    def emit(self, event: Event) -> None:
        """Record one event and pass it on."""
        with self._lock:
            if self._recording is not None:
                self._record(event, self._recording)
            self._tell(event)

    def note(self, message: str) -> None:
        """Something that the user should know."""
        self.emit({"event": "note", "t": self._now(), "message": message})

    def close(self) -> None:
        """Bring the recording to the disk."""
        if self._recording is not None:
            self._recording.close()

    def _record(self, event: Event, recording: Recording) -> None:
        try:
            recording.append(event)
        except (ValueError, RecursionError):
            logger.warning("an event could not be written as JSON and is not in the recording")
        trouble = recording.state.trouble
        if trouble and not self._trouble:
            self._trouble = trouble
            self._tell({"event": "note", "t": self._now(), "message": trouble})

    def _tell(self, event: Event) -> None:
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception:
            logger.exception("the receiver of a run's events failed; it gets no more")
            self._on_event = None
