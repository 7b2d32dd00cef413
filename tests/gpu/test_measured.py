"""Real runs on a real card: rehearsed and simulated against measured. Skipped where there is none."""

from __future__ import annotations

import importlib.util
from statistics import median
from typing import Any

import pytest

from tests.gpu.allocator import MODELS, mismatch, record_model, record_random
from tests.gpu.rehearsed import errors, measured_peaks, rehearse
from tests.gpu.scenarios import SCENARIOS, Scenario
from tests.gpu.worker_process import Event, result_of, run_worker


def _cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not _cuda(), reason="needs a CUDA device and a torch that can use it")]
CHOSEN = (
    "smol-infer-b8-t512", "qwen3-infer-b1-t1024", "llama-infer-b1-t2048", "smol-train-b4-t512", "smol-train-ckpt-b8-t1024",
    "llama-train-b1-t1024", "qwen3-train-lora8-b2-t1024",
)  # fmt: skip


def measure(scenario: Scenario, **more: Any) -> tuple[list[Event], Event]:
    events: list[Event] = []
    run_worker(scenario.order("measure", "cuda:0", **more), events.append)
    return events, result_of(events)


@pytest.fixture(scope="module")
def compared() -> dict[str, dict[tuple[str, int], tuple[float, float]]]:
    """Rehearsed against measured, by scenario, phase and step."""
    found = {}
    for scenario in SCENARIOS:
        if scenario.name in CHOSEN:
            events, result = measure(scenario)
            hello = next(event for event in events if event["event"] == "hello")
            device, versions = hello["device"], hello["versions"]
            rehearsed = rehearse(scenario, device["capability"], versions["torch"].split("+")[0], device["total_bytes"])
            found[scenario.name] = errors(rehearsed, measured_peaks(result))
    return found


def test_rehearsed_allocated_is_what_the_card_counts(compared: dict[str, dict[Any, tuple[float, float]]]) -> None:
    """Within 1 % in the median over phases, and within 3 % in every phase."""
    found = {(name, *key): error[0] for name, by_phase in compared.items() for key, error in by_phase.items()}
    assert len(found) > 20
    assert median(abs(error) for error in found.values()) < 0.01, found
    assert max(abs(error) for error in found.values()) < 0.03, {key: error for key, error in found.items() if abs(error) > 0.01}


def test_rehearsed_reserved_is_what_the_card_holds(compared: dict[str, dict[Any, tuple[float, float]]]) -> None:
    """Within 3 % in the median over phases."""
    found = {(name, *key): error[1] for name, by_phase in compared.items() for key, error in by_phase.items()}
    assert median(abs(error) for error in found.values()) < 0.03, found


def test_a_budget_that_is_too_small_is_a_result() -> None:
    scenario = next(scenario for scenario in SCENARIOS if scenario.name == "smol-train-b4-t512")
    _, result = measure(scenario, budget_bytes=600 * 2**20)
    assert result["outcome"] == "out_of_memory"
    assert result["requested_bytes"] > 0
    assert result["phase"] in ("load", "forward", "backward", "optimizer")


def test_the_card_is_left_as_it_was_found() -> None:
    import torch

    free, _ = torch.cuda.mem_get_info()
    measure(next(scenario for scenario in SCENARIOS if scenario.name == "smol-infer-b8-t512"))
    after, _ = torch.cuda.mem_get_info()
    assert abs(after - free) < 64 * 2**20


@pytest.mark.parametrize("seed", range(4))
def test_the_simulated_allocator_does_what_torchs_does(seed: int) -> None:
    """Random storages born and dying: allocated and reserved equal after every step, by torch's own snapshot too."""
    assert mismatch(record_random(seed)) == ""


@pytest.mark.parametrize("name", MODELS)
def test_what_a_run_reserves_is_what_the_simulated_allocator_reserves(name: str) -> None:
    """After every storage of a whole run."""
    recorded = record_model(name)
    assert len(recorded["steps"]) > 1000
    assert mismatch(recorded) == ""
