"""The strip at the bottom: however many GPUs there are, each can be told apart, and what the window says moves nothing."""

from __future__ import annotations

from itertools import pairwise

import pytest

from gui.footprint.verdict import VerdictCard
from probes.readings import DriverState, GpuReading, MemoryReading

GIB = 2**30


def readings(count, name="NVIDIA H100 80GB HBM3"):
    memory = MemoryReading(80 * GIB, 20 * GIB, 60 * GIB, 0, "nvml-v2")
    return tuple(GpuReading(number, f"u{number}", name, memory, 50.0, 312.0, 61.0) for number in range(count))


def filled(window, qtbot, count):
    machine = window.context.machine
    machine.stop()
    machine._take(DriverState(), readings(count), {})
    qtbot.waitUntil(lambda: all(cell.isVisible() and cell.y() > 0 for cell in window.strip._cells))
    return window.strip


@pytest.mark.parametrize(("count", "told"), [(1, "312 W"), (2, "312 W"), (8, "25 %"), (16, "15")])
def test_however_many_gpus_there_are_none_is_cut(open_window, qtbot, count, told):
    window = open_window(size=(1000, 700))
    strip = filled(window, qtbot, count)
    qtbot.waitUntil(lambda: all(cell._text.shown == cell.text for cell in strip._cells))
    ends = [cell.geometry() for cell in strip._cells]
    assert told in strip.told[-1]
    assert ends[-1].right() <= strip.width() == window.width()
    assert all(left.right() < right.left() for left, right in pairwise(ends))
    assert "312 W" in strip._cells[-1].toolTip()


def test_figures_that_change_move_nothing(open_window, qtbot):
    window = open_window()
    strip = filled(window, qtbot, 2)
    before = [cell.geometry() for cell in strip._cells]
    strip._show(tuple(GpuReading(one.index, one.uuid, one.name, MemoryReading(80 * GIB, GIB)) for one in readings(2)))
    assert [cell.geometry() for cell in strip._cells] == before
    assert "N/A" in strip.told[0]


@pytest.mark.parametrize("count", [0, 8])
def test_what_the_window_says_moves_nothing_above_the_strip(open_window, qtbot, count):
    window = open_window(size=(1000, 700))
    strip, card = filled(window, qtbot, count), window.findChild(VerdictCard)
    before = (strip.geometry(), card.geometry(), window.form.geometry())
    window.say("Saved as a-plan.json")
    assert strip.said == "Saved as a-plan.json"
    qtbot.waitUntil(lambda: strip._said.shown == strip.said)
    assert (strip.geometry(), card.geometry(), window.form.geometry()) == before
    assert all(cell._text.shown == cell.text for cell in strip._cells)
    window.statusBar().clearMessage()
    assert not strip._said.isVisible()
