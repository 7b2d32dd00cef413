"""The guided battery on the CPU, with runs small enough for it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from probes.battery import BATTERY, OWN_FIGURES, Battery, Progress, Step
from probes.recording import read_recording, recordings_folder
from resources.history import History
from resources.plan import find_model

needs_libraries = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")),
    reason="needs torch and transformers, which the extra `probe` installs",
)
TINY = Step("HuggingFaceTB/SmolLM2-135M", "inference", 1, {"batch": 1, "prompt_tokens": 16, "new_tokens": 4})


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIGHWATER_HOME", str(tmp_path))


@needs_libraries
def test_it_goes_from_run_to_run_and_keeps_each(tmp_path: Path) -> None:
    seen: list[Progress] = []
    battery = Battery("cpu", seen.append, steps=[TINY])
    outcome = battery.run()
    assert outcome.kind == "completed", outcome
    assert [(progress.done, progress.total, progress.title) for progress in seen] == [(0, 2, OWN_FIGURES), (1, 2, TINY.title)]
    assert battery.figures["bandwidth_bytes_per_s"] > 1e8
    assert battery.notes == []
    modes = [read_recording(path).header["order"]["mode"] for path in sorted(recordings_folder().iterdir())]
    assert sorted(modes) == ["calibrate", "measure"]
    assert [run.outcome for run in History().runs()] == ["completed"]


@needs_libraries
def test_stopping_ends_the_run_under_way_and_begins_no_other() -> None:
    """From any thread, here from the one that tells the progress."""
    seen: list[Progress] = []

    def tell(progress: Progress) -> None:
        seen.append(progress)
        battery.stop()

    battery = Battery("cpu", tell, steps=[TINY, TINY])
    assert battery.run().kind == "stopped"
    assert len(seen) == 1


def test_what_the_time_does_not_allow_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from probes.outcome import Outcome

    monkeypatch.setattr(Battery, "_probe", lambda *_: Outcome("completed"))
    battery = Battery("cpu", steps=[TINY, TINY], budget_s=-1.0)
    assert battery.run().kind == "completed"
    assert battery.notes == ["-1 s are over: 2 runs were left out"]


def test_a_run_that_fails_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from probes.outcome import Outcome

    ends = iter([Outcome("completed"), Outcome("out_of_memory", phase="forward"), Outcome("completed")])
    monkeypatch.setattr(Battery, "_probe", lambda *_: next(ends))
    battery = Battery("cpu", steps=[TINY, TINY])
    assert battery.run().kind == "completed"
    assert battery.notes == [f"{TINY.title} was left out: Out of memory in forward."]


def test_every_model_of_the_battery_is_known_without_a_network() -> None:
    for step in BATTERY:
        layers = len(find_model(step.model, network=False).architecture.decoder.layers)
        assert step.layers is None or step.layers < layers
    assert {step.task for step in BATTERY} == {"inference", "training"}
