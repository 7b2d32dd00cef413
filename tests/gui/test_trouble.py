"""What every tab says while the form can't be planned: why, and nothing that looks like an answer."""

from __future__ import annotations

import pytest

from planner.scenario import Hardware, Parallel, Scenario, Training

UNSOUND = Scenario(
    "google/gemma-3-4b-it",
    "training",
    training=Training(engine="megatron"),
    hardware=Hardware("H100 SXM5 80GB", gpus=3),
    parallel=Parallel(tensor=3),
)
MENDED = "parallel.tensor"


def words_of(tab):
    """What a tab tells first."""
    return {
        "FootprintTab": lambda: tab.verdict.accessibleDescription(),
        "FitsTab": lambda: tab.note.text(),
        "AdviceTab": lambda: tab.headline.text(),
        "CommandsTab": lambda: tab.stale.text(),
        "CompareTab": lambda: tab.hint.text(),
    }[type(tab).__name__]()


@pytest.mark.parametrize("name", ["footprint", "fits", "advice", "commands", "compare"])
def test_a_first_scenario_that_is_not_sound_is_told_where_one_looks(open_window, qtbot, name):
    """It used to look like a plan of nothing: an axis of a fraction of a KiB, and "working it out" for ever."""
    window = open_window(UNSOUND)
    tab = window.show_tab(name)
    assert window.context.state.plan is None
    qtbot.waitUntil(lambda: words_of(tab).startswith(f"Not planned: {MENDED}"))
    window.context.state.edit(MENDED, 1)
    assert window.context.state.trouble == ""


def test_nothing_is_offered_before_there_is_a_plan(open_window, qtbot):
    window = open_window(UNSOUND)
    assert window.show_tab("footprint").verdict.text.startswith("No plan yet")
    assert window.show_tab("footprint").bars.rows == ()
    advice = window.show_tab("advice")
    qtbot.waitUntil(lambda: not advice.apply.isEnabled())
    fits = window.show_tab("fits")
    qtbot.waitUntil(lambda: not any(answer.isVisible() for answer in fits.answers))


def test_the_last_sound_plan_stays_and_says_that_it_is_old(window):
    tab = window.show_tab("footprint")
    before = tab.verdict.text
    window.context.state.edit("inference.batch", 0)
    assert tab.verdict.text == before
    assert tab.verdict.dimmed
    assert "inference.batch: must be at least 1, got 0" in words_of(tab)
    assert "last plan that was sound" in words_of(tab)
    window.context.state.undo_stack.undo()
    assert (words_of(tab), tab.verdict.dimmed) == ("", False)
