"""What is made of silence and of standing still, on a clock of the test's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from probes import liveness
from probes.liveness import Liveness
from tests.children import is_stopped

MEMORY, PROGRESS = {"event": "memory"}, {"event": "progress"}


class Clock:
    now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(liveness, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def stopped() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(100)"])
    process.send_signal(getattr(signal, "SIGSTOP", signal.SIGTERM))
    assert is_stopped(process.pid)
    yield process.pid
    process.kill()
    process.wait()


def test_silence_is_told_once_and_then_given_up(clock: Clock) -> None:
    alive = Liveness(120.0, 600.0)
    alive.take(MEMORY)
    clock.now += 14
    assert alive.news(os.getpid(), "prefill") == ""
    clock.now += 2
    assert "said nothing for 16 s in prefill. It is ended after 120 s." in alive.news(os.getpid(), "prefill")
    assert alive.news(os.getpid(), "prefill") == ""
    alive.hear()
    clock.now += 16
    assert "said nothing" in alive.news(os.getpid(), "prefill")
    assert alive.given_up(os.getpid()) is None
    clock.now += 105
    assert alive.given_up(os.getpid()) == "silent"


def test_before_its_pulse_a_silence_is_that_of_loading(clock: Clock) -> None:
    """Importing may take long from a slow disk, and nothing speaks meanwhile."""
    alive = Liveness(120.0, 600.0)
    alive.take(PROGRESS)
    clock.now += 60
    assert alive.news(os.getpid(), "") == ""


def test_standing_still_is_told_once_until_something_moves(clock: Clock) -> None:
    alive = Liveness(120.0, 600.0)
    for _ in range(2):
        alive.take({"event": "rank", "rank": 1, "of": PROGRESS})
        told = []
        for _ in range(70):
            clock.now += 1
            alive.hear()
            alive.take({"event": "rank", "rank": 1, "of": MEMORY})
            told += filter(None, [alive.news(os.getpid(), "decode")])
        assert [words.split(",")[0] for words in told] == ["Nothing was begun or finished for 61 s in decode"]
    clock.now += 540
    alive.hear()
    assert alive.given_up(os.getpid()) == "stalled"
    assert Liveness(None, None).given_up(os.getpid()) is None


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="stops a process as POSIX does")
def test_a_stopped_process_is_named_with_what_lets_it_go_on(clock: Clock, stopped: int) -> None:
    alive, elsewhere = Liveness(120.0, None), Liveness(120.0, None, local=False)
    clock.now += 16
    assert f"kill -CONT {stopped}" in alive.news(stopped, "")
    assert alive.news(stopped, "") == elsewhere.news(stopped, "") == ""
    clock.now += 120
    assert (alive.given_up(stopped), elsewhere.given_up(stopped)) == ("suspended", "silent")
