from __future__ import annotations

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest

from gui.examples import EXAMPLES
from gui.fits.answers import GOOD, fits_of
from gui.fits.cards import CardTable
from gui.fits.heat_map import said
from planner.scenario import Hardware, Inference, Parallel, Scenario, parse_scenario, to_json
from planner.solve import context_of, with_context, with_values
from resources.plan import make_plan

CHAT = EXAMPLES[0].scenario


@pytest.fixture
def tab(open_window, qtbot):
    window = open_window(CHAT)
    found = window.show_tab("fits")
    qtbot.waitUntil(lambda: found.settled, timeout=20_000)
    return found


def state(tab):
    return tab.window().context.state


def click_cell(tab, row, column):
    QTest.mouseClick(tab.heat_map, Qt.MouseButton.LeftButton, pos=tab.heat_map.cell_rectangle(row, column).center().toPoint())


def test_a_cell_is_what_the_planner_says_of_its_load(tab):
    found = tab._fits.map
    row, column = found.batches.index(4), found.contexts.index(4096)
    answer = found.answers[row][column]
    footprint = make_plan(answer.scenario).footprint
    assert answer.verdict == footprint.verdict
    assert answer.share == footprint.gpus[0].peak.device / footprint.gpus[0].capacity_bytes
    assert answer.scenario.inference.batch == 4
    assert answer.scenario.inference.prompt_tokens + answer.scenario.inference.new_tokens == 4096


def test_a_click_adopts_the_cell_and_undo_takes_it_back(tab):
    before = state(tab).scenario
    click_cell(tab, 2, 1)
    inference = state(tab).scenario.inference
    assert (inference.batch, inference.prompt_tokens + inference.new_tokens) == (4, 1024)
    state(tab).undo_stack.undo()
    assert state(tab).scenario == before


def test_the_keyboard_walks_the_map_and_adopts(tab, qtbot):
    tab.heat_map.setFocus()
    start = tab.heat_map.current.scenario
    QTest.keyClick(tab.heat_map, Qt.Key.Key_Up)
    assert tab.heat_map.current.scenario.inference.batch == 2 * start.inference.batch
    assert "2 × 8,192 tokens" in tab.heat_map.accessibleDescription()
    QTest.keyClick(tab.heat_map, Qt.Key.Key_Return)
    assert state(tab).scenario.inference.batch == 2


def test_inverse_answers_are_the_edge_of_what_fits(tab):
    plan, settled = state(tab).plan, state(tab).settled
    longest, batch = tab.answers[0].shown, tab.answers[1].shown
    for answer, one_more in (
        (longest, with_context(settled, context_of(longest.scenario) + 1)),
        (batch, with_values(settled, batch=batch.scenario.inference.batch + 1)),
    ):
        assert make_plan(answer.scenario).footprint.verdict in GOOD
        assert make_plan(one_more).footprint.verdict not in GOOD
    assert plan.gpu.name in tab.answers[2]._question.text()
    QTest.mouseClick(tab.answers[1].use, Qt.MouseButton.LeftButton)
    assert state(tab).scenario == batch.scenario


def test_the_smallest_card_is_taken_into_the_form(tab):
    shown = tab.answers[3].shown
    assert shown.question == "Smallest card"
    QTest.mouseClick(tab.answers[3].use, Qt.MouseButton.LeftButton)
    plan = state(tab).plan
    assert shown.value.startswith(plan.gpu.name)
    assert plan.footprint.verdict in GOOD
    smaller = [row for row in tab._fits.cards if row.memory_bytes < plan.gpu.capacity_bytes]
    assert all(row.answers[0].verdict not in GOOD for row in smaller)


def test_llama_cpp_is_answered_on_several_cards():
    plan = make_plan(parse_scenario(to_json(CHAT) | {"inference": {"engine": "llama.cpp"}}))
    fits = fits_of(plan, parse_scenario(plan.footprint.scenario))
    assert "unknown" not in {answer.verdict for row in fits.cards for answer in row.answers}


def test_a_training_over_replicas_is_told_its_least_sharding(open_window, qtbot):
    sharded = next(example.scenario for example in EXAMPLES if example.name == "sharded")
    window = open_window(sharded)
    tab = window.show_tab("fits")
    qtbot.waitUntil(lambda: tab.settled and bool(tab._fits.inverse))
    shown = tab.answers[4].shown
    assert shown.question == "Least sharding that fits"
    assert make_plan(shown.scenario).footprint.verdict in GOOD
    assert shown.scenario.parallel.data == sharded.parallel.data


def test_weights_that_do_not_fit_are_answered_with_the_largest_that_do(open_window, qtbot):
    window = open_window(Scenario("meta-llama/Llama-3.1-8B", "inference", hardware=Hardware("L4", capacity_bytes=14 * 2**30)))
    tab = window.show_tab("fits")
    qtbot.waitUntil(lambda: tab.settled and bool(tab._fits.inverse))
    assert tab.answers[4].shown.value in ("fp8", "int8")
    assert make_plan(tab.answers[4].shown.scenario).footprint.verdict in GOOD


def test_the_map_follows_the_form_and_waits_for_typing_to_pause(tab, qtbot):
    before = tab._fits
    state(tab).edit("hardware.gpu", "H100 SXM5 80GB")
    assert tab.heat_map._dimmed
    click_cell(tab, 0, 0)
    assert state(tab).scenario.hardware.gpu == "H100 SXM5 80GB"
    qtbot.waitUntil(lambda: tab.settled and tab._fits is not before, timeout=20_000)
    assert not tab.heat_map._dimmed
    assert any(row.name == "H100 SXM5 80GB" for row in tab._fits.cards)


def test_a_card_is_adopted_with_its_count(tab, qtbot):
    table = tab.table
    row = next(index for index, one in enumerate(tab._fits.cards) if one.name == "H100 SXM5 80GB")
    index = table.cards.index(row, 2)
    table.scrollTo(index)
    table.activated.emit(index)
    assert state(tab).scenario.hardware.gpu == "H100 SXM5 80GB"
    assert state(tab).scenario.hardware.gpus == 1


def test_unknown_is_a_third_state(open_window, qtbot):
    window = open_window(
        Scenario("meta-llama/Llama-3.1-8B", "inference", inference=Inference("transformers"), hardware=Hardware(None))
    )
    window.context.state.edit("inference.kv_cache", "fp8")
    assert window.context.state.footprint.verdict == "unknown"
    tab = window.show_tab("fits")
    qtbot.waitUntil(lambda: tab.settled, timeout=20_000)
    assert {answer.share for row in tab._fits.map.answers for answer in row} == {None}
    assert "no closed form" in tab.note.text()
    assert not tab.answers[0].isVisible()
    tab.heat_map.grab()


def test_a_pool_of_cache_is_as_full_as_its_tokens():
    plan = make_plan(EXAMPLES[2].scenario)
    if not plan.footprint.limits.get("kv_tokens"):
        pytest.skip("the engine has no pool")
    fits = fits_of(plan, parse_scenario(plan.footprint.scenario))
    row, column = fits.map.batches.index(16), fits.map.contexts.index(8192)
    assert fits.map.answers[row][column].share == pytest.approx(16 * 8192 / plan.footprint.limits["kv_tokens"], rel=0.05)


def test_the_cards_keep_qt_s_rules(window, qtmodeltester):
    qtmodeltester.check(CardTable(window).cards)


@pytest.fixture
def speeds(tab):
    QTest.mouseClick(tab.views._group.button(1), Qt.MouseButton.LeftButton)
    return tab.speeds


def test_speed_is_what_the_planner_says_of_each_concurrency(tab, speeds):
    """More at once makes more tokens together, and each waits no less; the curve ends with the most that fit."""
    assert speeds.isVisible()
    assert not tab.heat_map.isVisible()
    for pace in speeds.paces[::4]:
        footprint = make_plan(with_values(state(tab).settled, batch=pace.batch)).footprint
        assert (pace.tokens_per_s, pace.wait_s) == pytest.approx(
            (footprint.speed["tokens_per_s"], footprint.speed["time_per_token_s"])
        )
        assert pace.verdict == footprint.verdict
    assert speeds.paces[-1].batch == state(tab).footprint.limits["max_batch"]
    waits, rates = [one.wait_s for one in speeds.paces], [one.tokens_per_s for one in speeds.paces]
    assert waits == sorted(waits)
    assert rates == sorted(rates)


def test_a_point_of_the_speed_opens_the_why_panel(tab, speeds):
    """The panel says the point's figures, and the parts that a step is the sum of."""
    QTest.mouseClick(speeds, Qt.MouseButton.LeftButton, pos=speeds.point_of(1).toPoint())
    pace = speeds.paces[1]
    told = tab.window().why.text()
    assert f"{pace.batch} at once" in told
    assert f"{pace.tokens_per_s:,.0f} tokens/s" in told
    shares = state(tab).selection.pace.shares
    assert sum(share.seconds for share in shares) == pytest.approx(pace.wait_s)
    assert all(share.name in told for share in shares)
    assert state(tab).scenario.inference.batch == 1, "a click changes nothing"
    speeds.setFocus()
    QTest.keyClick(speeds, Qt.Key.Key_Right)
    assert f"{speeds.paces[2].batch} at once" in tab.window().why.text()
    state(tab).edit("inference.batch", 2)
    assert "at once" not in tab.window().why.text(), "after an edit the panel explains the plan again"


def test_a_point_of_the_speed_is_adopted_by_mouse_and_keys(tab, speeds):
    spot, second, third = speeds.point_of(1).toPoint(), speeds.paces[1], speeds.paces[2]
    QTest.mouseClick(speeds, Qt.MouseButton.LeftButton, pos=spot)
    QTest.mouseDClick(speeds, Qt.MouseButton.LeftButton, pos=spot)
    assert state(tab).scenario.inference.batch == second.batch
    speeds.setFocus()
    speeds.show_paces(speeds.paces, second.batch)
    QTest.keyClick(speeds, Qt.Key.Key_Right)
    assert f"{third.batch} at once" in speeds.accessibleDescription()
    QTest.keyClick(speeds, Qt.Key.Key_Return)
    assert state(tab).scenario.inference.batch == third.batch
    state(tab).undo_stack.undo()
    state(tab).undo_stack.undo()
    assert state(tab).scenario.inference.batch == 1


def test_a_plan_without_a_known_speed_says_so(speeds):
    before = speeds.grab().toImage()
    speeds.show_paces((), 1)
    assert speeds.current is None
    assert speeds.grab().toImage() != before


def test_how_far_over_a_card_is_can_be_read(open_window, qtbot):
    window = open_window(Scenario("meta-llama/Llama-3.1-405B", "inference", hardware=Hardware("GeForce RTX 4090")), (1000, 700))
    tab = window.show_tab("fits")
    qtbot.waitUntil(lambda: tab.settled, timeout=20_000)
    assert any(">999 %" in tab.table.cards.cell(row, 2).text for row in range(tab.table.cards.rowCount()))
    for column in range(2, 6):
        assert tab.table.cards.width_wanted(column) <= tab.table.columnWidth(column)


def test_a_load_that_the_engine_refuses_is_not_told_to_be_nearly_empty(open_window, qtbot):
    """A server that does not start with its longest request holds one of 512 tokens no better."""
    plan = Scenario("moonshotai/Kimi-K2-Instruct", "inference", inference=Inference("vllm", batch=64, prompt_tokens=32768),
                    hardware=Hardware("H200 SXM 141GB", gpus=8), parallel=Parallel(tensor=8))  # fmt: skip
    tab = open_window(plan).show_tab("fits")
    qtbot.waitUntil(lambda: tab.settled, timeout=20_000)
    answer = tab.heat_map._map.answers[0][0]
    assert (answer.verdict, answer.refused) == ("does_not_fit", True)
    assert said(answer) == "✘"
    assert "refuses" in tab.heat_map._tip((0, 0))
    assert all(said(one) != "✘" for row in fits_of(make_plan(CHAT), CHAT).map.answers for one in row)


def test_it_is_told_what_the_figures_are_of(tab):
    assert "of its memory" in tab.table.cards.cell(0, 5).tip
    assert tab._key.text().startswith("Share of a card's memory at the peak")
    tab.views.edited.emit("speed")
    assert "Estimated" in tab._key.text()
    tab.views.edited.emit("map")
    tab._state.edit("inference.engine", "vllm")
    tab._tell_what()
    assert tab._key.text().startswith("Share of the cache's tokens")
