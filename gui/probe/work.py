"""What the tab asks of probes and recordings, away from the window's thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gui.probe.rehearsed import Rehearsed, rehearsed_of
from gui.probe.run import Run
from probes.measurement import Measurement
from probes.recording import Recorded, RecordingState, read_recording
from probes.rehearsal import Rehearsal
from probes.request import Request
from probes.session import ProbeSession
from probes.watch import Attach, Launch, Watch

if TYPE_CHECKING:
    from resources.plan import Plan

_LAST_WORDS_S = 5.0


@dataclass(frozen=True, slots=True)
class Opened:
    """A recording read back: the run as it is drawn, its phases folded, and of a rehearsal what it came to."""

    path: Path
    recorded: Recorded
    run: Run
    folded: Measurement
    rehearsed: Rehearsed | None = None


def with_prediction(ask: Callable[[], Request]) -> tuple[Request, Mapping[str, object]]:
    """The request with its prediction as JSON: its limits take long to be worked out."""
    asked = ask()
    return asked, asked.prediction.to_json()


def watched_plan(plan: Plan, target: Launch | Attach) -> tuple[Launch | Attach, str, Mapping[str, object]]:
    """Whom to watch, the phase of the plan that takes most, and the prediction as JSON."""
    peak = plan.footprint.gpus[0].peak
    return target, peak.name if peak else "load", plan.footprint.to_json()


def open_recording(path: Path) -> Opened:
    """Read a recording. Raises OSError and :class:`probes.recording.RecordingError`."""
    recorded, run = read_recording(path), Run()
    for event in recorded.shown_events():
        run.take(event)
    if (recorded.header.get("order") or {}).get("mode") != "rehearse":
        return Opened(path, recorded, run, Measurement.of_recording(recorded))
    rehearsal = Rehearsal.of_recording(recorded)
    return Opened(path, recorded, run, rehearsal, rehearsed_of(rehearsal))


def keep_ended(into_history: Callable[[RecordingState], str], ended: ProbeSession | Watch) -> str:
    """Keep what has ended once its recording has reached the disk, which may be slow; what went wrong, else empty."""
    ended.wait(_LAST_WORDS_S)
    return into_history(ended.recording)
