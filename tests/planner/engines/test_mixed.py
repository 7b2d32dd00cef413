"""Machines whose cards differ: what each engine makes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from planner.advise import advise
from planner.faults import Faults
from planner.footprint import Footprint
from planner.predict import predict, settled_of
from planner.scenario import parse_scenario, to_json
from planner.sweep import VERDICTS, context_grid
from resources.plan import find_gpu, make_plan

SMALL, LARGE = "GeForce RTX 3090", "RTX A6000"
LLAMA = "meta-llama/Llama-3.1-8B"


def scenario_of(engine: str, cards: tuple[str, ...] = (SMALL, LARGE), **more: Any):
    work = {"engine": engine, "prompt_tokens": 1024, "new_tokens": 128, **more.pop("inference", {})}
    return parse_scenario({
        "version": 1, "model": LLAMA, "task": "inference", "inference": work, "hardware": {"cards": list(cards)}, **more,
    })  # fmt: skip


def footprint(engine: str, cards: tuple[str, ...] = (SMALL, LARGE), **more: Any) -> Footprint:
    return make_plan(scenario_of(engine, cards, **more), network=False, calibrated=False).footprint


def test_cards_are_read_written_and_refused() -> None:
    asked = scenario_of("vllm")
    assert (asked.hardware.gpu, asked.hardware.gpus) == (SMALL, 2)
    assert parse_scenario(to_json(asked)) == asked
    with pytest.raises(Faults, match="names every GPU"):
        parse_scenario({"version": 1, "model": LLAMA, "task": "inference", "hardware": {"cards": [SMALL, LARGE], "gpus": 3}})
    with pytest.raises(Faults, match="capacity_bytes"):
        parse_scenario({
            "version": 1, "model": LLAMA, "task": "inference", "hardware": {"cards": [SMALL, LARGE], "capacity_bytes": 9},
        })  # fmt: skip


@pytest.mark.parametrize("engine", ["transformers", "llama.cpp", "vllm", "sglang", "tensorrt-llm", "tgi"])
def test_every_card_has_its_own_capacity(engine: str) -> None:
    parallel = {} if engine in ("transformers", "llama.cpp") else {"tensor": 2} if engine == "tgi" else {"pipeline": 2}
    found = footprint(engine, parallel=parallel)
    assert [card.capacity_bytes for card in found.gpus] == [find_gpu(name).capacity_bytes for name in (SMALL, LARGE)]
    assert found.verdict in ("fits", "tight", "does_not_fit")
    for card in found.gpus:
        for phase in card.phases:
            for component, size in phase.components.items():
                told = [term.bytes for term in found.terms if term.component == component and term.tells_of(phase.name, card.index)]
                assert sum(told) == size


def test_llama_cpp_splits_by_free_memory() -> None:
    """A card of 24 GiB and one of 48 hold a third and two thirds of 32 layers and the output."""
    found = footprint("llama.cpp", weights="bf16")
    small, large = (card.phases[-1].components["kv_cache"] for card in found.gpus)
    assert small / (small + large) == pytest.approx(1 / 3, abs=0.02)
    even = footprint("llama.cpp", weights="bf16", inference={"engine_options": {"tensor_split": "1,1"}})
    halves = [card.phases[-1].components["kv_cache"] for card in even.gpus]
    assert halves[0] / sum(halves) == pytest.approx(17 / 32)


def test_a_device_map_fills_the_small_card_no_further_than_it_holds() -> None:
    """A card smaller than the even share takes what it holds, those after it the rest."""
    alike = footprint("transformers", (LARGE, LARGE))
    mixed = footprint("transformers", ("GeForce RTX 3060 Ti", LARGE))
    held = [found.gpus[0].phases[0].components["weights"] for found in (alike, mixed)]
    assert held[1] < held[0]
    assert sum(card.phases[0].components["weights"] for card in mixed.gpus) == pytest.approx(
        sum(card.phases[0].components["weights"] for card in alike.gpus), rel=0.001
    )


def test_a_server_is_bound_by_its_smallest_card() -> None:
    parallel = {"parallel": {"tensor": 2}}
    mixed, alike = footprint("vllm", **parallel), footprint("vllm", (SMALL, SMALL), **parallel)
    assert mixed.limits["kv_tokens"] == alike.limits["kv_tokens"]
    assert any("smallest card" in note for note in mixed.notes)


def test_sglang_refuses_tensor_parallelism_over_unequal_cards() -> None:
    with pytest.raises(Faults, match="more than a tenth"):
        footprint("sglang", parallel={"tensor": 2})


def test_the_card_that_comes_off_worst_judges() -> None:
    found = footprint("llama.cpp", ("GeForce RTX 3060 Ti", LARGE), weights="bf16", inference={
        "engine_options": {"tensor_split": "1,1"}, "prompt_tokens": 8000,
    })  # fmt: skip
    assert found.verdict == "does_not_fit"
    peaks = [card.peak.device for card in found.gpus if card.peak]
    assert found.headroom_bytes == found.gpus[0].capacity_bytes - peaks[0]


@pytest.mark.parametrize("engine", ["transformers", "llama.cpp", "vllm"])
def test_a_grid_answers_like_its_points(engine: str) -> None:
    plan = make_plan(scenario_of(engine, parallel={"tensor": 2} if engine == "vllm" else {}), network=False, calibrated=False)
    settled, _ = settled_of(plan.scenario, plan.architecture, plan.model.native)
    grid = context_grid(settled, plan.architecture, plan.gpu, plan.model.native, (4, 64), (8192,))
    for column, batch in enumerate((4, 64)):
        point = footprint(engine, parallel={"tensor": 2} if engine == "vllm" else {}, inference={
            "batch": batch, "prompt_tokens": 8192 - 128,
        })  # fmt: skip
        assert VERDICTS[grid.verdict[0, column]] == point.verdict
        assert grid.headroom[0, column] == point.headroom_bytes


def test_advice_leaves_the_cards_as_they_are() -> None:
    plan = make_plan(scenario_of("llama.cpp", weights="bf16", inference={"batch": 64}), network=False, calibrated=False)
    settled = parse_scenario(plan.footprint.scenario)
    found = advise(settled, plan.architecture, lambda changed: predict(changed, plan.architecture, plan.gpu, plan.model.native))
    assert found
    assert all(advice.scenario.hardware == settled.hardware for advice in found)


def test_counts_that_do_not_match_the_cards_are_refused() -> None:
    plan = make_plan(scenario_of("vllm"), network=False, calibrated=False)
    more = replace(plan.scenario, hardware=replace(plan.scenario.hardware, gpus=3))
    with pytest.raises(Faults, match="2 cards are named"):
        predict(more, plan.architecture, plan.gpu, plan.model.native)
