from __future__ import annotations

import math
import threading
import time
from typing import Any

import pytest

from probes.playback import Playback
from probes.recording import Recorded
from tests.timing import PATIENCE_S, TRIES, eventually, quickest_s


def recorded(*times: float) -> Recorded:
    return Recorded({}, [{"event": "memory", "t": t} for t in times], 0)


def played(speed: float, *times: float) -> list[tuple[float, float]]:
    """(recorded time, seconds after the start at which it was told)."""
    told: list[tuple[float, float]] = []
    begun = time.monotonic()
    assert Playback(recorded(*times), lambda event: told.append((event["t"], time.monotonic() - begun)), speed).run()
    return told


@pytest.mark.parametrize("speed", [1.0, 10.0])
def test_each_event_comes_at_its_time(speed: float) -> None:
    """An event at t seconds is told t / speed seconds after the start: never before, and late by what a busy machine takes."""
    late: list[float] = []
    while len(late) < TRIES and (not late or min(late) >= 0.15):
        delays = [told - at / speed for at, told in played(speed, *(t * speed / 2 for t in (0.0, 0.2, 0.25, 0.5)))]
        assert min(delays) > -0.002
        late.append(max(delays))
    assert min(late) < 0.15


def test_at_infinite_speed_nothing_waits() -> None:
    assert quickest_s(lambda: played(math.inf, 0.0, 1e6, 2e9), 0.5) < 0.5


@pytest.mark.parametrize("speed", [0.0, -1.0, math.nan])
def test_nonsense_is_refused(speed: float) -> None:
    with pytest.raises(ValueError, match="speed: must be above 0"):
        Playback(recorded(), print, speed)


def run(playback: Playback) -> threading.Thread:
    thread = threading.Thread(target=playback.run)
    thread.start()
    return thread


def test_it_stops_pauses_and_changes_its_pace() -> None:
    told: list[Any] = []
    playback = Playback(recorded(0.0, 3600.0, 3600.5), told.append)
    thread = run(playback)
    assert eventually(lambda: told)
    playback.pause()
    playback.speed = math.inf
    time.sleep(0.1)
    assert len(told) == 1
    playback.resume()
    thread.join(PATIENCE_S)
    assert len(told) == 3
    waiting = Playback(recorded(3600.0), told.append)
    thread = run(waiting)
    waiting.stop()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert len(told) == 3


def test_a_new_pace_holds_from_now_on() -> None:
    """What has been told stays told: from the second 0.2 on, ten times as fast."""
    playback = Playback(recorded(0.0, 2.2), lambda _event: None)
    assert playback.duration_s == 2.2

    def play() -> None:
        playback = Playback(recorded(0.0, 2.2), lambda _event: None)
        thread = run(playback)
        time.sleep(0.2)
        playback.speed = 10.0
        thread.join(PATIENCE_S)

    assert 0.38 < quickest_s(play, 2.1) < 2.1
