from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from PySide6.QtCore import QPoint, Qt
from PySide6.QtTest import QTest

from gui.footprint.rows import rows_of
from gui.footprint.table import ComponentModel, lines_of
from gui.scale import ticks
from gui.state import Selection
from gui.text import width_of
from gui.theme import SMALL, theme
from planner.footprint import Phase
from planner.scenario import Hardware, Inference, Parallel, Scenario, Training
from planner.units import GIB, format_bytes
from probes.readings import DriverState, GpuProcess, GpuReading, MemoryReading

TRAINING = Scenario(
    "mistralai/Mistral-7B-v0.1",
    "training",
    training=Training(batch=4, sequence=4096, checkpointing="full", optimizer="adamw_foreach"),
    hardware=Hardware("A100 SXM4 80GB"),
)


@pytest.fixture
def tab(window):
    return window.show_tab("footprint")


def middle_of(tab, component, phase):
    return tab.bars.segment_rectangle(component, phase).center().toPoint()


def test_the_verdict_says_what_the_plan_says(tab, window):
    footprint = window.context.state.footprint
    peak = footprint.gpus[0].peak.device
    assert tab.verdict.text == f"Fits · {peak / GIB:.2f} of {format_bytes(footprint.gpus[0].capacity_bytes)}"
    assert format_bytes(footprint.headroom_bytes) in tab.verdict.accessibleName()


def test_a_segment_is_as_wide_as_its_share(tab, window):
    prefill = next(phase for phase in window.context.state.footprint.gpus[0].phases if phase.name == "prefill")
    weights, cache = (tab.bars.segment_rectangle(name, "prefill").width() for name in ("weights", "kv_cache"))
    assert weights / cache == pytest.approx(prefill.components["weights"] / prefill.components["kv_cache"], rel=1e-6)


def test_a_click_on_a_segment_opens_why(tab, window):
    QTest.mouseClick(tab.bars, Qt.MouseButton.LeftButton, pos=middle_of(tab, "kv_cache", "decode"))
    assert window.context.state.selection == Selection("kv_cache", "decode", 0)
    assert window.why.text().startswith("KV cache")
    assert "num_key_value_heads" in window.why.text()
    assert tab.phases.value() == "decode"


def test_hovering_a_segment_points_at_it(tab, qtbot):
    with qtbot.waitSignal(tab.bars.hovered) as hovered:
        QTest.mouseMove(tab.bars, QPoint(2, 2))
        QTest.mouseMove(tab.bars, middle_of(tab, "weights", "load"))
    assert hovered.args == [Selection("weights", "load", 0)]


def test_arrow_keys_walk_the_segments(tab, window):
    tab.bars.setFocus()
    QTest.keyClick(tab.bars, Qt.Key.Key_Down)
    first = window.context.state.selection
    QTest.keyClick(tab.bars, Qt.Key.Key_Right)
    second = window.context.state.selection
    assert first.phase == "decode"
    assert (second.phase, second.component != first.component) == ("decode", True)


def test_a_row_of_the_table_opens_why(tab, window):
    for row in range(tab.table.model().rowCount()):
        index = tab.table.model().index(row, 0)
        QTest.mouseClick(tab.table.viewport(), Qt.MouseButton.LeftButton, pos=tab.table.visualRect(index).center())
        assert window.why.text().startswith(index.data())


def test_choosing_a_phase_changes_the_table(tab):
    QTest.mouseClick(tab.phases._group.button(0), Qt.MouseButton.LeftButton)
    assert tab.phases.value() == "load"
    names = {tab.table.components.line(row).component for row in range(tab.table.components.rowCount())}
    assert "kv_cache" not in names


def test_sizes_sort_as_numbers_on_both_sides_of_31_bits(open_window):
    tab = open_window(TRAINING).show_tab("footprint")
    model = tab.table.model()
    for order in (Qt.SortOrder.AscendingOrder, Qt.SortOrder.DescendingOrder):
        tab.table.sortByColumn(1, order)
        sizes = [model.index(row, 1).data(Qt.ItemDataRole.UserRole) for row in range(model.rowCount())]
        assert min(sizes) < 2**31 < max(sizes)
        assert sizes == sorted(sizes, reverse=order == Qt.SortOrder.DescendingOrder)


def test_the_shares_of_a_phase_add_up(tab):
    shares = [tab.table.components.line(row).share for row in range(tab.table.components.rowCount())]
    assert sum(shares) == pytest.approx(1, abs=1e-9)


def test_the_model_keeps_qt_s_rules(qtmodeltester):
    model = ComponentModel()
    model.show_lines(lines_of(Phase("load", 30, 30, 40, {"weights": 30, "cuda_context": 10}), {}))
    qtmodeltester.check(model)
    model.show_lines(())
    qtmodeltester.check(model)


def test_what_no_formula_covers_is_unknown_with_its_reason(tab, window):
    window.context.state.edit("inference.kv_cache", "fp8")
    assert tab.verdict.text.startswith("Unknown")
    assert "fp8" in tab.verdict.accessibleName()
    assert tab.table.components.rowCount() == 0
    window.context.state.undo_stack.undo()
    assert tab.verdict.text.startswith("Fits")


def test_the_theme_repaints_with_the_other_half_of_each_pair(tab, window):
    def colour():
        at = tab.bars.segment_rectangle("weights", "load").topLeft().toPoint() + QPoint(4, 4)
        image = tab.bars.grab().toImage()
        scale = image.width() / tab.bars.width()
        return image.pixelColor(int(at.x() * scale), int(at.y() * scale)).name()

    light = colour()
    theme().choose("dark")
    assert light == "#3b6fb6"
    assert colour() == "#5b8fd6"


@pytest.mark.parametrize("limit", [1, 700, 3 * 2**20, 79 * GIB, 1440 * GIB])
def test_ticks_are_round_and_within_the_axis(limit):
    positions = [position for position, _ in ticks(limit)]
    assert positions[0] == 0
    assert positions[-1] <= limit
    assert 2 <= len(positions) <= 10


def test_every_phase_can_be_seen_and_stays_where_it_is(tab, window):
    def places():
        return [button.geometry() for button in tab.phases._group.buttons() if button.isVisible()]

    before = places()
    assert len(before) == 3
    assert all(not button.visibleRegion().isEmpty() for button in tab.phases._group.buttons())
    window.context.state.edit("task", "training")
    assert places()[:3] == before
    assert len(places()) == 4


def reading(free_gib, pid=4321):
    total, free = 85_520_809_984, int(free_gib * GIB)
    memory = MemoryReading(total, total - free, free, 0, "nvml-v2")
    return GpuReading(0, "GPU-0", "NVIDIA H100 80GB HBM3", memory, processes=(GpuProcess(pid, 21 * GIB),))


def test_what_others_hold_of_the_card_is_drawn_and_told(tab, window):
    """Fit is judged against the card; what is free of it now is a line of its own, with the name of who holds the rest."""
    machine, plain = window.context.machine, tab.bars.grab().toImage()
    machine._take(DriverState(), (reading(57.5),), {4321: "python (4321)"})
    told = tab.verdict.accessibleName()
    assert "free now 57.50 GiB" in told
    assert "python (4321) holds 21.00 GiB" in told
    assert "too little" not in told
    assert tab.bars.grab().toImage() != plain
    assert {row.free_bytes for row in tab.bars.rows} == {int(57.5 * GIB)}
    machine._take(DriverState(), (reading(2),), {})
    assert "too little at the moment" in tab.verdict.accessibleName()


def test_of_several_cards_those_that_the_plan_takes_are_told_of(tab, window):
    """The words and the line in the chart speak of one GPU; one that has room and is left alone is named."""
    window.context.machine._take(DriverState(), (replace(reading(2), index=0), replace(reading(60), index=1)), {})
    told = tab.verdict.accessibleName()
    assert "free now 2.00 GiB on GPU 0" in told
    assert "GPU 1 has 60.00 GiB free" in told
    assert {row.free_bytes for row in tab.bars.rows} == {2 * GIB}


def test_a_card_that_is_not_here_has_no_line_of_what_is_free(tab, window):
    window.context.machine._take(DriverState(), (reading(57.5),), {})
    window.context.state.edit("hardware.gpu", "GeForce RTX 4090")
    assert {row.free_bytes for row in tab.bars.rows} == {None}
    assert "free now" not in tab.verdict.accessibleName()


def test_the_peak_carries_the_error_band(window):
    footprint = window.context.state.footprint
    rows = rows_of(footprint, None)
    assert [row.error_bytes for row in rows] == [footprint.uncertainty_bytes if row.peak else 0 for row in rows]
    assert footprint.uncertainty_bytes > 0


def test_formulas_follow_sizes_a_moment_after_an_edit(tab, window, qtbot):
    """The sizes answer at once; until the terms have come, no formula of another phase or component stands beside them."""
    state = window.context.state
    before = tab.table.components.line(0).share
    state.edit("inference.batch", 7)
    assert state.settling
    assert tab.table.components.line(0).share != before
    state.select(Selection("weights", "load", 0))
    assert "weights: parameters" not in window.why.text()
    qtbot.waitUntil(lambda: not state.settling)
    assert "weights: parameters" in window.why.text()
    lines = [tab.table.components.line(row) for row in range(tab.table.components.rowCount())]
    assert all(line.formula and line.certainty for line in lines)
    whole = sum(term.bytes for term in state.terms if term.component == "kv_cache" and term.phase == "decode")
    assert whole == next(phase for phase in state.footprint.gpus[0].phases if phase.name == "decode").components["kv_cache"]


GENERATED = Scenario(
    "Qwen/Qwen3-8B", "training", hardware=Hardware("H100 SXM5 80GB"),
    training=Training(objective="grpo", method="lora", batch=8, sequence=2048),
)  # fmt: skip


@pytest.mark.parametrize("size", [(1400, 900), (1000, 700)])
def test_the_names_of_five_phases_are_whole_and_beside_the_figures(open_window, size):
    tab = open_window(GENERATED, size).show_tab("footprint")
    buttons = [button for button in tab.phases._group.buttons() if button.isVisible()]
    assert [button.text() for button in buttons] == ["Load", "Generation", "Forward", "Backward", "Optimizer"]
    for button in buttons:
        assert button.fontMetrics().horizontalAdvance(button.text()) <= button.width() - 4, button.text()
    figures = tab._meters
    assert buttons[-1].mapTo(tab, buttons[-1].rect().topRight()).x() < figures.x() + figures.width() - 118


def test_no_label_of_a_bar_lies_across_the_capacity(open_window):
    tab = open_window(GENERATED, (1000, 700)).show_tab("footprint")
    bars = tab.bars
    line = bars._x(bars.rows[0].capacity_bytes)
    crossed = [one for one in bars._segments if one.rectangle.left() < line < one.rectangle.right()]
    assert [one.component for one in crossed] == ["activations", "activations"]
    for one in crossed:
        assert one.label
        assert abs(one.middle - line) > width_of(one.label, SMALL, tabular=True) / 2


OFFLOADED = Scenario(
    "meta-llama/Llama-3.1-8B", "inference", "gguf:Q4_K_M", hardware=Hardware("GeForce RTX 4060 Ti 16GB"),
    inference=Inference("llama.cpp", engine_options={"n_gpu_layers": 10, "n_ctx": 8192}),
)  # fmt: skip


def test_what_lies_on_the_host_has_a_bar_of_its_own_and_a_why(open_window, qtbot):
    window = open_window(OFFLOADED)
    tab, host = window.show_tab("footprint"), window.context.state.footprint.host
    bar = tab.bars.rows[-1]
    assert (bar.label, bar.total_bytes, bar.capacity_bytes) == ("Host", host.bytes, None)
    assert f"host {format_bytes(host.bytes)}" in tab.verdict.accessibleName()
    QTest.mouseClick(tab.bars, Qt.MouseButton.LeftButton, pos=middle_of(tab, "kv_cache", "host"))
    qtbot.waitUntil(lambda: window.context.state.terms is not None)
    assert f"{host.components['kv_cache']:,} bytes · host" in window.why.text()
    assert "cells" in window.why.text()
    assert tab.table.components.line(0).component == "weights"
    assert sum(tab.table.components.line(row).size_bytes for row in range(tab.table.components.rowCount())) == host.bytes
    assert all(tab.table.components.line(row).formula for row in range(tab.table.components.rowCount()))
    QTest.mouseClick(tab.phases._group.button(0), Qt.MouseButton.LeftButton)
    assert window.context.state.shown_phase()[0].index == 0


def test_a_plan_without_anything_on_the_host_has_no_such_bar(tab):
    assert "Host" not in [row.label for row in tab.bars.rows]
    assert "while loading" in tab.verdict.accessibleName()


def test_the_legend_tells_what_bracket_and_hatch_are_where_that_takes_no_line(tab, window):
    legend = tab._legend
    assert legend.accessibleDescription().endswith("Error band, Over 97 %")
    told = [label for _, label, _ in legend._flow(2000)]
    assert told[-2:] == ["Error band", "Over 97 %"]
    assert "Over 97 %" not in [label for _, label, _ in legend._flow(120)]
    components = [name for name, _, _ in legend._flow(2000)][:-2]
    assert [name for name, _, _ in legend._flow(120)][: len(components)] == components


UNEVEN = Scenario(
    "Qwen/Qwen3-8B",
    "inference",
    inference=Inference("vllm", batch=8, prompt_tokens=8192, new_tokens=1024),
    hardware=Hardware("GeForce RTX 4090", 8),
    parallel=Parallel(pipeline=8),
)


def test_of_gpus_that_differ_the_fullest_is_explained_and_named(open_window):
    window = open_window(UNEVEN)
    tab, footprint = window.show_tab("footprint"), window.context.state.footprint
    fullest = footprint.fullest
    assert fullest.index > 0
    assert f"GPU {fullest.index}" in window.why.text()
    assert tab._meters.accessibleName().startswith(f"GPU {fullest.index}, Allocated {format_bytes(fullest.peak.allocated)}")
    assert sum(tab.table.components.line(row).size_bytes for row in range(tab.table.components.rowCount())) == fullest.peak.device


def test_a_tool_tip_tells_of_the_gpu_under_the_mouse(open_window):
    tab = open_window(UNEVEN).show_tab("footprint")
    sizes = {row.gpu: dict(row.parts)["kv_cache"] for row in tab.bars.rows}
    assert len(set(sizes.values())) > 1
    for row in tab.bars.rows:
        assert f"</b> {format_bytes(sizes[row.gpu])} " in tab.bars._tip(Selection("kv_cache", row.phase, row.gpu))


@pytest.mark.parametrize("nodes", [1, 4])
def test_however_many_bars_none_is_drawn_over_another_and_the_table_keeps_room(open_window, nodes):
    many = replace(UNEVEN, hardware=Hardware("GeForce RTX 4090", 8, nodes), parallel=Parallel(pipeline=8, tensor=nodes))
    tab = open_window(many, size=(1000, 700)).show_tab("footprint")
    places = [tab.bars.row_rectangle(row.gpu, row.phase) for row in tab.bars.rows]
    assert len(places) == 8 * nodes
    assert all(below.top() >= above.bottom() - 0.5 for above, below in pairwise(places))
    assert places[-1].bottom() <= tab.bars.height()
    assert tab.table.viewport().height() > 60
    assert tab._all_bars.geometry().bottom() < tab._legend.geometry().top()
    tab.bars.setFocus()
    for _ in places:
        QTest.keyClick(tab.bars, Qt.Key.Key_Down)
    last = tab.bars.mapTo(tab._all_bars, places[-1].center().toPoint()).y()
    assert 0 < last < tab._all_bars.height()


def test_bars_are_thicker_in_a_high_window(open_window):
    heights = [
        open_window(size=size).show_tab("footprint").bars.segment_rectangle("weights", "prefill").height()
        for size in ((1000, 700), (1400, 900), (2560, 1440))
    ]
    assert heights[0] <= heights[1] < heights[2]


def test_cards_that_differ_are_each_named(open_window):
    cards = ("GeForce RTX 4090", "GeForce RTX 4090", "GeForce RTX 3090")
    tab = open_window(replace(UNEVEN, hardware=Hardware(cards[0], 3, cards=cards), parallel=Parallel(pipeline=3))).show_tab(
        "footprint"
    )
    assert "2 × GeForce RTX 4090 + GeForce RTX 3090" in tab.verdict.accessibleName()
    assert "Over 97 %" not in tab._legend.accessibleDescription()


def test_what_a_server_leaves_of_its_cache_is_not_called_room_of_the_card(open_window):
    fits = open_window(UNEVEN).show_tab("footprint").verdict.accessibleName()
    assert "of its cache to spare" in fits
    assert "headroom" not in fits
    window = open_window(replace(UNEVEN, model="meta-llama/Llama-3.1-405B"))
    card = window.context.state.footprint.fullest
    short = window.show_tab("footprint").verdict.accessibleName()
    assert f"short by {format_bytes(card.peak.device - card.capacity_bytes)}" in short


def test_the_detail_breaks_between_figures_not_inside(open_window):
    verdict = (
        open_window(replace(UNEVEN, hardware=Hardware("RTX PRO 6000 Blackwell Workstation", 8)), size=(1000, 700))
        .show_tab("footprint")
        .verdict
    )
    assert len(verdict._lines) > 1
    assert not any(line.startswith("·") or line.rstrip().endswith(("·", "±")) for line in verdict._lines)


def test_before_the_first_plan_the_panel_says_what_it_is_for(open_window):
    window = open_window(replace(UNEVEN, weights="no such format"))
    assert window.context.state.plan is None
    assert "opens here" in window.why.text()
    window.context.state.edit("weights", "native")
    assert "opens here" not in window.why.text()
