"""A probe session as the window sees it: its events arrive as signals in the window's own thread."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PySide6.QtCore import QObject, Signal, Slot

from gui.probe.arrivals import Arrivals
from gui.probe.rehearsed import Rehearsed, rehearsed_of
from probes.recording import Event
from probes.rehearsal import Rehearsal
from probes.request import Request
from probes.session import ProbeSession


class LiveProbe(QObject):
    """Runs one session at a time. ``told`` carries events as they came, ``ended`` the session after its last event.

    A rehearsal is folded on the session's own thread, since its traces are long: ``rehearsed`` carries what it has come to,
    with every phase that ends.
    """

    told = Signal(object)
    rehearsed = Signal(object)
    ended = Signal(object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._session: ProbeSession | None = None
        self.rehearsal: Rehearsal | None = None
        """What the last session rehearsed, None when it measured."""
        self._arrivals = Arrivals(self)
        self._arrivals.came.connect(self._deliver)

    @property
    def running(self) -> bool:
        """Whether a session is under way."""
        return self._session is not None

    @property
    def pid(self) -> int | None:
        """The worker's process id."""
        return self._session.pid if self._session else None

    @property
    def recording_path(self) -> Path | None:
        """Where the run is written, None when it is not."""
        return self._session.recording.path if self._session else None

    def start(self, request: Request, prediction: Mapping[str, object]) -> None:
        """Start the worker, whose recording keeps ``prediction``; events begin to arrive."""
        rehearsal = Rehearsal(request.order, prediction) if request.order["mode"] == "rehearse" else None
        self.rehearsal = rehearsal
        session: ProbeSession | None = None

        def forward(event: Event) -> None:
            if rehearsal is not None:
                event = _folded(rehearsal, event)
            if event.get("event") != "storage":
                self._arrivals.put((session, event, rehearsed_of(rehearsal) if rehearsal and _is_news(event) else None))

        session = ProbeSession(request.order, forward, prediction=prediction)
        self._session = session
        session.start()

    def stop(self) -> None:
        """Ask the run to end."""
        if self._session is not None:
            self._session.stop()

    def close(self) -> None:
        """End the run at once and wait for its threads; nothing more is delivered."""
        session, self._session = self._session, None
        self._arrivals.close()
        if session is not None:
            session.close()

    @Slot(object)
    def _deliver(self, arrived: list[tuple[ProbeSession, Event, Rehearsed | None]]) -> None:
        session = self._session
        ours = [(event, rehearsed) for of, event, rehearsed in arrived if of is session]
        if not ours:
            return
        news = [rehearsed for _, rehearsed in ours if rehearsed is not None]
        if news:
            self.rehearsed.emit(news[-1])
        self.told.emit([event for event, _ in ours])
        if ours[-1][0].get("event") == "outcome":
            self._session = None
            self.ended.emit(session)


def _folded(rehearsal: Rehearsal, event: Event) -> Event:
    """Fold the event; the outcome is the rehearsal's own, which knows of the card's memory."""
    rehearsal.add(event)
    return rehearsal.outcome if event.get("event") == "outcome" else event


def _is_news(event: Event) -> bool:
    return event.get("event") == "outcome" or (event.get("event") == "phase" and event.get("state") == "end")
