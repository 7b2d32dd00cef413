"""A probe session as the window sees it: its events arrive as signals in the window's own thread."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QObject, Qt, Signal, Slot

from probes.recording import Event
from probes.request import Request
from probes.session import ProbeSession


class LiveProbe(QObject):
    """Runs one session at a time. ``told`` carries each event, ``ended`` follows the last event."""

    told = Signal(object)
    ended = Signal()
    _arrived = Signal(object, object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._session: ProbeSession | None = None
        self._arrived.connect(self._deliver, Qt.ConnectionType.QueuedConnection)

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

    def start(self, request: Request) -> None:
        """Start the worker; events begin to arrive."""
        session: ProbeSession | None = None

        def forward(event: Event) -> None:
            self._arrived.emit(session, event)

        session = ProbeSession(request.order, forward, prediction=request.prediction.to_json())
        self._session = session
        session.start()

    def stop(self) -> None:
        """Ask the run to end."""
        if self._session is not None:
            self._session.stop()

    def close(self) -> None:
        """End the run at once and wait for its threads; nothing more is delivered."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    @Slot(object, object)
    def _deliver(self, session: ProbeSession, event: Event) -> None:
        if session is not self._session:
            return
        self.told.emit(event)
        if event.get("event") == "outcome":
            session.wait(1.0)
            self._session = None
            self.ended.emit()
