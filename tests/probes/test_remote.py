"""Measuring over SSH, against a real OpenSSH server on loopback."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from probes import session
from probes.measurement import Measurement
from probes.orders import load_order, measure_order
from probes.outcome import Outcome
from probes.recording import read_recording
from probes.remote import CONFIG_VARIABLE, Remote, place_of
from probes.session import Limits, ProbeSession
from tests.children import is_gone, is_stopped
from tests.probes.sshd import BEHIND, HOST, Sshd
from tests.probes.test_worker_session import CONFIG, PARAMETERS, scenario
from tests.timing import PATIENCE_S, eventually

needs_libraries = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")),
    reason="needs torch and transformers, which the extra `probe` installs",
)
LIMITS = Limits(time_s=PATIENCE_S, grace_s=1.0, reconnects=0)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    server = Sshd(tmp_path_factory.mktemp("sshd"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CONFIG_VARIABLE, str(server.config))
        yield server
    server.close()


class Run:
    """A session on the host, with its events."""

    def __init__(self, folder: Path, order: dict[str, Any], remote: Remote, reconnects: int = 0) -> None:
        self.events: list[dict[str, Any]] = []
        self.path = folder / "r.jsonl"
        limits = replace(LIMITS, reconnects=reconnects)
        self.session = ProbeSession(order, self.events.append, recording_path=self.path, remote=remote, limits=limits)

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first event that meets a condition."""

        def found() -> dict[str, Any] | None:
            return next(filter(condition, tuple(self.events)), None)

        eventually(lambda: found() or self.session.outcome)
        event = found()
        assert event is not None, f"no such event in {self.events[-5:]}"
        return event

    def finish(self) -> Outcome:
        outcome = self.session.wait(PATIENCE_S)
        assert outcome is not None
        self.session.close()
        assert read_recording(self.path).events == self.events
        return outcome

    def named(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]


def ramp(**more: object) -> dict[str, Any]:
    return load_order("ramp", "cpu", 2**40, block_bytes=2 * 2**20, **more)


def long_load(folder: Path) -> dict[str, Any]:
    """A load that does nothing for long: it needs torch alone, which is loaded sooner than transformers."""
    script = folder / "long.py"
    script.write_text("import time\ntime.sleep(100)\n")
    return load_order("script", "cpu", script=str(script))


@needs_libraries
def test_a_model_is_measured_where_nothing_is_installed(tmp_path: Path, sshd: Sshd) -> None:
    """The same answer as here, with the meters of the other machine, and no name of it."""
    run = Run(tmp_path, measure_order(scenario("inference"), CONFIG), Remote(HOST, sys.executable))
    with run.session:
        outcome = run.finish()
    assert outcome.kind == "completed", outcome.text + outcome.stderr_tail
    measurement = Measurement.of_recording(read_recording(run.path))
    answer = measurement.footprint()
    assert answer.parameters == PARAMETERS
    assert [phase.name for phase in answer.gpus[0].phases] == ["load", "prefill", "decode"]
    assert all(phase.allocated >= PARAMETERS * 4 for phase in answer.gpus[0].phases)
    samples = run.named("sample")
    assert samples and all(event["rss"] > 10 * 2**20 for event in samples)
    assert measurement.environment["memory_bytes"] == psutil.virtual_memory().total
    assert HOST not in json.dumps(answer.to_json())
    assert HOST not in run.path.read_text()
    assert is_gone(run.named("hello")[0]["pid"])


@needs_libraries
def test_a_dropped_connection_keeps_what_had_arrived_and_the_next_probe_works(tmp_path: Path, sshd: Sshd) -> None:
    run = Run(tmp_path, long_load(tmp_path), Remote(HOST, sys.executable))
    with run.session:
        pid = run.until(lambda event: event["event"] == "hello")["pid"]
        run.until(lambda event: event["event"] == "memory" and event["phase"] == "script")
        sshd.drop()
        outcome = run.finish()
    assert (outcome.kind, outcome.phase, outcome.exit_code) == ("disconnected", "script", 3), outcome
    assert "connection was lost in script" in outcome.text
    assert [step.name for step in Measurement.of_recording(read_recording(run.path)).phases] == ["script"]
    assert is_gone(pid)
    (tmp_path / "next").mkdir()
    following = Run(tmp_path / "next", load_order("ramp", "cpu", 4 * 2**20), Remote(HOST, sys.executable))
    with following.session:
        assert following.finish().kind == "completed"


@needs_libraries
@pytest.mark.skipif(sys.platform != "linux", reason="what it started is found by what it carries, which Linux tells")
def test_a_probe_that_is_stopped_there_ends_with_its_connection_too(tmp_path: Path, sshd: Sshd) -> None:
    """With all that it started: nothing that the probe itself could do is done."""
    script = tmp_path / "load.py"
    sleep = "import time; time.sleep(100)"
    script.write_text(
        "import os, signal, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-S', '-c', {sleep!r}], start_new_session=True)\n"
        f"open({str(tmp_path / 'child')!r} + '.new', 'w').write(str(child.pid))\n"
        f"os.rename({str(tmp_path / 'child')!r} + '.new', {str(tmp_path / 'child')!r})\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\n"
    )
    run = Run(tmp_path, load_order("script", "cpu", script=str(script)), Remote(HOST, sys.executable))
    with run.session:
        pid = run.until(lambda event: event["event"] == "hello")["pid"]
        assert is_stopped(pid)
        sshd.drop()
        assert run.finish().kind == "disconnected"
    assert is_gone(pid)
    assert is_gone(int((tmp_path / "child").read_text()))


def without_packages(wrapper: Path) -> str:
    """A Python that finds no installed package (``-S``), under this path."""
    wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    wrapper.chmod(0o755)
    return str(wrapper)


def test_a_host_behind_another_is_reached_by_the_users_own_jump(tmp_path: Path, sshd: Sshd) -> None:
    """What is said comes from the Python there."""
    run = Run(tmp_path, load_order("ramp", "cpu"), Remote(BEHIND, without_packages(tmp_path / "python")))
    with run.session:
        outcome = run.finish()
    assert (outcome.kind, outcome.error_kind) == ("failed", "missing_package"), outcome


@needs_libraries
def test_a_connection_is_made_anew_and_the_recording_keeps_both_parts(
    tmp_path: Path, sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The load is one that is long the first time and short the second."""
    monkeypatch.setattr(session, "RECONNECT_AFTER_S", 0.1)
    marker, script = tmp_path / "marker", tmp_path / "load.py"
    script.write_text(
        f"import pathlib, time\nmarker = pathlib.Path({str(marker)!r})\n"
        "if not marker.exists():\n    marker.touch()\n    time.sleep(100)\n"
    )
    run = Run(tmp_path, load_order("script", "cpu", script=str(script)), Remote(HOST, sys.executable), reconnects=2)
    with run.session:
        first = run.until(lambda event: event["event"] == "hello")["pid"]
        run.until(lambda event: event["event"] == "memory" and event["phase"] == "script")
        sshd.drop()
        outcome = run.finish()
    assert outcome.kind == "completed", outcome
    assert [event["attempt"] for event in run.named("reconnect")] == [1]
    assert "connection was lost in script" in run.named("note")[0]["message"]
    pids = [event["pid"] for event in run.named("hello")]
    assert len(pids) == 2
    assert pids[0] == first
    assert is_gone(*pids)
    again = run.events.index(run.named("reconnect")[0])
    assert all(event["t"] >= run.events[again]["t"] for event in run.events[again:])
    (phase,) = Measurement.of_recording(read_recording(run.path)).phases
    assert (phase.name, phase.ended) == ("script", True)


@needs_libraries
def test_a_host_that_stays_away_is_a_lost_connection(tmp_path: Path, sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the client killed from outside is one as well."""
    monkeypatch.setattr(session, "RECONNECT_AFTER_S", 0.1)
    run = Run(tmp_path, long_load(tmp_path), Remote(HOST, sys.executable), reconnects=2)
    with run.session:
        pid = run.until(lambda event: event["event"] == "hello")["pid"]
        run.until(lambda event: event["event"] == "memory")
        sshd.process.terminate()
        sshd.process.wait(10)
        assert run.session.pid is not None
        psutil.Process(run.session.pid).kill()
        outcome = run.finish()
    sshd.start()
    assert (outcome.kind, outcome.phase) == ("disconnected", "script"), outcome
    assert [event["attempt"] for event in run.named("reconnect")] == [1, 2]
    assert is_gone(pid)


@needs_libraries
def test_stopping_ends_the_probe_there(tmp_path: Path, sshd: Sshd) -> None:
    run = Run(tmp_path, long_load(tmp_path), Remote(HOST, sys.executable))
    with run.session:
        pid = run.until(lambda event: event["event"] == "hello")["pid"]
        run.session.stop()
        assert run.finish().kind == "stopped"
    assert is_gone(pid)


@needs_libraries
def test_a_probe_killed_there_is_not_a_lost_connection(tmp_path: Path, sshd: Sshd) -> None:
    run = Run(tmp_path, long_load(tmp_path), Remote(HOST, sys.executable))
    with run.session:
        pid = run.until(lambda event: event["event"] == "hello")["pid"]
        psutil.Process(pid).kill()
        outcome = run.finish()
    assert (outcome.kind, outcome.signal) == ("killed", 9), outcome


@pytest.mark.parametrize(
    ("remote", "words"),
    [
        (Remote("unknown"), "~/.ssh/config"),
        (Remote("stranger"), "accept it"),
        (Remote(HOST, "/no/such/python"), "--python"),
    ],
    ids=["unknown host", "unknown key", "no Python"],
)
def test_what_keeps_it_from_starting_is_said_with_its_remedy(remote: Remote, words: str, tmp_path: Path, sshd: Sshd) -> None:
    run = Run(tmp_path, ramp(), remote)
    with run.session:
        outcome = run.finish()
    assert (outcome.kind, outcome.exit_code) == ("could_not_start", 3), outcome
    assert words in outcome.text


def test_a_key_that_is_refused_asks_for_no_password(tmp_path: Path, sshd: Sshd) -> None:
    keys = sshd.folder / "authorized_keys"
    kept = keys.read_text()
    keys.write_text("")
    try:
        run = Run(tmp_path, ramp(), Remote(HOST))
        with run.session:
            outcome = run.finish()
    finally:
        keys.write_text(kept)
    assert outcome.kind == "could_not_start"
    assert "asks for no password" in outcome.text


def test_without_torch_there_its_name_is_said(tmp_path: Path, sshd: Sshd) -> None:
    """The program's name has a space, as the remote shell must take it."""
    run = Run(tmp_path, load_order("ramp", "cpu"), Remote(HOST, without_packages(tmp_path / "bare python")))
    with run.session:
        outcome = run.finish()
    assert (outcome.kind, outcome.error_kind) == ("failed", "missing_package"), outcome
    assert "torch" in outcome.text


@pytest.mark.parametrize(
    ("device", "place"),
    [
        ("cpu", (None, "cpu")),
        ("cuda:1", (None, "cuda:1")),
        ("ssh:box", (Remote("box"), "cuda:0")),
        ("ssh:me@box:cuda:3", (Remote("me@box"), "cuda:3")),
        ("ssh:box:cpu", (Remote("box"), "cpu")),
    ],
)
def test_places(device: str, place: tuple[Remote | None, str]) -> None:
    assert place_of(device) == place


@pytest.mark.parametrize("device", ["ssh:", "ssh:-oProxyCommand=x", "ssh:a b", "ssh:box:gpu", "ssh:box:cuda"])
def test_places_that_name_no_host(device: str) -> None:
    with pytest.raises(ValueError, match="ssh:HOST"):
        place_of(device)
