"""Error bands follow the recorded runs, or say that there are none."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace

import pytest

from planner.calibration import Calibration
from planner.error_bands import BANDS
from planner.footprint import judge
from planner.machine import overheads
from planner.predict import predict
from planner.scenario import parse_scenario
from planner.uncertainty import FEWEST_ROWS, band_permille, device_band, rows_of
from resources.plan import find_gpu, find_model

LLAMA = "meta-llama/Llama-3.1-8B"
CARD = "A100 SXM4 80GB"


def asked(engine: str = "transformers", **hardware: object):
    document = {
        "version": 1, "model": LLAMA, "task": "inference",
        "inference": {"engine": engine, "prompt_tokens": 2000, "new_tokens": 100},
        "hardware": {"gpu": CARD, **hardware},
    }  # fmt: skip
    found = find_model(LLAMA, network=False)
    return parse_scenario(document), found.architecture, find_gpu(CARD), found.native


def test_a_percentile_needs_rows() -> None:
    """Enough runs give their percentile, too few the stated width or theirs where it is wider, none the stated width."""
    few = next(key for key, (rows, _) in BANDS.items() if rows < FEWEST_ROWS)
    many = next(key for key, (rows, _) in BANDS.items() if rows >= FEWEST_ROWS)
    assert band_permille(*many, 10**6) == BANDS[many][1]
    assert band_permille(*few, 10**6) == 10**6
    assert band_permille(*few, 0) == BANDS[few][1]
    assert band_permille("tgi", "weights", 77) == 77
    assert rows_of("tgi") == rows_of("tensorrt-llm") == 0 < rows_of("vllm")


def test_the_band_is_that_of_the_recorded_runs() -> None:
    """Of what is reserved beside the weights, and the context's own."""
    scenario, architecture, gpu, native = asked()
    found = predict(scenario, architecture, gpu, native)
    beside = max(phase.reserved - phase.components["weights"] for phase in found.gpus[0].phases)
    permille = BANDS["transformers generation", "reserved"][1]
    assert found.uncertainty_bytes == overheads(gpu).context_band_bytes + beside * permille // 1000


def test_a_calibration_of_this_machine_goes_before_the_recorded_runs() -> None:
    scenario, architecture, gpu, native = asked()
    measured = Calibration(context_bytes=5 * 10**8, inference_slack_permille=1500, inference_slack_band_permille=150)
    phases = predict(scenario, architecture, gpu, native).gpus[0].phases
    slack = max(phase.components["allocator_slack"] for phase in phases)
    machine = overheads(replace(gpu, calibration=measured))
    assert device_band(phases, machine, "inference") == slack * 150 // 1500


@pytest.mark.parametrize("engine", ["transformers", "sglang", "vllm"])
def test_tight_is_where_the_band_crosses_the_capacity(engine) -> None:
    """A plan whose figure fits, and whose figure with the band does not, is tight."""
    roomy = predict(*asked(engine))
    assert roomy.verdict == "fits"
    if engine == "transformers":
        device = max(phase.device for phase in roomy.gpus[0].phases)
        assert judge(device, device * 100 // 84, roomy.uncertainty_bytes) == "fits"
        assert judge(device, device * 100 // 84, device // 4) == "tight"
        return

    def verdict(mib: int) -> str:
        return predict(*asked(engine, capacity_bytes=mib * 2**20)).verdict

    least = bisect_left(range(16 * 1024, 60 * 1024), True, key=lambda mib: verdict(mib) != "does_not_fit") + 16 * 1024
    assert verdict(least - 1) == "does_not_fit"
    assert verdict(least) == "tight"


@pytest.mark.parametrize("engine", ["sglang", "tensorrt-llm", "tgi"])
def test_an_engine_without_recorded_runs_says_so(engine) -> None:
    assert any("the error band is stated, not measured" in note for note in predict(*asked(engine)).notes)
