"""The panel names the control that drives a plan without room, and up to where it fits."""

from __future__ import annotations

import pytest

from planner.scenario import Hardware, Inference, Parallel, Scenario
from planner.sensitivity import drivers_of
from planner.solve import Asked, with_context

CARD = Hardware("GeForce RTX 4090")
TOO_LONG = Scenario(
    "meta-llama/Llama-3.1-8B", "inference", hardware=CARD, inference=Inference(batch=8, prompt_tokens=6000, new_tokens=64)
)


@pytest.mark.parametrize("before", [TOO_LONG, None])
def test_the_panel_names_the_driver(open_window, qtbot, before):
    window = open_window(before) if before else open_window()
    state = window.context.state
    if before is None:
        assert "DRIVES" not in window.why.text(), "a plan with room has nothing to explain"
        state.open(TOO_LONG, "too long")
    qtbot.waitUntil(lambda: "WHAT DRIVES IT\nContext adds " in window.why.text(), timeout=10_000)
    plan = state.plan
    most = drivers_of(Asked(state.settled, plan.architecture, plan.gpu, plan.model.native), plan.footprint)[0].most
    assert f"at {most:,} tokens it fits." in window.why.text()
    state.open(with_context(TOO_LONG, most), "shorter")
    qtbot.waitUntil(lambda: f"up to {most:,} tokens fit." in window.why.text(), timeout=10_000)
    state.edit("inference.batch", 1)
    assert "DRIVES" not in window.why.text()


def test_where_no_load_fits_the_panel_says_so(open_window, qtbot):
    window = open_window(Scenario("meta-llama/Llama-3.1-70B", "inference", hardware=CARD))
    qtbot.waitUntil(lambda: "Largest part: Weights, 131.42 GiB. No shorter context" in window.why.text(), timeout=10_000)


def test_notes_call_fields_by_the_names_of_the_form(window):
    assert "Prompt tokens: 7936 by default" in window.why.text()
    assert "inference.prompt_tokens" not in window.why.text()


def test_what_stands_in_the_way_of_an_answer_comes_first(open_window):
    window = open_window(Scenario("meta-llama/Llama-3.1-8B", "inference", hardware=Hardware("H100 SXM5 80GB", gpus=2),
                                  parallel=Parallel(tensor=2)))  # fmt: skip
    told = window.why.text().split("\n")
    assert told[0] == "No closed form"
    assert told[1].startswith("Parallel: transformers' own tensor parallelism")
    assert "unknown:" not in window.why.text()
