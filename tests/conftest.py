"""No test writes into the folder of the user who runs it, is judged by the clock, or is deaf to an interrupt."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is; benchmarks measure speed.
settings.register_profile("highwater", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("highwater")


@pytest.fixture(autouse=True, scope="session")
def home_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Recordings, history and calibrations of this run, and of the processes it starts, lie in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HIGHWATER_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True, scope="session")
def children_that_can_be_interrupted() -> None:
    """A run in the background of a shell ignores SIGINT, one under nohup SIGHUP, which their children would inherit."""
    for name in ("SIGINT", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
