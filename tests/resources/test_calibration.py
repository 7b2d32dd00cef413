from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner.calibration import Calibration
from planner.scenario import parse_scenario
from resources import calibration as store
from resources.calibration import CalibrationError
from resources.gpus import gpu
from resources.plan import make_plan

NAME = "H200 SXM 141GB"
MEASURED = Calibration(
    context_bytes=700 * 2**20, context_band_bytes=10 * 2**20, training_slack_permille=1500, flops_fractions=(("bf16", 0.7),),
    bandwidth_fraction=0.85, runs=4, source="measured here",
)  # fmt: skip
TRAINING = {
    "version": 1, "model": "HuggingFaceTB/SmolLM2-135M", "task": "training", "training": {"batch": 2, "sequence": 256},
    "hardware": {"gpu": NAME},
}  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HIGHWATER_HOME", str(tmp_path))
    return tmp_path


def test_the_latest_counts_and_can_be_taken_back() -> None:
    first = Calibration(context_bytes=1)
    store.save(NAME, first)
    store.save(NAME, MEASURED)
    assert store.history_of(NAME) == [first, MEASURED]
    assert store.cards() == [NAME]
    assert store.undo(NAME)
    assert store.history_of(NAME) == [first]
    assert store.undo(NAME)
    assert not store.undo(NAME)
    assert store.cards() == []


def test_reset_forgets_one_card_or_all() -> None:
    store.save(NAME, MEASURED)
    store.save("other", MEASURED)
    assert (store.reset("nobody"), store.reset("other"), store.reset(), store.reset()) == (0, 1, 1, 0)


def test_the_export_holds_everything() -> None:
    store.save(NAME, MEASURED)
    told = json.loads(store.export())
    assert told["highwater_calibration"] == 1
    assert told["cards"][NAME][0]["flops_fractions"] == {"bf16": 0.7}


def test_a_plan_uses_it_marked_measured() -> None:
    """device = allocated + slack · 1.5 + the measured context, in every phase that the card does not bound."""
    scenario = parse_scenario(TRAINING)
    before = make_plan(scenario, network=False).footprint
    store.save(NAME, MEASURED)
    after = make_plan(scenario, network=False).footprint
    plain = make_plan(scenario, network=False, calibrated=False).footprint
    assert plain.gpus == before.gpus
    for old, new in zip(before.gpus[0].phases, after.gpus[0].phases, strict=True):
        assert new.allocated == old.allocated
        assert new.components["cuda_context"] == 700 * 2**20
        assert new.device == new.reserved + 700 * 2**20
    load = [footprint.gpus[0].phases[0] for footprint in (before, after)]
    assert load[1].reserved - load[1].allocated == (load[0].reserved - load[0].allocated) * 1500 // 1000
    certainty = {term.component: (term.certainty, term.because) for term in after.terms}
    assert certainty["cuda_context"] == ("measured", "measured here")
    assert certainty["allocator_slack"][0] == "measured"
    assert after.uncertainty_bytes is not None
    assert before.uncertainty_bytes is not None
    assert after.uncertainty_bytes < before.uncertainty_bytes
    store.undo(NAME)
    assert make_plan(scenario, network=False).footprint.gpus == before.gpus


def test_a_calibrated_card_stays_one_object() -> None:
    store.save(NAME, MEASURED)
    card = gpu(NAME)
    assert store.with_calibration(card) is store.with_calibration(card)
    assert store.with_calibration(gpu("H100 SXM5 80GB")).calibration is None


@pytest.mark.parametrize("content", ["{", "[]", '{"highwater_calibration": 9}', '{"highwater_calibration": 1, "cards": {"x": 1}}'])
def test_a_broken_file_is_told_and_plans_go_on(home: Path, content: str) -> None:
    (home / "calibration.json").write_text(content)
    with pytest.raises(CalibrationError, match="calibrate reset"):
        store.history_of(NAME)
    assert store.with_calibration(gpu(NAME)).calibration is None
    store.reset()
    assert store.history_of(NAME) == []


def test_an_entry_that_makes_no_sense_is_told(home: Path) -> None:
    (home / "calibration.json").write_text(json.dumps({"highwater_calibration": 1, "cards": {NAME: [{"context_bytes": []}]}}))
    with pytest.raises(CalibrationError, match="makes no sense"):
        store.history_of(NAME)
    assert store.with_calibration(gpu(NAME)).calibration is None
